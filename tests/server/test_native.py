"""Our own endpoints: turns whose mix changes while they stream, and what there is."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
import torch

from persona_tui.server.run import Server

ASKED = [{"role": "user", "content": "Who are you?"}]
TURN = {"messages": ASKED, "temperature": 0, "max_new_tokens": 400}


def events(lines: Iterator[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    """A stream's events by name."""
    name = ""
    for line in lines:
        if line.startswith("event: "):
            name = line.removeprefix("event: ")
        elif line.startswith("data: "):
            yield name, json.loads(line.removeprefix("data: "))


def test_a_turn_is_told_token_by_token(http: httpx.Client) -> None:
    turn = {**TURN, "max_new_tokens": 8, "persona_tui": {"persona": "sage", "guard": "warn"}}
    with http.stream("POST", "/native/turns", json=turn) as reply:
        told = list(events(reply.iter_lines()))
    names = [name for name, _ in told]
    assert names[:2] == ["begin", "mix"] and names[-1] == "end" and "token" in names
    assert told[0][1]["sampling"]["max_new_tokens"] == 8 and told[1][1]["mix"]["weights"] == {"sage": 1.0}
    tokens = [event for name, event in told if name == "token"]
    assert any("verdict" in event for event in tokens) and tokens[-1]["finish"] in ("stop", "length")
    asked = {"model": "tiny+sage", "messages": ASKED, "temperature": 0, "max_tokens": 8}
    same = http.post("/v1/chat/completions", json=asked).json()["choices"][0]["message"]["content"]
    assert "".join(event["text"] for event in tokens) == same
    assert told[-1][1]["projections"]["sage"]


@pytest.mark.usefixtures("endless")
def test_a_mix_changes_while_the_turn_streams_and_the_turn_is_stopped(http: httpx.Client) -> None:
    with http.stream("POST", "/native/turns", json=TURN) as reply:
        told = events(reply.iter_lines())
        id = next(told)[1]["id"]
        next(event for name, event in told if name == "token")
        wrong = http.patch(f"/native/turns/{id}", json={"weights": {"nobody": 1}})
        assert wrong.status_code == 404
        loud = http.patch(f"/native/turns/{id}", json={"weights": {"sage": 1}, "strength": 0.9})
        assert loud.json()["mix"]["strength"] == 0.9
        changed = next(event for name, event in told if name == "mix" and event["index"] > 0)
        assert changed["mix"]["weights"] == {"sage": 1.0} and changed["mix"]["strength"] == 0.9
        assert http.delete(f"/native/turns/{id}").status_code == 204
        rest = list(told)
    assert [event["finish"] for name, event in rest if name == "token"][-1] == "cancelled"
    assert rest[-1][0] == "end" and rest[-1][1]["mix"]["strength"] == 0.9
    assert http.patch(f"/native/turns/{id}", json={"strength": 0.1}).status_code == 404


def test_what_there_is(http: httpx.Client) -> None:
    personas = http.get("/native/personas").json()["data"]
    assert {"sage", "trickster"} <= {each["name"] for each in personas}
    traits = http.get("/native/traits").json()["data"]
    assert all("auc" in each for each in traits) and traits
    axes = http.get("/native/axes").json()
    assert {each["name"] for each in axes["data"]} == {"assistant", "safety"}
    assert axes["capping"]["axis"] in ("assistant", "safety") and axes["capping"]["layers"]


def test_scores_are_those_of_the_last_reply(http: httpx.Client) -> None:
    told = [{"role": "user", "content": "I feel ill."}, {"role": "assistant", "content": "I hear you."}]
    results = http.post("/score", json={"input": ["I hear you.", told]}).json()["results"]
    assert len(results) == 2 and len(results[0]["scores"]) > 1
    unknown = http.post("/score", json={"input": "x", "traits": ["nothing"]})
    assert (unknown.status_code, unknown.json()["error"]["code"]) == (404, "trait_not_found")
    assert http.post("/score", json={"input": [told[:1]]}).status_code == 400


def test_the_files_that_replies_are_steered_with_can_be_had_and_nothing_else(
    http: httpx.Client, server: Server
) -> None:
    about = http.get("/native").json()
    assert (
        about["native"] == 2 and about["model"] == "tiny" and about["layers"] == server.service.model.n_layers
    )
    assert {"axes", "personas/sage", "traits/harmful_validation"} <= about["vectors"].keys()
    for name, digest in about["vectors"].items():
        assert hashlib.sha256(http.get(f"/native/vectors/{name}").content).hexdigest() == digest
    for name in ("personas/nobody", "..%2f..%2fconfig.yaml", "monitors/default", "state.json"):
        assert http.get(f"/native/vectors/{name}").status_code == 404


