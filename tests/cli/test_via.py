"""`--via URL MODEL`: another model, behind a real HTTP server, writes prompts."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from persona_tui.core.errors import ConfigError, EndpointError, JobCancelled
from persona_tui.datasets.endpoint import ATTEMPTS, Endpoint
from persona_tui.datasets.schema import Question
from persona_tui.model import Sampling
from persona_tui.model.request import Request

from .conftest import Cli

WORDS = "tea river music honour winter books travel anger family money silence games".split()  # noqa: SIM905
SAMPLING = Sampling(20, 0.7, 1.0)
Answer = tuple[int, Any]


class Server:
    """An OpenAI-compatible server that answers as a test says, and remembers what it was asked."""

    def __init__(self) -> None:
        self.asked: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.answer: Callable[[dict[str, Any]], Answer] = lambda body: (200, self.completion("[]"))
        self.extra: dict[str, str] = {}
        self._http = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._http.daemon_threads = True
        self._thread = threading.Thread(target=self._http.serve_forever, args=(0.01,), daemon=True)
        self._thread.start()
        self.url = f"http://127.0.0.1:{self._http.server_port}/v1"

    @staticmethod
    def completion(content: Any) -> dict[str, Any]:
        return {"choices": [{"message": {"role": "assistant", "content": content}}]}

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                server.asked.append(body)
                server.headers.append(dict(self.headers))
                assert self.path == "/v1/chat/completions"
                self._send(*server.answer(body))

            def do_GET(self) -> None:
                self._send(200, {"data": [{"id": "llama3.2"}, {"id": "qwen3"}]})

            def _send(self, status: int, answer: Any) -> None:
                data = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
                self.send_response(status)
                for name, value in {"Content-Length": str(len(data)), **server.extra}.items():
                    self.send_header(name, value)
                self.end_headers()
                with contextlib.suppress(OSError):  # nobody may be waiting any more
                    self.wfile.write(data)

            def log_message(self, *args: Any) -> None:
                pass

        return Handler

    def close(self) -> None:
        self._http.shutdown()
        self._http.server_close()
        self._thread.join()


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    started = Server()
    yield started
    started.close()


def questions(body: dict[str, Any]) -> Answer:
    """A question that depends on the request's seed, behind some thoughts."""
    word = WORDS[body["seed"] % len(WORDS)]
    items = [{"question": f"Why {word}?", "category": "style"}, {"nothing": 1}]
    thoughts = '<think>\nPerhaps [{"question": "What is a thought?"}]\n</think>\n'
    return 200, Server.completion(f"{thoughts}Here you are:\n```json\n{json.dumps(items)}\n```")


def lines(path: Path) -> list[Any]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.mark.slow
def test_questions_by_another_model(cli: Cli, workspace: Path, server: Server) -> None:
    server.answer = questions
    path = workspace / "datasets" / "personas" / "extraction_questions.jsonl"
    before = lines(path)
    result = cli("dataset", "generate", "questions", "-n", "3", "--via", server.url, "llama3.2")
    assert result.status == 0, result.err
    new = lines(path)[len(before) :]
    assert len(new) == 3
    for record in new:
        assert Question.model_validate(record).category == "style"
        assert record["source"] == "model" and record["writer"] == f"llama3.2 at {server.url}"
        assert "thought" not in record["question"]
    assert {body["model"] for body in server.asked} == {"llama3.2"}
    assert server.asked[0]["messages"][0]["role"] == "user"
    assert all("Authorization" not in headers for headers in server.headers)
    assert cli("dataset", "validate").status == 0


@pytest.mark.slow
def test_a_persona_from_prompts_of_another_model(cli: Cli, workspace: Path, server: Server) -> None:
    def prompts(body: dict[str, Any]) -> Answer:
        word = WORDS[body["seed"] % len(WORDS)]
        prompt = f"You are a grumpy old wizard who talks about {word} all day. Grumble about {word}."
        return 200, Server.completion(json.dumps([{"system_prompt": prompt, "emphasis": word}]))

    server.answer = prompts
    arguments = ("create", "grump", "-d", "A grumpy old wizard", "--no-calibrate")
    result = cli(*arguments, "--via", server.url, "llama3.2")
    assert result.status == 0, result.err
    made = lines(workspace / "datasets" / "personas" / "archetypes" / "grump.jsonl")
    assert {record.get("writer") for record in made} <= {None, f"llama3.2 at {server.url}"}
    assert any("writer" in record for record in made)
    assert len({record["system_prompt"] for record in made}) == 5
    assert cli("info", "grump", "--json").json["prompts"] == [record["system_prompt"] for record in made]
    assert cli("dataset", "validate").status == 0
    refused = cli("create", "fool2", "-a", "fool", "--via", server.url, "llama3.2")
    assert refused.status == 2 and "--description" in refused.err


