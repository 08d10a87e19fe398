"""What a reply goes through behind the monitor: a validator, and the model's own critique."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import pytest

from persona_tui.core.config import override
from persona_tui.monitors.second_opinion import AGAIN, CRITIQUE, Opinion, Validator
from persona_tui.project.project import Project
from persona_tui.server.run import Server

from .conftest import serving

ASKED = {"model": "tiny", "messages": [{"role": "user", "content": "What is rain?"}], "max_tokens": 8}
OBJECTS = 'print(\'{"safe": false, "reason": "it is about water"}\')'
PASSES = "print('{\"safe\": true}')"


def program(code: str) -> Validator:
    return Validator(shlex.join([sys.executable, "-c", code]), timeout=30)


def guarded(mode: str, **changes: Any) -> dict[str, Any]:
    return {**ASKED, "persona_tui": {"guard": mode}, **changes}


def answer(http: httpx.Client, body: dict[str, Any], path: str = "/v1/chat/completions") -> dict[str, Any]:
    response = http.post(path, json=body)
    assert response.status_code == 200, response.text
    return dict(response.json()["choices"][0])


@pytest.fixture
def validated(server: Server) -> Iterator[Server]:
    """A server with a validator that objects to everything."""
    server.service.validator = program(OBJECTS)
    yield server
    server.service.validator = None


@contextmanager
def objecting(server: Server) -> Iterator[list[str]]:
    """A model that objects to every draft; what it has read."""
    usual, read = server.service.critic, list[str]()

    def critic(asked: str, reply: str) -> Opinion:
        read.append(reply)
        return Opinion(CRITIQUE, False, "it helps to do harm", 0.1, 1)

    server.service.critic = critic
    yield read
    server.service.critic = usual


def test_without_a_guard_nobody_is_asked(validated: Server, http: httpx.Client) -> None:
    found = answer(http, ASKED)
    assert found["message"]["content"] and found["persona_tui"]["opinions"] is None


@pytest.mark.parametrize("stream", [False, True])
def test_what_the_validator_does_not_find_safe_is_never_sent(
    validated: Server, http: httpx.Client, stream: bool
) -> None:
    said = http.post("/v1/chat/completions", json=guarded("refuse", stream=stream)).text
    chunks = [json.loads(line[6:]) for line in said.splitlines() if line.startswith("data: {")]
    choices = [each["choices"][0] for each in (chunks or [json.loads(said)])]
    parts = [each.get("delta", each.get("message")) for each in choices]
    assert "".join(part.get("content") or "" for part in parts) == ""
    assert parts[-1]["refusal"] == "Stopped: the validator objects to the reply: it is about water."
    assert choices[-1]["finish_reason"] == "content_filter"
    (opinion,) = choices[-1]["persona_tui"]["opinions"]
    assert opinion["by"] == "validator" and opinion["safe"] is False and opinion["seconds"] > 0


@pytest.mark.parametrize(
    ("validator", "said"),
    [
        (program("import sys; sys.exit('out of order')"), "out of order"),
        (Validator("/no/such"), "No such file"),
    ],
)
def test_a_validator_that_fails_has_not_found_the_reply_safe(
    validated: Server, http: httpx.Client, validator: Validator, said: str
) -> None:
    validated.service.validator = validator
    found = answer(http, guarded("refuse"))
    assert found["message"]["content"] == "" and said in found["message"]["refusal"]
    assert 'persona_tui_opinions_total{by="validator",said="failed"}' in http.get("/metrics").text


def test_where_the_guard_only_warns_the_opinion_is_told(validated: Server, http: httpx.Client) -> None:
    found = answer(http, guarded("warn"))
    assert found["message"]["content"] and found["finish_reason"] == "length"
    assert found["persona_tui"]["opinions"][0]["reason"] == "it is about water"


def test_a_reply_that_passes_is_the_plain_one(server: Server, http: httpx.Client) -> None:
    plain = answer(http, ASKED)["message"]["content"]
    server.service.validator = program(PASSES)
    try:
        found = answer(http, guarded("critique"))
    finally:
        server.service.validator = None
    assert found["message"]["content"] == plain
    first, second = found["persona_tui"]["opinions"]
    assert (first["by"], first["safe"]) == ("validator", True)
    assert (second["by"], second["passes"]) == (CRITIQUE, 1)


@pytest.mark.parametrize("stream", [False, True])
def test_the_model_answers_again_with_its_draft_in_view(
    server: Server, http: httpx.Client, stream: bool
) -> None:
    draft = answer(http, ASKED)["message"]["content"]
    history = [
        *ASKED["messages"],
        {"role": "assistant", "content": draft.strip()},
        {"role": "user", "content": AGAIN},
    ]
    second = answer(http, {**ASKED, "messages": history})["message"]["content"]
    with objecting(server) as read:
        said = http.post("/v1/chat/completions", json=guarded("critique", stream=stream)).text
    assert read == [draft, second]  # the second answer is read, too, and stands
    chunks = [json.loads(line[6:]) for line in said.splitlines() if line.startswith("data: {")]
    choices = [each["choices"][0] for each in (chunks or [json.loads(said)])]
    parts = [each.get("delta", each.get("message")) for each in choices]
    assert "".join(part.get("content") or "" for part in parts) == second != draft
    told = choices[-1]["persona_tui"]
    assert told["draft"]["text"] == draft and told["draft"]["opinions"][0]["safe"] is False
    if not stream:
        usage = json.loads(said)["usage"]
        assert usage["completion_tokens"] == 16 and usage["prompt_tokens"] > 30  # of both


def test_a_turn_of_our_own_tells_of_both_answers(server: Server, http: httpx.Client) -> None:
    turn = {"messages": ASKED["messages"], "max_new_tokens": 8, "persona_tui": {"guard": "critique"}}
    with objecting(server) as read:
        said = http.post("/native/turns", json=turn).text
    events = [each.split("\n", 1) for each in said.strip().split("\n\n")]
    told = [json.loads(body.removeprefix("data: ")) for name, body in events if name == "event: token"]
    assert "".join(each["text"] for each in told) == read[1]
    assert json.loads(events[-1][1].removeprefix("data: "))["draft"]["text"] == read[0]


def test_a_text_that_is_continued_has_no_other_answer(server: Server, http: httpx.Client) -> None:
    body = {"model": "tiny", "prompt": "The rain", "max_tokens": 4, "persona_tui": {"guard": "critique"}}
    with objecting(server):
        found = answer(http, body, "/v1/completions")
    assert found["text"] == "" and found["finish_reason"] == "content_filter"


def test_the_settings_can_ask_for_a_critique(project: Project) -> None:
    settings = override(project.settings, {"monitoring.guard": "critique"})
    with (
        serving(Project(project.workspace, settings)) as server,
        httpx.Client(base_url=server.url, timeout=100) as http,
    ):
        (opinion,) = answer(http, ASKED)["persona_tui"]["opinions"]
        assert opinion["by"] == CRITIQUE
