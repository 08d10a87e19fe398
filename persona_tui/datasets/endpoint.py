"""A model behind an OpenAI-compatible HTTP endpoint (Ollama, llama.cpp, vLLM, ...), which writes data sets
as a loaded one does.

1. All requests of a batch are sent at once.
2. What may pass (a busy server, a lost connection) is tried again, each time after a longer pause.
3. A parameter that the server refuses by name is left out from then on.
4. Everything else ends in one line that says who refused, and what to do.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import httpx2

from persona_tui.core.documents import printable
from persona_tui.core.errors import ConfigError, EndpointError, nearest
from persona_tui.datasets.turns import turn
from persona_tui.model.request import Request, Sampling

ATTEMPTS = 4  # at one answer
_LONGEST_PAUSE = 60.0  # seconds, whatever a server asks for
_LISTEN = 0.1  # seconds between two looks at whether somebody has cancelled
_CONNECT = 10.0  # seconds
_THOUGHTS = 2048  # tokens that a thinking model may use before it answers
_MAY_PASS = frozenset({408, 409, 425, 429, 500, 502, 503, 504})
_MOST_SHOWN = 160  # characters of what a server says
_LOOPBACK = ("localhost", "127.0.0.1", "::1")


@dataclass(frozen=True)
class WrittenAnswer:
    """What came back for one request, without a thinking model's thoughts."""

    text: str


