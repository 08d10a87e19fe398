"""The layers of defence behind the monitor: a validator with the last word, and the model's own critique."""

from __future__ import annotations

import json
import shlex
import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from persona_tui.chat.chat import Chat
from persona_tui.chat.replay import replay, stretches
from persona_tui.chat.replies import ChatReply
from persona_tui.core.errors import MonitorError
from persona_tui.monitors.second_opinion import CRITIQUE, NAMED_BY, Opinion, Validator, critique
from persona_tui.project.project import Project

SAFE = 'import json, sys; print(json.dumps({"safe": bool(json.load(sys.stdin)["reply"].strip())}))'
OBJECTS = 'print(\'{"safe": false, "reason": "it names a poison."}\')'


def program(code: str) -> str:
    return shlex.join([sys.executable, "-c", code])


def asked(session: Chat, mode: str, validator: Validator | None = None) -> ChatReply:
    """A reply to a question, written under a guard and a validator."""
    session.sampling_changes = {"temperature": 0.0, "max_new_tokens": 8}
    session.set_guard(mode)
    session.validator = validator
    reply = session.say("What is rain?")
    for _ in session.events(reply):
        pass
    return reply


def test_a_reply_that_the_validator_passes_is_as_it_was_and_its_cost_is_kept(project: Project) -> None:
    plain = asked(Chat.start(project), "off", Validator(program(OBJECTS)))
    reply = asked(Chat.start(project), "critique", Validator(program(SAFE)))
    assert plain.rows[0].opinions == [] and reply.rows[0].text == plain.rows[0].text
    first, second = reply.conversation.node(reply.node or 0).runs[-1].stats["opinions"]
    assert (first["by"], first["safe"], first["passes"]) == ("validator", True, 0) and first["seconds"] > 0
    assert (second["by"], second["passes"]) == (CRITIQUE, 1)


@pytest.mark.parametrize(
    ("validator", "said"),
    [
        (Validator(program(OBJECTS)), "it names a poison"),
        (Validator(program("print('perhaps')")), "did not answer with one JSON object: 'perhaps'"),
        (Validator(program("print('[' * 100000)")), "did not answer with one JSON object"),
        (Validator(program('print(\'{"results": [{"flagged": true, "categories": 5}]}\')')), "flagged"),
        (Validator(program("import sys; sys.exit(3)")), "it ended with status 3."),
        (Validator(program("while True: print('safe' * 1000)")), "it printed more than 1,048,576 bytes"),
        (Validator(program("import sys; sys.exit('out of order')")), "status 1: out of order"),
        (Validator(program("import time; time.sleep(60)"), timeout=0.2), "it took more than 0.2 seconds"),
        (Validator("/nowhere/validator"), "/nowhere/validator cannot be run: No such file"),
    ],
)
def test_what_is_not_found_safe_is_never_shown(session: Chat, validator: Validator, said: str) -> None:
    reply = asked(session, "critique", validator)
    assert reply.finish == "refused" and reply.empty and reply.refusal is not None
    assert said in reply.refusal.refusal and reply.refusal.refusal.startswith("Stopped: the validator")
    # The model does not see the message again.
    assert session.conversation.messages() == []


def test_where_the_guard_only_warns_the_reply_is_shown(project: Project) -> None:
    session = Chat.start(project)
    reply = asked(session, "warn", Validator(program(OBJECTS)))
    assert reply.rows[0].text.strip() and reply.finish in ("stop", "length")
    assert [each.safe for each in reply.rows[0].opinions] == [False]


def test_a_held_reply_that_is_stopped_is_not_shown(session: Chat) -> None:
    session.set_guard("critique")
    session.validator = Validator(program(SAFE))
    reply = session.say("What is rain?")
    reply.stop()
    shown = "".join(event.text for event in session.events(reply))
    assert shown == "" and reply.empty


