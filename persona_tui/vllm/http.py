"""Voices and the field `persona_tui` at vLLM's own endpoints (`vllm.endpoint_plugins`).

A request is rewritten before vLLM sees it: `MODEL+sage:0.3` becomes MODEL with a persona, and the field
`persona_tui` what vLLM passes on (`vllm_xargs`). What is asked for is checked where every request is
(`plugin`). An answer gets the field `persona_tui` with what the workers have found while it was written.
"""

from __future__ import annotations

import asyncio
import json
import secrets
from collections.abc import Mapping, MutableMapping, Sequence
from typing import Any, TypeGuard

from persona_tui.core.documents import json_value
from persona_tui.core.errors import PersonaTuiError
from persona_tui.core.mix import TRAIT_PREFIX, parse_blend
from persona_tui.vllm.asgi import OURS, App, Receive, Scope, Send, answer, refuse, whole
from persona_tui.vllm.door import Door
from persona_tui.vllm.figures import figures_of
from persona_tui.vllm.plugin import bank_of, lends
from persona_tui.vllm.wire import CHANGES, KEY, TRACE, WORKER

REPLIES = f"{OURS}/replies/"
PATHS = ("/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/messages")


def rewritten(body: object, served: Sequence[str]) -> object:
    """Return a request's body as vLLM is to see it.

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
    changes = {CHANGES: 1} if asked.get("changeable") is True else {}
    asked = {name: each for name, each in asked.items() if name != "changeable"}
    told = json.dumps({**(voice or {}), **asked})
    return {**rest, **({"model": model} if model else {}), "vllm_xargs": {**extra, KEY: told, **changes}}


def _spoken(model: object, served: Sequence[str]) -> tuple[str | None, dict[str, Any] | None]:
    """Return the model's own name and who speaks, from `MODEL+sage:0.3`; None = nobody is named there."""
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


class Workers:
    """What the endpoints have vLLM's workers do.

    Attributes:
        served: what vLLM calls its model.
        door: for engines on other machines; None = there is none.
    """

    def __init__(self) -> None:
        self.served: list[str] = []
        self.door: Door | None = None
        self._inputs: Any = None  # vLLM's, which knows the personas
        self._engine: Any = None  # where its workers have our methods

    def start(self, engine: Any, names: Sequence[str], ours: bool) -> None:
        """Use an engine; `ours` if its workers have our methods."""
        self._inputs = engine.input_processor
        if ours:
            self._engine = engine
        if ours and lends():
            self.door = Door(engine, names[0])

    def check(self, asked: object) -> None:
        """Check what a request asks for, before an answer is begun: vLLM sends a stream's first line before
        it looks at the request.

        Raises:
            PersonaTuiError: there is no such mix.
        """
        bank = None if self._inputs is None else bank_of(self._inputs)
        if bank is not None:  # else vLLM's side of the plugin refuses
            bank.slot(bank.mix_of(asked))

    async def figures(self, name: str, tokens: int) -> dict[str, Any] | None:
        """Return what was found while a reply of so many tokens was written; None = nothing."""
        if self._engine is None:
            return None
        found = [figures_of(stages) for stages in await self._ask("persona_tui_figures", name, tokens)]
        return next((each for each in found if each is not None), None)

    async def speak(self, name: str, asked: Mapping[str, Any]) -> bool:
        """Have a reply go on with another mix from its next token on; whether it is being written.

        Raises:
            PersonaTuiError: there is no such mix.
        """
        if self._engine is None:
            return False
        bank = bank_of(self._engine.input_processor)
        if bank is None:
            return False
        bank.slot(bank.mix_of(asked))
        return any(map(any, await self._ask("persona_tui_speak", name, dict(asked))))

    async def _ask(self, method: str, *arguments: Any) -> list[list[Any]]:
        """Call a method of every worker; their answers, by copy of the model: `collective_rpc` returns those
        of the first copy only.
        """
        copies: list[list[Any]] = await self._engine.engine_core.call_utility_all_async(
            "collective_rpc", method, None, arguments, None
        )
        return copies


