"""The server put together: endpoints, who may use them, what is counted, and how it ends."""

from __future__ import annotations

import hmac
import time
from asyncio import to_thread
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

from starlette.applications import Starlette
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.requests import Request as HttpRequest
from starlette.responses import JSONResponse, Response
from starlette.routing import Match, Route
from starlette.types import Message, Receive, Scope, Send

from persona_tui.server.http import GONE, error_response, ollama_error, openai_error
from persona_tui.server.limits import Refused, TooLarge
from persona_tui.server.measures import Measures
from persona_tui.server.native_api import Native
from persona_tui.server.ollama_api import Ollama
from persona_tui.server.openai_api import OpenAI
from persona_tui.server.service import Service

LOOPBACK = ("127.0.0.1", "localhost", "::1")
_OPEN = ("/healthz",)  # for whoever watches over the machine, without a key


class Gate:
    """Lets in who may, up to the size that is taken, and counts what comes of it."""

    def __init__(
        self, app: Starlette, measures: Measures, body: int, api_key: str | None, hosts: Sequence[str]
    ) -> None:
        """
        Args:
            app: what is behind it.
            measures: counts requests.
            body: the largest body, in bytes.
            api_key: what clients have to send; None = nothing.
            hosts: the names under which it may be called, which keeps a web page from reaching it under a
                name of its own; empty = any.
        """
        self._app, self._measures, self._body = app, measures, body
        self._key, self._hosts = api_key, tuple(hosts)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started, status = time.monotonic(), GONE

        async def noting(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            self._check(scope)
            await self._app(scope, self._counting(receive), noting)
        except Refused as refused:
            form = ollama_error if scope["path"].startswith("/api/") else openai_error
            await error_response(refused, form)(scope, receive, noting)
        finally:
            path = self._known(scope)
            self._measures.requests.labels(path, str(status)).inc()
            self._measures.seconds.labels(path).observe(time.monotonic() - started)
            if status == GONE:
                self._measures.left.labels(path).inc()

    def _check(self, scope: Scope) -> None:
        headers = Headers(scope=scope)
        if self._hosts and _host(headers.get("host", "")) not in self._hosts:
            raise Refused("This server answers under its own address only.", status=403, code="wrong_host")
        given = headers.get("authorization", "").removeprefix("Bearer ").encode()
        if (
            self._key is not None
            and scope["path"] not in _OPEN
            and not hmac.compare_digest(given, self._key.encode())
        ):
            raise Refused(
                "An API key is needed: Authorization: Bearer KEY.", status=401, code="invalid_api_key"
            )
        length = headers.get("content-length", "0")
        if length.isdecimal() and int(length) > self._body:
            raise self._too_large()

    def _counting(self, receive: Receive) -> Receive:
        read = 0

        async def counted() -> Message:
            nonlocal read
            message = await receive()
            read += len(message.get("body", b""))
            if read > self._body:
                raise self._too_large()
            return message

        return counted

    def _too_large(self) -> TooLarge:
        return TooLarge(f"The body is larger than {self._body} bytes.", code="body_too_large")

    def _known(self, scope: Scope) -> str:
        """The path as its route has it, so that there are few of them."""
        for route in self._app.routes:
            if isinstance(route, Route) and route.matches(scope)[0] is not Match.NONE:
                return route.path
        return "other"


def _host(header: str) -> str:
    """The name in a Host header, without its port."""
    if header.startswith("["):
        return header[1:].partition("]")[0]
    return header.rpartition(":")[0] if header.rpartition(":")[2].isdecimal() and ":" in header else header


def make_app(service: Service, api_key: str | None = None, hosts: Sequence[str] = ()) -> Gate:
    """Return the server as an ASGI application.

    Args:
        service: answers; it is closed with the application.
        api_key: what clients have to send; None = nothing.
        hosts: see `Gate`.
    """

    async def healthy(request: HttpRequest) -> Response:
        alive = service.worker.alive
        return JSONResponse({"status": "ok" if alive else "closing"}, 200 if alive else 503)

    async def measures(request: HttpRequest) -> Response:
        page = service.measures.page(service.worker.rows, service.worker.waiting)
        return Response(page, media_type="text/plain; version=0.0.4; charset=utf-8")

    async def missing(request: HttpRequest, error: Exception) -> Response:
        status = getattr(error, "status_code", 404)
        said = "There is nothing here." if status == 404 else str(getattr(error, "detail", error))
        refused = Refused(f"{request.method} {request.url.path}: {said}", status=status)
        form = ollama_error if request.url.path.startswith("/api/") else openai_error
        return error_response(refused, form)

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        try:
            yield
        finally:
            await to_thread(service.close)

    routes = [
        *OpenAI(service).routes(),
        *Ollama(service).routes(),
        *Native(service).routes(),
        Route("/healthz", healthy),
        Route("/metrics", measures),
    ]
    app = Starlette(routes=routes, lifespan=lifespan, exception_handlers={HTTPException: missing})
    return Gate(app, service.measures, service.limits.body, api_key, hosts)
