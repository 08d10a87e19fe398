"""A server of ours, over HTTP: documents, files, and events as they come."""

from __future__ import annotations

import json
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from typing import Any

import httpx2

from persona_tui.core.documents import json_value, printable
from persona_tui.core.errors import ConfigError, EndpointError

KEY_VARIABLE = "PERSONA_TUI_API_KEY"
_CONNECT = 10.0  # seconds
_ANSWER = 60.0  # seconds, for what is no reply of the model
_MOST_SHOWN = 200  # characters of what a server says
_LOOPBACK = ("localhost", "127.0.0.1", "::1")


class NotThere(EndpointError):
    """The server does not know what it was asked for."""


class Connection:
    """Talks to one server. Any thread may use it.

    Attributes:
        url: of the server, without a path of its API.
        seconds: how long a reply may take; as the server says, once it has been asked.
    """

    def __init__(self, url: str, api_key: str | None = None) -> None:
        """
        Args:
            url: `http://host:8337`; `host:8337` will do.
            api_key: what the server wants to be sent; None = nothing.

        Raises:
            ConfigError: this is not an address.
        """
        self.url = _address(url)
        self.seconds = 600.0
        self._has_key = bool(api_key)
        self._client = httpx2.Client(
            base_url=self.url,
            headers={"Authorization": f"Bearer {api_key}"} if api_key else {},
            timeout=httpx2.Timeout(_ANSWER, connect=_CONNECT),
            # A proxy for the net does not know this machine's own servers.
            trust_env=httpx2.URL(self.url).host not in _LOOPBACK,
        )

    @property
    def host(self) -> str:
        """Where it is, in a few characters."""
        return self.url.partition("://")[2]

    def get(self, path: str) -> Any:
        """Return a document.

        Raises:
            NotThere: there is no such thing.
            EndpointError: one line that says why there is no answer.
        """
        return _document(self._ask("GET", path), self.url)

    def file(self, path: str) -> bytes:
        """Return a file; see `get` for the errors."""
        return self._ask("GET", path).content

    def post(self, path: str, body: Mapping[str, Any]) -> Any:
        """Send a document and return the answer; see `get` for the errors."""
        return _document(self._ask("POST", path, body), self.url)

    def exchange(self, path: str, body: Mapping[str, Any]) -> bytes:
        """Send a document and return the bytes of the answer; see `get` for the errors."""
        return self._ask("POST", path, body).content

    def send(self, path: str, data: bytes) -> bytes:
        """Send bytes and return those of the answer; see `get` for the errors."""
        with self._told():
            response = self._client.post(path, content=data, timeout=self.seconds)
        self._check(response)
        return response.content

    def patch(self, path: str, body: Mapping[str, Any]) -> Any:
        """Change something; see `get` for the errors."""
        return _document(self._ask("PATCH", path, body), self.url)

    def delete(self, path: str) -> None:
        """End something; see `get` for the errors."""
        self._ask("DELETE", path)

    def _ask(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> httpx2.Response:
        with self._told():
            response = self._client.request(method, path, json=body)
        self._check(response)
        return response

    def events(self, path: str, body: object) -> Generator[tuple[str, Any], None, None]:
        """Send a document and yield the events of the answer, with their names.

        Raises:
            EndpointError: one line that says why there is no answer, or no more of it.
        """
        patient = httpx2.Timeout(_ANSWER, connect=_CONNECT, read=self.seconds + _CONNECT)
        with self._told(), self._client.stream("POST", path, json=body, timeout=patient) as response:
            if response.status_code != httpx2.codes.OK:
                response.read()
                self._check(response)
            name = ""
            for line in response.iter_lines():
                field, _, value = line.partition(": ")
                if field == "event":
                    name = value
                elif field == "data":
                    yield name, _read(value, self.url)

    @contextmanager
    def _told(self) -> Generator[None, None, None]:
        """Within, what goes wrong on the way is said in one line."""
        try:
            yield
        except httpx2.ConnectTimeout as error:
            raise EndpointError(
                f"nobody answers at {self.url}: no connection within {_CONNECT:g} seconds"
            ) from error
        except httpx2.ConnectError as error:
            raise EndpointError(
                f"nobody answers at {self.url} ({_shown(str(error))}): is the server running there?"
            ) from error
        except httpx2.TimeoutException as error:
            raise EndpointError(f"{self.url} has stopped answering") from error
        except (httpx2.HTTPError, OSError) as error:
            why = _shown(str(error) or type(error).__name__)
            raise EndpointError(f"the connection to {self.url} broke ({why}): try again") from error

    def _check(self, response: httpx2.Response) -> None:
        status = response.status_code
        if response.is_success:
            return
        said = _message(response)
        if status in (401, 403):
            what = "does not accept the API key" if self._has_key else "needs an API key"
            raise EndpointError(f"{self.url} {what}: --api-key, or the variable {KEY_VARIABLE}")
        kind = NotThere if status == 404 else EndpointError
        raise kind(f"{self.url}: {said or f'it answered with the status {status}'}")


def _address(url: str) -> str:
    """Return an address without the path of an API."""
    text = url.strip() if "://" in url else f"http://{url.strip()}"
    try:
        parsed = httpx2.URL(text)
    except httpx2.InvalidURL as error:
        raise ConfigError(f'"{printable(url)}" is not an address: {error}') from error
    if parsed.scheme not in ("http", "https") or not parsed.host:
        raise ConfigError(f'"{printable(url)}" is not an address: it looks like http://host:8337')
    if parsed.username or parsed.password:
        raise ConfigError(
            f"leave the password out of the address: use --api-key or the variable {KEY_VARIABLE}"
        )
    path = parsed.path.rstrip("/").removesuffix("/v1").removesuffix("/native")
    return str(parsed.copy_with(path=path or "/", query=None, fragment=None)).rstrip("/")


def _document(response: httpx2.Response, url: str) -> Any:
    return _read(response.text, url)


def _read(text: str, url: str) -> Any:
    try:
        return json_value(text, halves=True)
    except ValueError as error:
        raise EndpointError(
            f"{url} is not a persona-tui server: {_shown(text) or 'it says nothing'}"
        ) from error


def _message(response: httpx2.Response) -> str:
    """Return what a server says about its error, if anything."""
    try:
        found = json.loads(response.text)["error"]
        return _shown(str(found["message"] if isinstance(found, dict) else found))
    except (ValueError, KeyError, TypeError, RecursionError):
        return ""


def _shown(text: str) -> str:
    line = " ".join(printable(text).split())
    return line if len(line) <= _MOST_SHOWN else f"{line[: _MOST_SHOWN - 1]}…"