class VoiceMiddleware:
    """Rewrites requests on their way to vLLM, and answers on their way back; an ASGI middleware."""

    def __init__(self, app: App, workers: Workers) -> None:
        """
        Args:
            app: vLLM.
            workers: of the same vLLM.
        """
        self._app = app
        self._workers = workers
        self._changing: dict[str, dict[str, Any]] = {}  # by reply whose mix may change, what it was asked for

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, rewritten; what cannot be read is answered with 400."""
        path = str(scope.get("path", "")).removeprefix(str(scope.get("root_path", "")))
        door = self._workers.door
        changed = scope.get("method") == "PATCH" and path.startswith(REPLIES)
        lent = door is not None and (path == OURS or path.startswith(f"{OURS}/"))
        spoken = scope.get("method") == "POST" and path in PATHS
        if scope["type"] != "http" or not (changed or lent or spoken):
            await self._app(scope, receive, send)
            return
        body = await whole(receive)
        if body is None:
            await refuse(send, "the request is too long, or broke off", 413)
        elif changed:
            await self._change(path.removeprefix(REPLIES), body, send)
        elif spoken:
            await self._speak(scope, receive, send, body)
        elif door is not None:
            await door(scope, receive, send, path.removeprefix(OURS), body)

    async def _change(self, name: str, body: bytes, send: Send) -> None:
        """Have a reply go on with another mix: fields of `persona_tui` that change; the others stay."""
        try:
            asked = json_value(body)
            before = self._changing.get(name)
            if not isinstance(asked, dict):
                raise PersonaTuiError("what changes must be an object")
            if before is None:
                raise _NotWritten
            spoken = {} if {"persona", "blend"} & asked.keys() else _voice(before)
            told = {**spoken, **_rest(before), **asked}
            if not await self._workers.speak(name, told):
                raise _NotWritten
        except _NotWritten:
            await refuse(send, "this reply is not being written, or was not begun with changeable: true", 404)
        except (PersonaTuiError, ValueError) as error:
            await refuse(send, str(error))
        else:
            if name in self._changing:  # it may have ended meanwhile
                self._changing[name] = told
            await answer(send, told)

    async def _speak(self, scope: Scope, receive: Receive, send: Send, body: bytes) -> None:
        try:
            given = json.loads(body)
            wanted = rewritten(given, self._workers.served)
            if _names_a_mix(wanted):
                await asyncio.to_thread(self._workers.check, wanted["vllm_xargs"][KEY])
        except PersonaTuiError as error:
            await refuse(send, str(error))
            return
        except (ValueError, RecursionError):  # vLLM says what is wrong with it
            given = wanted = None
        name, changes = (
            "",
            isinstance(wanted, dict) and wanted is not given and CHANGES in wanted["vllm_xargs"],
        )
        if isinstance(wanted, dict) and _speaks(wanted):
            name = secrets.token_hex(8)
            extra = {**wanted["vllm_xargs"], TRACE: name}
            if changes:
                self._changing[name] = json.loads(extra[KEY])
            wanted = {**wanted, "vllm_xargs": extra}
        elif changes:
            await refuse(send, '"changeable" is for one reply: n must be 1')
            return
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

        told_of = _Answer(send, name, self._workers, name in self._changing).send if name else send
        try:
            await self._app({**scope, "headers": others + length}, again, told_of)
        finally:
            self._changing.pop(name, None)


def _speaks(body: Mapping[str, Any]) -> bool:
    """Return whether a request asks for one reply of somebody."""
    return _names_a_mix(body) and body.get("n") in (None, 1)


def _names_a_mix(body: object) -> TypeGuard[Mapping[str, Any]]:
    extra = body.get("vllm_xargs") if isinstance(body, dict) else None
    return isinstance(extra, dict) and KEY in extra


class _Answer:
    """An answer that is given the figures of its reply, before its last piece if it comes in pieces."""

    def __init__(self, send: Send, name: str, workers: Workers, changeable: bool) -> None:
        self._send = send
        self._name = name
        self._workers = workers
        self._changeable = changeable
        self._start: MutableMapping[str, Any] = {}
        self._held = b""
        self._kind = ""

    async def send(self, message: MutableMapping[str, Any]) -> None:
        """Pass a message on."""
        if message["type"] == "http.response.start":
            headers = {name.lower(): value for name, value in message["headers"]}
            kind = headers.get(b"content-type", b"").decode()
            self._kind = kind.partition(";")[0] if message["status"] == 200 else ""
            if self._changeable:
                told = [(b"persona-tui-reply", self._name.encode())]
                message = {**message, "headers": [*message["headers"], *told]}
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
        found = await self._workers.figures(self._name, tokens) if choices else None
        if found is not None and choices:
            choices[0][KEY] = found


class _NotWritten(PersonaTuiError):
    """A reply is not being written."""


def _voice(asked: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in asked.items() if name in ("persona", "blend")}


def _rest(asked: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in asked.items() if name not in ("persona", "blend")}


class VoiceEndpoints:
    """What vLLM's API server loads, where `VLLM_PLUGINS` names it."""

    name = "persona_tui"
    required_tasks = ("generate",)

    def __init__(self) -> None:
        self._workers = Workers()

    def attach_router(self, app: Any) -> None:
        """Put the middleware before everything that is there, behind the check of the API key."""
        app.add_middleware(VoiceMiddleware, workers=self._workers)

    async def init_state(self, engine_client: Any, state: Any, args: Any) -> None:
        """Learn what the model is called here."""
        names = args.served_model_name or [args.model]
        self._workers.served[:] = [names] if isinstance(names, str) else names
        self._workers.start(engine_client, self._workers.served, args.worker_extension_cls == WORKER)
