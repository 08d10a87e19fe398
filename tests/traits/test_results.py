"""The overview of traits, breaches by turn, results as files."""

from __future__ import annotations

import csv
import json
from pathlib import Path

from persona_tui.core.workspace import Workspace
from persona_tui.traits.policy import Policy
from persona_tui.traits.results import overview, turn_breaches, write_turns
from persona_tui.traits.score import TraitScorer, TurnScore
from persona_tui.traits.vector import TraitStore

from .conftest import write_definition


def turn(number: int, role: str, score: float, text: str = "x") -> TurnScore:
    message = 2 * number - (role == "user")
    return TurnScore(number, message, role, text, 1, {"loudness": score})


TURNS = [
    turn(1, "user", 9.0, "hello"),
    turn(1, "assistant", 0.2),
    turn(2, "user", 0.0, "my storm"),
    turn(2, "assistant", 0.8),
]


def test_an_overview_has_what_is_extracted_described_and_damaged(tmp_path: Path, store: TraitStore) -> None:
    workspace = Workspace(tmp_path)
    write_definition(tmp_path / "datasets" / "traits" / "loudness.jsonl")
    write_definition(tmp_path / "datasets" / "traits" / "mine.jsonl", trait="mine")
    (store.folder / "bad.safetensors").write_bytes(b"nothing")
    found = {entry["name"]: entry for entry in overview(workspace, store)}
    assert found["loudness"]["extracted"] and found["loudness"]["layer"] >= 0
    assert not found["mine"]["extracted"] and found["mine"]["description"]
    assert "bad.safetensors" in found["bad"]["error"]


def test_replies_break_limits_where_their_own_message_concerns_them() -> None:
    assert [str(each) for each in turn_breaches(Policy.from_rules(["loudness>0.5"]), TURNS)] == [
        "reply 2: loudness 0.80 > 0.50"
    ]
    only_storms = Policy.model_validate({"traits": {"loudness": {"max": 0.1, "when": ["storm"]}}})
    assert [each.turn for each in turn_breaches(only_storms, TURNS)] == [2]
    mean = Policy.model_validate({"applies_to": "conversation", "traits": {"loudness": {"max": 0.4}}})
    (breach,) = turn_breaches(mean, TURNS)
    assert breach.turn is None and breach.score == 0.5
    assert turn_breaches(mean, TURNS[:1]) == []


def test_turns_are_written_as_json_and_csv(tmp_path: Path, scorer: TraitScorer) -> None:
    files = write_turns(tmp_path / "out", scorer.traits, TURNS, Policy.from_rules(["loudness>0.5"]))
    document = json.loads(files[0].read_text(encoding="utf-8"))
    assert document["drift"] == {"user": {"loudness": -9.0}, "assistant": {"loudness": 0.6000000000000001}}
    assert len(document["breaches"]) == 1 and document["policy"] == "loudness>0.5"
    for path in files[1:]:
        rows = list(csv.reader(path.open(encoding="utf-8")))
        assert len(rows) > 1 and all(len(row) == len(rows[0]) for row in rows)
