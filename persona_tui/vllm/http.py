"""Voices and the field `persona_tui` at vLLM's own endpoints (`vllm.endpoint_plugins`).

A request is rewritten before vLLM sees it: `MODEL+sage:0.3` becomes MODEL with a persona, and the field
`persona_tui` what vLLM passes on (`vllm_xargs`). What is asked for is checked where every request is
(`plugin`). An answer gets the field `persona_tui` with what the workers have found while it was written.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Awaitable, Callable, Mapping, MutableMapping, Sequence
from typing import Any

from persona_tui.core.errors import PersonaTuiError
from persona_tui.core.mix import TRAIT_PREFIX, parse_blend
from persona_tui.vllm.bank import KEY, TRACE

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

WORKER = "persona_tui.vllm.worker.PersonaWorker"
PATHS = ("/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/messages")
_MOST_BYTES = 64 * 2**20


def rewritten(body: object, served: Sequence[str]) -> object:
    """A request's body as vLLM is to see it.

    Args:
        body: as it came.
        served: what vLLM calls its model.

    Raises:
        PersonaTuiError: it says who speaks in two ways, or in none that can be read.
    """
    if not isinstance(body, dict):
        return body
    options = body.get(KEY)
    model, voice = _spoken(body.get("model"), served)
    if options is None and voice is None:
        return body
    if options is not None and not isinstance(options, dict):
        raise PersonaTuiError(f'"{KEY}" must be an object such as {{"persona": "sage", "strength": 0.3}}')
    extra = body.get("vllm_xargs") or {}
    if not isinstance(extra, dict) or KEY in extra:
        raise PersonaTuiError(f'who speaks is said twice: once in "vllm_xargs", and in "{KEY}" or the name')
    asked = options or {}
    if "persona" in asked or "blend" in asked:
        voice = {}
    rest = {name: value for name, value in body.items() if name != KEY}
    told = json.dumps({**(voice or {}), **asked})
    return {**rest, **({"model": model} if model else {}), "vllm_xargs": {**extra, KEY: told}}


def _spoken(model: object, served: Sequence[str]) -> tuple[str | None, dict[str, Any] | None]:
    """The model's own name and who speaks, from `MODEL+sage:0.3`; None = nobody is named there."""
    if not isinstance(model, str) or model in served:
        return None, None
    base = next((name for name in served if model.startswith(f"{name}+")), None)
    if base is None:
        return None, None
    spoken = model[len(base) + 1 :]
    weights = parse_blend(spoken.replace("+", ","))
    # One voice's number is how loud it is; those of several are their proportions.
    if len(weights) == 1 and ":" in spoken.removeprefix(TRAIT_PREFIX):
        ((only, strength),) = weights.items()
        return base, {"persona": only, "strength": strength}
    return base, {"blend": weights}


Figures = Callable[[str, int], Awaitable[dict[str, Any] | None]]


