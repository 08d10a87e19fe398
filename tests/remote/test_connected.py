"""A chat whose model is on another machine: what it does like any other, and what it says it cannot do."""

from __future__ import annotations

import io
import json
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from persona_tui.chat.chat import Chat
from persona_tui.chat.commands import execute
from persona_tui.chat.replay import replay, stretches
from persona_tui.cli import run
from persona_tui.core.errors import ConfigError, EndpointError, PersonaTuiError
from persona_tui.core.mix import Mix
from persona_tui.monitors.second_opinion import CRITIQUE, critique
from persona_tui.project.project import Project
from persona_tui.remote.project import RemoteProject
from persona_tui.server.run import Server
from tests.server.conftest import serving


def test_faders_act_on_the_next_token_and_the_reply_comes_out_again_on_the_server(
    chat: Chat, server: Server, endless: None
) -> None:
    execute(chat, "/persona sage")
    chat.change_sampling(max_new_tokens=60)
    for place, event in enumerate(chat.events(chat.say("Who are you?"))):
        if place == 5:
            chat.change_mix(strength=0.9)
        assert {"sage", "assistant", "safety"} == set(event.projections)
    run = chat.conversation.path()[-1].runs[-1]
    assert [change.mix["strength"] for change in run.changes] == [0.9]
    assert 5 < run.changes[0].index < 60 and len(chat.conversation.path()[-1].token_ids) == 60
    recorded = run.settings
    assert recorded["fingerprint"] == server.service.model.fingerprint and recorded["model"] == "tiny"
    engine = server.service.engine
    assert recorded["mix"] == engine.describe(Mix.from_record(recorded["mix"]))
    (written,) = stretches(chat.conversation)
    assert replay(engine, written).equal


def test_a_fader_moves_one_of_two_answers_and_both_come_out_again(
    chat: Chat, server: Server, endless: None
) -> None:
    chat.change_sampling(max_new_tokens=40, temperature=1.0)
    reply = chat.compare([chat.mix, Mix({"sage": 1.0}, 0.6)], "Who are you?")
    for place, _ in enumerate(chat.events(reply)):
        if place == 12:
            chat.change_mix(weights={"trickster": 1.0}, strength=0.5)
    assert [len(row.events) for row in reply.rows] == [40, 40]
    assert [change.mix["weights"] for change in reply.rows[0].changes] == [{"trickster": 1.0}]
    assert not reply.rows[1].changes
    chat.keep(1)
    chat.close()
    assert [replay(server.service.engine, each).equal for each in stretches(chat.conversation)] == [True] * 2


def test_what_a_reply_measures_is_what_it_measures_on_the_servers_machine(chat: Chat, server: Server) -> None:
    execute(chat, "/persona sage")
    away = list(chat.events(chat.say("What is bread?")))
    engine = server.service.engine
    asked = [{"role": "user", "content": "What is bread?"}]
    with engine.as_in_chat():
        here = list(engine.stream(asked, mix=chat.mix, sampling=chat.sampling))
    assert [event.token_id for event in away] == [event.token_id for event in here]
    for one, other in zip(away, here, strict=True):
        assert one.projections == pytest.approx(
            {name: other.projections[name] for name in one.projections}, abs=1e-4
        )
        assert (one.capped, one.logprob, one.nats) == pytest.approx(
            (other.capped, other.logprob, other.nats), abs=1e-4
        )
    floor = chat.project.engine.floor_reading("assistant", chat.mix)
    assert floor == pytest.approx(engine.floor_reading("assistant", chat.mix))


def test_a_persona_that_the_server_has_got_is_there_when_one_connects_again(
    server: Server, laptop: Path, project: Project
) -> None:
    first = RemoteProject.connect(server.url, workspace=laptop)
    first.copy_vectors()
    folder = project.personas.personas_dir
    (folder / "twin.safetensors").write_bytes((folder / "sage.safetensors").read_bytes())
    try:
        again = RemoteProject.connect(server.url, workspace=laptop)
        again.copy_vectors()
        assert "twin" not in first.personas.list_loaded() and "twin" in again.personas.list_available()
    finally:
        (folder / "twin.safetensors").unlink()
    gone = RemoteProject.connect(server.url, workspace=laptop)
    gone.copy_vectors()
    assert "twin" not in gone.personas.list_available()


@pytest.mark.parametrize(
    "line",
    ["/create pirate A pirate.", "/calibrate sage", "/init", "/delete sage --yes", "/model builtin"],
)
def test_what_takes_the_model_itself_is_said_in_one_line(chat: Chat, line: str) -> None:
    with pytest.raises(PersonaTuiError, match=r"127\.0\.0\.1") as raised:
        execute(chat, line)
    assert len(str(raised.value).splitlines()) == 1
    assert "sage" in chat.project.personas.list_available()
    list(chat.events(chat.say("What is bread?")))
    assert len(chat.conversation.path()) == 2