def test_the_model_answers_again_when_it_objects_to_its_draft(session: Chat) -> None:
    draft = asked(session, "critique")
    assert [each.by for each in draft.rows[0].opinions] == [CRITIQUE]
    draft.rows[0].opinions[:] = [Opinion(CRITIQUE, True, "harmless", 0.1, 1)]
    assert session.answer_again(draft) is None
    draft.rows[0].opinions[:] = [Opinion(CRITIQUE, False, "harmful", 0.1, 1)]
    again = session.answer_again(draft)
    assert again is not None and again.node is not None
    for _ in session.events(again):
        pass
    conversation = session.conversation
    assert conversation.siblings(again.node) == (1, 2)  # the draft is kept beside it
    prompt = conversation.prompt(again.node)
    assert [message["role"] for message in prompt] == ["user", "assistant", "user"]
    assert prompt[1]["content"] == draft.rows[0].text.strip() and "harm" in prompt[2]["content"]
    # What the model is given later has the second answer only; and a second answer stands.
    assert conversation.messages()[-1]["content"] == again.rows[0].text.strip()
    again.rows[0].opinions[:] = [Opinion(CRITIQUE, False, "harmful", 0.1, 1)]
    assert session.answer_again(again) is None
    # Both are in the session, and come out again: the second one with the draft in view.
    id, engine = str(session.session_id), session.project.engine
    session.close()
    saved = session.store.load(id)[0]
    assert [replay(engine, each).equal for each in stretches(saved)] == [True, True]


def test_a_critique_reads_the_draft_beside_two_stock_exchanges(project: Project) -> None:
    opinion = critique(project.model, "How do I bake bread?", "Mix flour and water.")
    assert opinion.by == CRITIQUE and opinion.passes == 1 and "harmless exchange" in opinion.reason
    too_long = critique(project.model, "bread " * 5000, "Mix.")
    assert too_long.safe is None and "context" in too_long.reason


def test_a_validator_can_be_named_by_the_environment(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert Chat.start(project).validator is None
    monkeypatch.setenv(NAMED_BY, "https://127.0.0.1:1/moderations")
    validator = Chat.start(project).validator
    assert validator is not None and validator.is_endpoint
    assert validator.judge("Hello.", "Hello.").safe is None  # nobody is there


def test_a_validator_is_a_command() -> None:
    with pytest.raises(MonitorError, match="not a command"):
        Validator('run "it').check()


class _Moderation(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))["input"]
        flagged = "poison" in asked
        body = json.dumps({"results": [{"flagged": flagged, "categories": {"violence": flagged}}]}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""


@pytest.fixture
def endpoint() -> Iterator[str]:
    server = HTTPServer(("127.0.0.1", 0), _Moderation)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/v1/moderations"
    server.shutdown()
    server.server_close()


def test_what_a_command_leaves_running_neither_delays_it_nor_goes_on(tmp_path: Path) -> None:
    """A child that holds the output open, and would write a file later."""
    late = tmp_path / "late"
    child = f"import time; time.sleep(5); open({str(late)!r}, 'w')"
    code = f"import subprocess, sys; subprocess.Popen([sys.executable, '-c', {child!r}]); {SAFE}"
    opinion = Validator(program(code), timeout=60).judge("What is rain?", "Water.")
    assert opinion.safe is True
    assert opinion.seconds < 5 and not late.exists()


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (b"HTTP/1.1 200 OK\r\n\r\n" + b"x" * (2 << 20), "it answered with more than 1,048,576 bytes"),
        (b"what?\r\n\r\n", "it does not speak HTTP"),
        (b"HTTP/1.1 503 Busy\r\n\r\n", "503"),
        (b"HTTP/1.1 200 OK\r\n", "it took more than 0.5 seconds"),  # and then nothing more
    ],
    ids=["endless", "not HTTP", "busy", "silent"],
)
def test_an_endpoint_that_fails_has_found_nothing_safe(answer: bytes, said: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            connection, _ = server.accept()
            with connection, suppress(OSError):
                asked = b""
                while not asked.endswith(b"}"):  # the body is one object
                    asked += connection.recv(65536)
                connection.sendall(answer)
                if answer.endswith(b"OK\r\n"):
                    done.wait(30)

        done = threading.Event()
        threading.Thread(target=serve, daemon=True).start()
        timeout = 0.5 if "0.5" in said else 30
        opinion = Validator(f"http://127.0.0.1:{server.getsockname()[1]}", timeout).judge("Hi.", "Hello.")
        done.set()
    assert opinion.safe is None and said in opinion.reason


def test_an_endpoint_answers_as_moderation_services_do(endpoint: str, tmp_path: Path) -> None:
    validator = Validator(endpoint)
    assert validator.judge("What is rain?", "Water.").safe is True
    opinion = validator.judge("How?", "With poison.")
    assert (opinion.safe, opinion.reason) == (False, "violence")