class VoiceMiddleware:
    """Rewrites requests on their way to vLLM, and answers on their way back; an ASGI middleware."""

    def __init__(self, app: App, served: Sequence[str], figures: Figures) -> None:
        """
        Args:
            app: vLLM.
            served: what it calls its model.
            figures: told a reply's name and its tokens, what was found while it was written.
        """
        self._app = app
        self._served = served
        self._figures = figures

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, rewritten; what cannot be read is answered with 400."""
        path = str(scope.get("path", "")).removeprefix(str(scope.get("root_path", "")))
        if scope["type"] != "http" or scope.get("method") != "POST" or path not in PATHS:
            await self._app(scope, receive, send)
            return
        body = await _whole(receive)
        if body is None:
            await _refuse(send, "the request is too long, or broke off", 413)
            return
        try:
            given = json.loads(body)
            wanted = rewritten(given, self._served)
        except PersonaTuiError as error:
            await _refuse(send, str(error))
            return
        except (ValueError, RecursionError):  # vLLM says what is wrong with it
            given = wanted = None
        name = ""
        if isinstance(wanted, dict) and _speaks(wanted):
            name = secrets.token_hex(8)
            wanted = {**wanted, "vllm_xargs": {**wanted["vllm_xargs"], TRACE: name}}
        data = body if wanted is given else json.dumps(wanted).encode()
        length = [(b"content-length", str(len(data)).encode())]
        others = [each for each in scope["headers"] if each[0].lower() != b"content-length"]
        told = False

        async def again() -> MutableMapping[str, Any]:
            nonlocal told
            if told:
                return await receive()
            told = True
            return {"type": "http.request", "body": data, "more_body": False}

        answer = _Answer(send, name, self._figures).send if name else send
        await self._app({**scope, "headers": others + length}, again, answer)


def _speaks(body: Mapping[str, Any]) -> bool:
    """Whether a request asks for one reply of somebody."""
    extra = body.get("vllm_xargs")
    return isinstance(extra, dict) and KEY in extra and body.get("n") in (None, 1)


class _Answer:
    """An answer that is given the figures of its reply, before its last piece if it comes in pieces."""

    def __init__(self, send: Send, name: str, figures: Figures) -> None:
        self._send = send
        self._name = name
        self._figures = figures
        self._start: MutableMapping[str, Any] = {}
        self._held = b""
        self._kind = ""

    async def send(self, message: MutableMapping[str, Any]) -> None:
        """Pass a message on."""
        if message["type"] == "http.response.start":
            headers = {name.lower(): value for name, value in message["headers"]}
            kind = headers.get(b"content-type", b"").decode()
            self._kind = kind.partition(";")[0] if message["status"] == 200 else ""
            self._start = message
            if self._kind != "application/json":
                await self._send(message)
        elif message["type"] != "http.response.body" or not self._kind:
            await self._send(message)
        elif self._kind == "application/json":
            await self._whole(message)
        else:
            await self._piece(message)

    async def _whole(self, message: MutableMapping[str, Any]) -> None:
        self._held += message.get("body", b"")
        if message.get("more_body"):
            return
        answer = json.loads(self._held)
        tokens = (answer.get("usage") or {}).get("completion_tokens", 0)
        await self._tell(answer, tokens)
        body = json.dumps(answer).encode()
        headers = [each for each in self._start["headers"] if each[0].lower() != b"content-length"]
        length = [(b"content-length", str(len(body)).encode())]
        await self._send({**self._start, "headers": headers + length})
        await self._send({**message, "body": body})

    async def _piece(self, message: MutableMapping[str, Any]) -> None:
        *whole, self._held = (self._held + message.get("body", b"")).split(b"\n\n")
        events = [await self._event(each) for each in whole]
        rest = b"" if message.get("more_body") else self._held
        body = b"".join(each + b"\n\n" for each in events) + rest
        await self._send({**message, "body": body})

    async def _event(self, event: bytes) -> bytes:
        if not event.startswith(b"data: {"):
            return event
        answer = json.loads(event[6:])
        choices = answer.get("choices")
        if not choices or choices[0].get("finish_reason") is None:
            return event
        await self._tell(answer, (answer.get("usage") or {}).get("completion_tokens", 0))
        return b"data: " + json.dumps(answer).encode()

    async def _tell(self, answer: dict[str, Any], tokens: int) -> None:
        choices = answer.get("choices")
        found = await self._figures(self._name, tokens) if choices else None
        if found is not None and choices:
            choices[0][KEY] = found


async def _whole(receive: Receive) -> bytes | None:
    """A request's body; None if it is too long, or its client has gone."""
    parts, size = [], 0
    while True:
        message = await receive()
        if message["type"] != "http.request":
            return None
        parts.append(message.get("body", b""))
        size += len(parts[-1])
        if size > _MOST_BYTES:
            return None
        if not message.get("more_body"):
            return b"".join(parts)


async def _refuse(send: Send, message: str, status: int = 400) -> None:
    error = {"message": message, "type": "BadRequestError", "param": KEY, "code": status}
    body = json.dumps({"error": error}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


class VoiceEndpoints:
    """What vLLM's API server loads, where `VLLM_PLUGINS` names it."""

    name = "persona_tui"
    required_tasks = ("generate",)

    def __init__(self) -> None:
        self._served: list[str] = []
        self._engine: Any = None  # where its workers have our methods

    def attach_router(self, app: Any) -> None:
        """Put the middleware before everything that is there."""
        app.add_middleware(VoiceMiddleware, served=self._served, figures=self._figures)

    async def _figures(self, name: str, tokens: int) -> dict[str, Any] | None:
        if self._engine is None:
            return None
        answers = await self._engine.collective_rpc("persona_tui_figures", args=(name, tokens))
        found: dict[str, Any] | None = next((each for each in answers if each is not None), None)
        return found

    async def init_state(self, engine_client: Any, state: Any, args: Any) -> None:
        """Learn what the model is called here."""
        names = args.served_model_name or [args.model]
        self._served[:] = [names] if isinstance(names, str) else names
        if args.worker_extension_cls == WORKER:
            self._engine = engine_client