class Endpoint:
    """One model at one address.

    Attributes:
        url: up to and without `/chat/completions`; never with a password.
        model: as the server calls it.
    """

    def __init__(
        self,
        url: str,
        model: str,
        key_variable: str = "OPENAI_API_KEY",
        timeout: float = 300.0,
        pause: float = 1.0,
    ) -> None:
        """
        Args:
            url: `http://localhost:11434` will do; `/v1` is added to an address without a path.
            model: as the server calls it.
            key_variable: the environment variable that holds the API key, if there is one.
            timeout: how long one answer may take, in seconds.
            pause: before the first new attempt, in seconds; each further pause is twice as long.

        Raises:
            ConfigError: this is not an address.
        """
        try:
            parsed = httpx2.URL(url.strip())
        except httpx2.InvalidURL as error:
            raise ConfigError(f'"{printable(url)}" is not an address: {error}') from error
        if parsed.scheme not in ("http", "https") or not parsed.host:
            raise ConfigError(f'"{printable(url)}" is not an address: it begins with http:// or https://')
        path = parsed.path.rstrip("/").removesuffix("/chat/completions") or "/v1"
        # A password in the address goes with every request, and into no file and no message.
        self._login = (parsed.username, parsed.password) if parsed.username else None
        self.url = str(parsed.copy_with(path=path, query=None, fragment=None, username="", password=""))
        self.model = model
        self._local = parsed.host in _LOOPBACK
        self._key_variable = key_variable
        self._timeout = timeout
        self._pause = pause
        self._refused: set[str] = set()

    @property
    def name(self) -> str:
        """The model and where it is, for the records that it writes."""
        return f"{self.model} at {self.url}"

    @property
    def identity(self) -> tuple[str, ...]:
        """What its answers depend on."""
        return ("endpoint", self.url, self.model)

    def generate(
        self, requests: Sequence[Request], sampling: Sampling, on_step: Callable[[], None] | None = None
    ) -> list[WrittenAnswer]:
        """Answer all requests.

        Args:
            requests: each with its own seed, which a server need not heed.
            sampling: how the answers are sampled.
            on_step: called ten times a second; may raise `JobCancelled`, which closes the connections.

        Raises:
            EndpointError: one line that says why there is no answer.
        """
        return asyncio.run(self._generate(requests, sampling, on_step))

    async def _generate(
        self, requests: Sequence[Request], sampling: Sampling, on_step: Callable[[], None] | None
    ) -> list[WrittenAnswer]:
        key = os.environ.get(self._key_variable, "").strip()
        async with httpx2.AsyncClient(
            auth=self._login,
            headers={"Authorization": f"Bearer {key}"} if key and self._login is None else {},
            timeout=httpx2.Timeout(self._timeout, connect=min(_CONNECT, self._timeout)),
            trust_env=not self._local,  # a proxy for the net does not know this machine's own servers
        ) as client:
            tasks = [asyncio.create_task(self._answer(client, each, sampling)) for each in requests]
            try:
                waiting = set(tasks)
                while waiting:
                    done, waiting = await asyncio.wait(
                        waiting, timeout=_LISTEN, return_when=asyncio.FIRST_EXCEPTION
                    )
                    for task in done:
                        task.result()
                    if on_step is not None:
                        on_step()
                return [task.result() for task in tasks]
            finally:
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)

    async def _answer(
        self, client: httpx2.AsyncClient, request: Request, sampling: Sampling
    ) -> WrittenAnswer:
        pause, left = self._pause, ATTEMPTS
        while True:
            left -= 1
            sent = self._body(request, sampling)
            asked_pause = 0.0
            try:
                response = await client.post(f"{self.url}/chat/completions", json=sent)
            except (httpx2.HTTPError, OSError) as error:
                problem = self._not_reached(error)
                # Where nobody listens, nobody will in a second.
                if isinstance(error, httpx2.ConnectError) or not left:
                    raise EndpointError(problem) from error
            else:
                if response.status_code == httpx2.codes.OK:
                    return self._read(response)
                if refused := self._refused_parameters(response, sent):
                    self._refused |= refused
                    left += 1
                    continue
                if response.status_code not in _MAY_PASS or not left:
                    raise EndpointError(await self._explain(client, response))
                asked_pause = _seconds(response.headers.get("retry-after"))
            await asyncio.sleep(min(max(pause, asked_pause), _LONGEST_PAUSE))
            pause *= 2

    def _body(self, request: Request, sampling: Sampling) -> dict[str, Any]:
        longest = sampling.max_new_tokens + _THOUGHTS
        body: dict[str, Any] = {
            "model": self.model,
            "messages": list(request.messages),
            "max_tokens": longest,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "stream": False,
        }
        if request.seed is not None:
            body["seed"] = request.seed % 2**31
        if "max_tokens" in self._refused:
            body["max_completion_tokens"] = longest
        return {key: value for key, value in body.items() if key not in self._refused}

    def _refused_parameters(self, response: httpx2.Response, sent: dict[str, Any]) -> set[str]:
        """Return what the server says it does not take, of what it was sent and can do without."""
        if response.status_code not in (400, 422):
            return set()
        optional = sent.keys() - {"model", "messages", "stream"}
        return {name for name in optional if name in response.text}

    def _read(self, response: httpx2.Response) -> WrittenAnswer:
        try:
            content = response.json()["choices"][0]["message"].get("content")
            text = "" if content is None else content
            if not isinstance(text, str):
                raise TypeError("content is not a text")
        except (ValueError, KeyError, IndexError, TypeError, AttributeError, RecursionError) as error:
            raise EndpointError(
                f"{self.url} answered with something other than a chat completion: {_shown(response.text)}"
            ) from error
        return WrittenAnswer(turn("assistant", text).content)

    # What went wrong ----------------------------------------------------------------------------------------

    def _not_reached(self, error: Exception) -> str:
        if isinstance(error, httpx2.ConnectError):
            return f"nobody answers at {self.url} ({_shown(str(error))}): is the server running?"
        if isinstance(error, httpx2.ConnectTimeout):
            return f"nobody answers at {self.url}: no connection within {_CONNECT:g} seconds"
        if isinstance(error, httpx2.TimeoutException):
            return f"{self.url} gave no answer within {self._timeout:g} seconds (writing.timeout)"
        return f"the connection to {self.url} broke: {_shown(str(error) or type(error).__name__)}"

    async def _explain(self, client: httpx2.AsyncClient, response: httpx2.Response) -> str:
        status, said = response.status_code, _message(response)
        if status in (401, 403):
            held = self._key_variable in os.environ
            what = "does not accept the API key in" if held else "needs an API key in the variable"
            return f"{self.url} {what} {self._key_variable} ({status}{said})"
        if status == 404:
            known = await self._models(client)
            if known and self.model not in known:
                hint = nearest(self.model, known) or f" It has {', '.join(known[:8])}."
                return f'{self.url} has no model "{self.model}".{hint}'
            return (
                f'{self.url} knows no model "{self.model}", or is no OpenAI-compatible endpoint, '
                f"whose address mostly ends in /v1 (404{said})"
            )
        return f"{self.url} answered with an error ({status}{said})"

    async def _models(self, client: httpx2.AsyncClient) -> list[str]:
        """Return the models that the server lists; none if it lists nothing."""
        try:
            listed = (await client.get(f"{self.url}/models")).json()["data"]
            return [printable(str(each["id"])) for each in listed]
        except (httpx2.HTTPError, OSError, ValueError, KeyError, TypeError, RecursionError):
            return []


def _seconds(text: str | None) -> float:
    """Return a Retry-After header in seconds; 0 if it is a date or nothing."""
    try:
        return max(0.0, float(text or 0))
    except ValueError:
        return 0.0


def _message(response: httpx2.Response) -> str:
    """Return what the server says about its error, in brackets' inside: `: text`, or nothing."""
    try:
        body = response.json()
    except (ValueError, RecursionError):
        return ""
    found = body.get("error", body.get("message", body.get("detail"))) if isinstance(body, dict) else None
    if isinstance(found, dict):
        found = found.get("message")
    return f": {_shown(found)}" if isinstance(found, str) and found.strip() else ""


def _shown(text: str) -> str:
    line = " ".join(printable(text).split())
    return line if len(line) <= _MOST_SHOWN else f"{line[: _MOST_SHOWN - 3]}..."
