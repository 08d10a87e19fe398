"""Voices and the field `persona_tui` at vLLM's own endpoints (`vllm.endpoint_plugins`).

A request is rewritten before vLLM sees it: `MODEL+sage:0.3` becomes MODEL with a persona, and the field
`persona_tui` what vLLM passes on (`vllm_xargs`). What is asked for is checked where every request is
(`plugin`).
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, MutableMapping, Sequence
from typing import Any

from persona_tui.core.errors import PersonaTuiError
from persona_tui.core.mix import parse_blend
from persona_tui.core.workspace import TRAIT_PREFIX
from persona_tui.vllm.bank import KEY

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

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


class VoiceMiddleware:
    """Rewrites requests on their way to vLLM; an ASGI middleware."""

    def __init__(self, app: App, served: Sequence[str]) -> None:
        self._app = app
        self._served = served

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

        await self._app({**scope, "headers": others + length}, again, send)


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

    def attach_router(self, app: Any) -> None:
        """Put the middleware before everything that is there."""
        app.add_middleware(VoiceMiddleware, served=self._served)

    async def init_state(self, engine_client: Any, state: Any, args: Any) -> None:
        """Learn what the model is called here."""
        names = args.served_model_name or [args.model]
        self._served[:] = [names] if isinstance(names, str) else names