def test_a_draft_is_read_by_the_servers_model(chat: Chat, project: Project) -> None:
    assert "critique" in execute(chat, "/guard critique")
    reply = chat.say("What is bread?")
    list(chat.events(reply))
    (opinion,) = reply.rows[0].opinions
    here = critique(project.model, "What is bread?", reply.rows[0].text)
    assert (opinion.by, opinion.safe, opinion.reason) == (CRITIQUE, here.safe, here.reason)
    assert reply.rows[0].verdicts["message"].monitor == "default"


def test_a_wrong_key_and_a_bad_address(project: Project, laptop: Path) -> None:
    with serving(project, "the right key") as server:
        with pytest.raises(EndpointError, match="needs an API key: --api-key"):
            RemoteProject.connect(server.url, workspace=laptop)
        with pytest.raises(EndpointError, match="does not accept the API key"):
            RemoteProject.connect(server.url, "another key", laptop)
        assert RemoteProject.connect(f"{server.url}/v1/", "the right key", laptop).at == server.url
    with pytest.raises(EndpointError, match=r"nobody answers at .* is the server running there\?"):
        RemoteProject.connect(server.url, workspace=laptop)
    for address in ("ftp://here", "http://", "http://user:secret@here"):
        with pytest.raises(ConfigError, match="address") as raised:
            RemoteProject.connect(address, workspace=laptop)
        assert "secret" not in str(raised.value)


@contextmanager
def answering(status: int, body: bytes) -> Iterator[str]:
    """Something that is no server of ours, at an address."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *args: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as found:
        threading.Thread(target=found.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{found.server_port}"
        found.shutdown()


@pytest.mark.parametrize(
    ("status", "body", "said"),
    [
        (404, b'{"error": {"message": "GET /native: There is nothing here."}}', "older version"),
        (200, json.dumps({"native": 99, "version": "9.0"}).encode(), r"another version \(persona-tui 9.0\)"),
        (200, b"<html>a page</html>", "not a persona-tui server"),
        (500, b"", "status 500"),
    ],
)
def test_what_is_no_server_of_this_version(status: int, body: bytes, said: str, laptop: Path) -> None:
    with answering(status, body) as url, pytest.raises(EndpointError, match=said):
        RemoteProject.connect(url, workspace=laptop)


@contextmanager
def process(root: Path, port: int) -> Iterator[subprocess.Popen[str]]:
    """`persona-tui serve` as a program of its own."""
    command = [sys.executable, "-m", "persona_tui", "--workspace", str(root), "serve", "--port", str(port)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as running:
        try:
            assert running.stderr is not None
            assert any("Serving" in line for line in running.stderr)
            yield running
        finally:
            running.kill()


@pytest.mark.slow
def test_a_server_that_dies_in_the_middle_of_a_reply_and_comes_back(project: Project, laptop: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as found:
        port = found.getsockname()[1]
    root = project.workspace.root
    with process(root, port) as running:
        chat = Chat.start(RemoteProject.connect(f"127.0.0.1:{port}", workspace=laptop))
        chat.change_sampling(max_new_tokens=1500, temperature=5.0)
        with pytest.raises(EndpointError, match="broke") as raised:
            for place, _ in enumerate(chat.events(chat.say("Tell me a story."))):
                if place == 8:
                    running.send_signal(signal.SIGKILL)
        assert len(str(raised.value).splitlines()) == 1
    kept = chat.conversation.path()[-1]
    assert kept.finish == "failed" and kept.text.strip()
    with pytest.raises(EndpointError, match="nobody answers"):
        list(chat.events(chat.say("And then?")))
    assert [node.role for node in chat.conversation.path()] == ["user", "assistant"], "it was not said"
    chat.change_sampling(max_new_tokens=6)
    with process(root, port):
        list(chat.events(chat.say("And then?")))
    session = chat.session_id or ""
    chat.close()
    saved, _ = chat.store.load(session)
    assert [node.role for node in saved.path()] == ["user", "assistant"] * 2
    assert saved.path()[1].text == kept.text


def test_the_command_line_talks_saves_and_replays(
    server: Server,
    laptop: Path,
    project: Project,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("Who are you?\n/strength 0.6\nAnd then?\n"))
    chatting = ["--workspace", str(laptop), "chat", "--plain", "--connect", server.url, "-p", "sage"]
    assert run(chatting) == 0
    said = capsys.readouterr()
    assert said.out.strip() and "Error" not in said.err
    # The transcript goes to the machine with the model, and is written again there.
    (session,) = (laptop / "sessions").glob("*.jsonl")
    there = project.workspace.root / "sessions" / session.name
    there.parent.mkdir(exist_ok=True)
    there.write_bytes(session.read_bytes())
    assert run(["--workspace", str(project.workspace.root), "replay", session.stem]) == 0
    assert "2 of 2 replies came out the same" in capsys.readouterr().out
    both = ["--workspace", str(laptop), "--model", "tiny", "chat", "--connect", server.url]
    assert run(both) == 2 and "either --connect or --model" in capsys.readouterr().err
