"""Requests and answers in vLLM's API server, which has frameworks of its own: plain ASGI."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from persona_tui.vllm.wire import KEY

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

OURS = "/v1/persona_tui"  # below /v1, as vLLM asks for its API key there
PROTOCOL = 4  # of the door
_MOST_BYTES = 64 * 2**20


async def whole(receive: Receive) -> bytes | None:
    """Return a request's body; None if it is too long, or its client has gone."""
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


async def answer(send: Send, value: object, status: int = 200) -> None:
    """Answer with a document."""
    await answer_bytes(send, json.dumps(value).encode(), status, b"application/json")


async def refuse(send: Send, message: str, status: int = 400) -> None:
    """Answer with an error, in OpenAI's form."""
    error = {"message": message, "type": "BadRequestError", "param": KEY, "code": status}
    await answer(send, {"error": error}, status)


async def answer_bytes(
    send: Send, body: bytes, status: int = 200, kind: bytes = b"application/octet-stream"
) -> None:
    """Answer with bytes."""
    headers = [(b"content-type", kind), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


async def begin_events(send: Send) -> None:
    """Begin an answer of server-sent events."""
    headers = [(b"content-type", b"text/event-stream"), (b"cache-control", b"no-cache")]
    await send({"type": "http.response.start", "status": 200, "headers": headers})


async def event(send: Send, value: object, name: str) -> None:
    """Send one event."""
    body = f"event: {name}\ndata: {json.dumps(value)}\n\n".encode()
    await send({"type": "http.response.body", "body": body, "more_body": True})


async def gone(receive: Receive) -> None:
    """Return when the client has gone away."""
    while (await receive())["type"] != "http.disconnect":
        pass
