"""Serving until somebody ends it."""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Callable

import uvicorn

from persona_tui.core.errors import PersonaTuiError
from persona_tui.monitors.second_opinion import Validator
from persona_tui.project.project import Project
from persona_tui.server.app import LOOPBACK, make_app
from persona_tui.server.limits import Capacity
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
            host: the address to listen at.
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
    """A socket at an address, before the model is loaded: an address that is taken is said at once."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        family, kind, protocol, _, address = found[0]
        listener = socket.socket(family, kind, protocol)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
    except OSError as error:
        raise PersonaTuiError(f"Cannot listen at {host}:{port}: {error.strerror or error}.") from error
    listener.set_inheritable(True)
    return listener