def test_one_turn_with_several_mixes_is_answered_in_rows_that_change_apart(
    http: httpx.Client, endless: None
) -> None:
    mixes = [{"weights": {}, "strength": 0.3}, {"weights": {"sage": 1}, "strength": 0.8, "plausibility": 0}]
    turn = {"messages": ASKED, "temperature": 0, "max_new_tokens": 200, "mixes": mixes}
    with http.stream("POST", "/native/turns", json=turn) as reply:
        told = events(reply.iter_lines())
        id = next(told)[1]["id"]
        seen = [next(told) for _ in range(6)]
        assert {event["row"] for _, event in seen} == {0, 1}
        assert http.patch(f"/native/turns/{id}", json={"row": 2, "strength": 1}).status_code == 400
        assert http.patch(f"/native/turns/{id}", json={"row": 1, "strength": 0.2}).status_code == 200
        changed = next(event for name, event in told if name == "mix" and event["index"] > 0)
        assert changed["row"] == 1 and changed["mix"]["strength"] == 0.2
        http.delete(f"/native/turns/{id}")
        end = list(told)[-1][1]
    assert [row["mix"]["weights"] for row in end["rows"]] == [{}, {"sage": 1.0}]


def test_texts_are_read_without_an_answer(http: httpx.Client, server: Server) -> None:
    model = server.service.model
    count = http.post("/native/tokens", json={"messages": ASKED}).json()["tokens"]
    assert count == len(model.encode(ASKED))
    body = {"conversations": [ASKED], "layers": [2, 4]}
    (read,) = http.post("/native/readings", json=body).json()["data"]
    (expected,) = model.read_messages([ASKED], [2, 4])
    torch.testing.assert_close(torch.tensor(read["mean"]), expected.mean)
    assert read["n_tokens"] == expected.n_tokens
    assert http.post("/native/readings", json={**body, "layers": [99]}).status_code == 400
    reread = {"messages": ASKED, "reply": "I am bread.", "trace": ["sage"]}
    told = http.post("/native/rereads", json=reread).json()["data"]
    assert "".join(each["text"] for each in told) == "I am bread." and "sage" in told[0]["projections"]
    for beyond in (-1, 10**12):
        refused = http.post("/native/rereads", json={**reread, "reply": [beyond]})
        assert refused.status_code == 400 and "is not a token" in refused.json()["error"]["message"]
    asked = http.post("/native/rereads", json={"messages": ASKED}).json()["data"]
    assert "".join(each["text"] for each in asked).strip() == ASKED[0]["content"]


CHAT = {"model": "tiny", "messages": ASKED}
WRONG = [
    ("/v1/chat/completions", {**CHAT, "temperature": True}, '"temperature": a number is needed, not true.'),
    ("/v1/chat/completions", {**CHAT, "top_p": "0.5"}, '"top_p": a number is needed, not "0.5".'),
    ("/v1/chat/completions", {**CHAT, "stream": 1}, '"stream": true or false is needed, not 1.'),
    ("/v1/chat/completions", {**CHAT, "n": [2]}, '"n": a whole number is needed, not [2].'),
    (
        "/v1/chat/completions",
        {**CHAT, "messages": []},
        '"messages": a list that is not empty is needed',
    ),
    ("/v1/chat/completions", {**CHAT, "persona_tui": {"strength": True}}, '"persona_tui.strength": a number'),
    ("/v1/completions", {"model": "tiny", "prompt": 3}, '"prompt": a text or a list is needed, not 3.'),
    ("/v1/completions", {"model": "tiny", "prompt": "x", "echo": "no"}, '"echo": true or false is needed'),
    ("/v1/moderations", {"input": {"a": 1}}, '"input": '),
    (
        "/api/chat",
        {**CHAT, "options": {"seed": "one"}},
        '"options.seed": a whole number is needed, not "one".',
    ),
    ("/api/chat", {**CHAT, "options": {"num_predict": True}}, '"options.num_predict": a number is needed'),
    ("/api/generate", {"model": "tiny", "prompt": ["x"]}, '"prompt": a text is needed, not ["x"].'),
    ("/api/show", {"model": 3}, '"model": a text is needed, not 3.'),
    ("/score", {"input": [3]}, '"input.0": a text or a list is needed, not 3.'),
    ("/score", {"input": "x", "trait": []}, 'unknown key "trait". Did you mean "traits"?'),
    ("/native/tokens", {"messages": 3}, '"messages": a list is needed, not 3.'),
    ("/native/readings", {"conversations": [ASKED], "layers": [1], "x": 1}, 'unknown key "x".'),
    ("/native/readings", {"conversations": [], "layers": [3]}, '"conversations": a list that is not empty'),
    (
        "/native/turns",
        {**TURN, "mixes": [{"layers": []}]},
        '"mixes.0.layers": a list that is not empty',
    ),
    (
        "/native/turns",
        {**TURN, "mixes": [{"capping": 1}]},
        '"mixes.0.capping": true or false is needed, not 1.',
    ),
    ("/native/turns", {**TURN, "mixes": [{"weights": {"sage": 1}, "layers": [0]}]}, "no vector at layer 0"),
]


@pytest.mark.parametrize(("route", "body", "said"), WRONG)
def test_a_wrong_type_is_told_with_the_name_of_the_field(
    http: httpx.Client, route: str, body: dict[str, object], said: str
) -> None:
    response = http.post(route, json=body)
    assert response.status_code == 400, response.text
    error = response.json()["error"]
    message = error if isinstance(error, str) else error["message"]
    assert said in message
    assert "\n" not in message and not message.endswith(("..", "?."))
