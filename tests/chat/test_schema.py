"""A session with wrong values is one line that names the file, the line and the field."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from persona_tui.chat.log import SessionLog, fault_of, read_events
from persona_tui.core.errors import SessionError

MIX = {
    "weights": {"sage": 1.0},
    "strength": 0.3,
    "floor": {"axis": "assistant", "percentile": 25, "layers": [3]},
}


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"weights": ["sage"]}, "settings.mix.weights"),
        ({"weights": {"sage": "loud"}}, "settings.mix.weights.sage"),
        ({"strength": None}, "settings.mix.strength"),
        ({"strength": float("nan")}, "settings.mix.strength"),
        ({"floor": {"axis": "assistant", "percentile": "25"}}, "settings.mix.floor.percentile"),
        ({"vectors": 3}, "settings.mix.vectors"),
    ],
)
def test_a_wrong_value_names_file_line_and_field(tmp_path: Path, change: dict[str, Any], field: str) -> None:
    path = tmp_path / "s.jsonl"
    with SessionLog(path, {"model": "tiny"}) as log:
        log.record("message", node=1, parent=None, role="user", text="hi")
        log.record("reply", node=2, parent=1, settings={"mix": MIX})
    assert [event.kind for event in read_events(path)] == ["session", "message", "reply"]
    lines = path.read_text().splitlines()
    event = json.loads(lines[2])
    event["settings"]["mix"] |= change
    path.write_text("\n".join([*lines[:2], json.dumps(event)]) + "\n")
    with pytest.raises(SessionError) as caught:
        list(read_events(path))
    said = str(caught.value)
    assert said.startswith(f"{path}:3: ") and field in said and "\n" not in said


@pytest.mark.parametrize(
    ("kind", "fields", "field"),
    [
        ("message", {"node": "1", "role": "user", "text": "hi"}, "node"),
        ("message", {"node": 1, "role": "bot", "text": "hi"}, "role"),
        (
            "reply",
            {"node": 2, "parent": 1, "settings": {"sampling": {"top_p": "x"}}},
            "settings.sampling.top_p",
        ),
        ("reply", {"node": 2, "parent": 1, "settings": {"sampling": {"seed": -1}}}, "settings.sampling.seed"),
        ("reply", {"node": 2, "parent": 1, "settings": {"fingerprint": 5}}, "settings.fingerprint"),
        ("tokens", {"node": 2, "ids": ["x"], "texts": ["a"]}, "ids.0"),
        ("tokens", {"node": 2, "ids": [1], "texts": [{}]}, "texts.0"),
        ("settings", {"settings": {}}, "node"),
        ("title", {"title": 5}, "title"),
    ],
)
def test_every_kind_of_line_is_checked(kind: str, fields: dict[str, Any], field: str) -> None:
    problem = fault_of(kind, fields)
    assert problem is not None and problem.startswith(f'"{field}"') and "\n" not in problem


ANY = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
FIELDS = st.dictionaries(
    st.sampled_from(["settings", "mix", "role", "text", "finish", "stats"]), ANY, max_size=4
)
KINDS = st.sampled_from(["message", "reply", "settings", "mix", "end", "note"])


def is_told_in_one_line(kind: str, fields: dict[str, Any]) -> None:
    problem = fault_of(kind, fields)
    assert problem is None or (problem.startswith('"') and "\n" not in problem)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(KINDS, FIELDS)
def test_any_event_is_read_or_told(kind: str, fields: dict[str, Any]) -> None:
    is_told_in_one_line(kind, fields)


@pytest.mark.stress
@settings(max_examples=500, deadline=None, derandomize=True)
@given(KINDS, FIELDS)
def test_many_events_are_read_or_told(kind: str, fields: dict[str, Any]) -> None:
    is_told_in_one_line(kind, fields)
