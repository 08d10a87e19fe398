"""The server put together: endpoints, who may use them, what is counted, and how it ends."""

from __future__ import annotations

import asyncio
import hmac
import logging
import socket
import time
from asyncio import to_thread
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager

import uvicorn
from starlette.applications import Starlette
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.requests import Request as HttpRequest
from starlette.responses import JSONResponse, Response
from starlette.routing import Match, Route
from starlette.types import Message, Receive, Scope, Send

from persona_tui.core.errors import PersonaTuiError
from persona_tui.monitors.second_opinion import Validator
from persona_tui.project.project import Project
from persona_tui.server.http import GONE, error_response, ollama_error, openai_error
from persona_tui.server.limits import Capacity, Refused, TooLarge
from persona_tui.server.measures import Measures
from persona_tui.server.native_api import Native
from persona_tui.server.ollama_api import Ollama
from persona_tui.server.openai_api import OpenAI
from persona_tui.server.service import Service

_LOGGING = {
    "version": 1,
    "disable_existing_loggers": False,
    "formatters": {
        "access": {"()": "uvicorn.logging.AccessFormatter", "fmt": "%(asctime)s %(message)s"},
        "plain": {"format": "%(asctime)s %(message)s"},
    },
    "handlers": {
        "access": {"class": "logging.StreamHandler", "formatter": "access", "stream": "ext://sys.stderr"},
        "plain": {"class": "logging.StreamHandler", "formatter": "plain", "stream": "ext://sys.stderr"},
    },
    "loggers": {
        "uvicorn.access": {"handlers": ["access"], "level": "INFO", "propagate": False},
        "uvicorn.error": {"handlers": ["plain"], "level": "WARNING", "propagate": False},
        "persona_tui.server": {"handlers": ["plain"], "level": "INFO", "propagate": False},
    },
}
LOOPBACK = ("127.0.0.1", "localhost", "::1")
_OPEN = ("/healthz",)  # for whoever watches over the machine, without a key


class Gate:
    """Lets in who may, up to the size that is taken, and counts requests."""

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
            raise Refused("This server only answers to its own address.", status=403, code="wrong_host")
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
        """Return the path as its route has it, so that there are few of them."""
        for route in self._app.routes:
            if isinstance(route, Route) and route.matches(scope)[0] is not Match.NONE:
                return route.path
        return "other"


def _host(header: str) -> str:
    """Return the name in a Host header, without its port."""
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


class Server:
    """Listens at an address, and serves there until it is told to end.

    Attributes:
        url: where it is.
        service: what answers.
    """

    def __init__(
        self,
        project: Project,
        host: str = "127.0.0.1",
        port: int = 0,
        api_key: str | None = None,
        limits: Capacity | None = None,
        validator: Validator | None = None,
    ) -> None:
        """
        Args:
            project: whose model, which is loaded here, and whose personas answer.
            host: the address to listen on.
            port: the port; 0 = any that is free.
            api_key: what clients have to send; None = nothing.
            limits: what is taken on.
            validator: has the last word on replies under a guard; see `Service`.

        Raises:
            PersonaTuiError: the address cannot be used, or the model not be loaded.
        """
        limits = limits or Capacity()
        self._listener = _listen(host, port)
        shown = f"[{host}]" if ":" in host else host
        self.url = f"http://{shown}:{self._listener.getsockname()[1]}"
        try:
            self.service = Service(project, limits, validator)
        except BaseException:
            self._listener.close()
            raise
        # Under which names it may be called is known for this machine only.
        hosts = LOOPBACK if host in LOOPBACK else ()
        config = uvicorn.Config(
            make_app(self.service, api_key, hosts),
            log_config=_LOGGING,
            timeout_graceful_shutdown=int(limits.closing),
            lifespan="on",
        )
        self._server = _Server(config)

    def run(self, on_ready: Callable[[], None] = lambda: None) -> None:
        """Serve until `end` is called or the process is told to end; then finish what runs, within a limit.

        Args:
            on_ready: called once requests are answered.
        """
        self._server.on_ready = on_ready
        with self._listener:
            asyncio.run(self._server.serve(sockets=[self._listener]))

    def end(self) -> None:
        """End serving; called from any thread."""
        self._server.should_exit = True


class _Server(uvicorn.Server):
    """Says when it has begun, and when it begins to end."""

    on_ready: Callable[[], None]

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.on_ready()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        logging.getLogger(__name__).info("Closing: replies that are being written are finished.")
        await super().shutdown(sockets)


def _listen(host: str, port: int) -> socket.socket:
    """Return a socket at an address, before the model is loaded: an address that is taken is said at once."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        family, kind, protocol, _, address = found[0]
        listener = socket.socket(family, kind, protocol)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
    except OSError as error:
        raise PersonaTuiError(f"Cannot listen on {host}:{port}: {error.strerror or error}.") from error
    listener.set_inheritable(True)
    return listener