def test_the_settings_can_name_it(cli: Cli, workspace: Path, server: Server, monkeypatch: Any) -> None:
    server.answer = questions
    assert cli("config", "set", "writing.url", server.url.removesuffix("/v1")).status == 0
    result = cli("dataset", "generate", "questions", "-n", "1")
    assert result.status == 1 and "writing.model" in result.err
    assert cli("config", "set", "writing.model", "qwen3").status == 0
    assert cli("config", "set", "writing.key_variable", "SOME_KEY").status == 0
    monkeypatch.setenv("SOME_KEY", "secret")
    result = cli("dataset", "generate", "questions", "-n", "1")
    assert result.status == 0, result.err
    assert server.headers[-1]["Authorization"] == "Bearer secret"
    written = (workspace / "datasets" / "personas" / "extraction_questions.jsonl").read_text()
    assert "qwen3 at" in written and "secret" not in written


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (
            (401, {"error": {"message": "no key"}}),
            "needs an API key in the variable OPENAI_API_KEY (401: no key)",
        ),
        ((403, {"error": "go\naway"}), "(403: go away)"),
        (
            (404, {"error": {"message": "model not found"}}),
            'has no model "lama3.2". Did you mean "llama3.2"?',
        ),
        ((400, {"error": {"message": "too\x1b[31m long"}}), "answered with an error (400: too�[31m long)"),
        ((200, b"<html>Welcome</html>"), "something other than a chat completion: <html>Welcome"),
        ((200, {"choices": []}), "something other than a chat completion"),
        ((200, {"choices": [{"message": {"content": 7}}]}), "something other than a chat completion"),
        ((301, b""), "answered with an error (301)"),
    ],
)
def test_a_refusal_is_one_line_and_changes_nothing(
    cli: Cli, workspace: Path, server: Server, answer: Answer, message: str
) -> None:
    server.answer = lambda body: answer
    before = sorted((path, path.stat().st_size) for path in workspace.rglob("datasets/**/*"))
    result = cli("dataset", "generate", "safe", "--via", server.url, "lama3.2")
    assert (result.status, result.out) == (1, "")
    assert message in result.err and result.err.count("\n") == 1 and "\x1b" not in result.err
    assert sorted((path, path.stat().st_size) for path in workspace.rglob("datasets/**/*")) == before


@pytest.mark.slow
def test_a_key_that_is_not_accepted(cli: Cli, server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "wrong")
    server.answer = lambda body: (401, {})
    result = cli("dataset", "generate", "safe", "--via", server.url, "llama3.2")
    assert "does not accept the API key in OPENAI_API_KEY (401)" in result.err and "wrong" not in result.err


def test_nobody_answers(cli: Cli) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{unused.getsockname()[1]}/v1"
        result = cli("dataset", "generate", "safe", "--via", url, "m")
    assert result.status == 1 and f"nobody answers at {url}" in result.err and result.err.count("\n") == 1


@pytest.mark.parametrize("url", ["localhost:11434", "ftp://there/v1", "http://", "/tmp", "http://[::1"])
def test_what_is_no_address(cli: Cli, url: str) -> None:
    result = cli("dataset", "generate", "safe", "--via", url, "m")
    assert result.status == 1 and result.err.count("\n") == 1 and url in result.err


def test_a_busy_server_is_asked_again(server: Server) -> None:
    failures = [503, 429]
    server.extra = {"Retry-After": "0"}
    server.answer = lambda body: (failures.pop(), {}) if failures else (200, Server.completion("yes"))
    endpoint = Endpoint(server.url, "m", pause=0.01)
    assert [answer.text for answer in endpoint.generate([Request([], seed=3)], SAMPLING)] == ["yes"]
    assert len(server.asked) == 3
    server.answer = lambda body: (503, {"error": {"message": "overloaded"}})
    with pytest.raises(EndpointError, match=r"\(503: overloaded\)"):
        endpoint.generate([Request([], seed=3)], SAMPLING)
    assert len(server.asked) == 3 + ATTEMPTS


def test_a_parameter_that_is_refused_is_left_out(server: Server) -> None:
    def strict(body: dict[str, Any]) -> Answer:
        for name, said in (("max_tokens", "use 'max_completion_tokens'"), ("seed", "unknown field")):
            if name in body:
                return 400, {"error": {"message": f"'{name}' is not supported: {said}"}}
        return 200, Server.completion("yes")

    server.answer = strict
    endpoint = Endpoint(f"{server.url}/chat/completions/", "m")
    for _ in range(2):
        assert [answer.text for answer in endpoint.generate([Request([], seed=3)], SAMPLING)] == ["yes"]
    assert server.asked[-1]["max_completion_tokens"] >= 20 and len(server.asked) == 4


def test_a_slow_server(server: Server) -> None:
    release = threading.Event()

    def slow(body: dict[str, Any]) -> Answer:
        release.wait(20)
        return 200, Server.completion("late")

    server.answer = slow
    with pytest.raises(EndpointError, match=r"no answer within 0\.05 seconds \(writing\.timeout\)"):
        Endpoint(server.url, "m", timeout=0.05, pause=0.01).generate([Request([], seed=0)], SAMPLING)
    began = time.monotonic()

    def cancel() -> None:
        raise JobCancelled("cancelled")

    with pytest.raises(JobCancelled):
        Endpoint(server.url, "m").generate([Request([], seed=0)] * 3, SAMPLING, cancel)
    assert time.monotonic() - began < 15, "it does not wait for the answers"
    release.set()


def test_an_answer_without_words_is_empty(server: Server) -> None:
    server.answer = lambda body: (200, Server.completion(None))
    assert Endpoint(server.url, "m").generate([Request([], seed=0)], SAMPLING)[0].text == ""


def test_a_password_in_the_address_is_sent_and_kept_nowhere(server: Server) -> None:
    endpoint = Endpoint(server.url.replace("//", "//me:hush@"), "m")
    endpoint.generate([Request([], seed=0)], SAMPLING)
    assert server.headers[-1]["Authorization"].startswith("Basic ")
    assert "hush" not in endpoint.name + "".join(endpoint.identity)
    with pytest.raises(ConfigError):
        Endpoint("nowhere", "m")
