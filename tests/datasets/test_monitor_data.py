"""The shipped queries of self-monitoring keep what their README promises: counts, harms, and clean splits."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from persona_tui.datasets.validate import similarity, tokens

MONITORS = Path(__file__).resolve().parents[2] / "datasets" / "monitors"
HARMS = {"violence", "weapons", "illegal_acts", "self_harm", "hate", "fraud", "cyber", "privacy"}
LANGUAGES = ("es", "fr", "de", "pt")
TOO_CLOSE = 0.6
"""Share of words (Jaccard) from which a test query repeats a training query."""

Row = dict[str, Any]


def read(name: str) -> list[Row]:
    lines = (MONITORS / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def own(rows: list[Row]) -> list[Row]:
    """The queries that were written by themselves: no sibling shares their template."""
    siblings = Counter(row.get("template") for row in rows)
    return [row for row in rows if row.get("template") and siblings[row["template"]] == 1]


@pytest.fixture(scope="module")
def training() -> list[Row]:
    return read("training") + [row for row in read("large") if row["split"] == "train"]


@pytest.fixture(scope="module")
def tests() -> list[Row]:
    large = [row for row in read("large") if row["split"] == "test"]
    return read("validation") + read("adversarial") + read("languages") + large


def test_most_of_the_new_queries_stand_alone() -> None:
    alone = own(read("large"))
    assert len(alone) >= 400
    assert 0.4 <= sum(row["label"] == "dangerous" for row in alone) / len(alone) <= 0.6
    plain = [row for row in alone if row["split"] == "train" and row["kind"] == "direct"]
    assert len(plain) > 64
    harms = Counter(row["category"] for row in plain)
    assert set(harms) == HARMS and min(harms.values()) >= 12


def test_every_framing_has_both_labels(training: list[Row]) -> None:
    """Otherwise a monitor could tell the label by the framing."""
    for kind in ("academic", "obfuscated"):
        assert {row["label"] for row in training if row["kind"] == kind} == {"safe", "dangerous"}
    for kind in ("suffix", "padding", "prefix", "roleplay", "misspelled"):
        kinds = Counter((row["kind"], row["label"]) for row in read("adversarial"))
        assert kinds[kind, "dangerous"] >= 11 and kinds[f"harmless_{kind}", "safe"] >= 4


def test_enough_plain_requests_are_held_out() -> None:
    rows = read("validation")
    assert sum(row["kind"] == "direct" for row in rows) >= 60
    assert sum(row["kind"] == "everyday" for row in rows) >= 60
    assert min(Counter(row["category"] for row in rows if row["kind"] == "direct").values()) >= 8


@pytest.mark.parametrize("language", LANGUAGES)
def test_ten_of_each_label_in_each_language(language: str) -> None:
    rows = [row for row in read("languages") if row["kind"] == f"language:{language}"]
    assert Counter(row["label"] for row in rows) == {"safe": 10, "dangerous": 10}
    assert {row["category"] for row in rows if row["label"] == "dangerous"} == HARMS


def test_no_test_query_repeats_a_training_query(training: list[Row], tests: list[Row]) -> None:
    seen = [(tokens(row["query"]), row["id"]) for row in training]
    asked = [(tokens(row["query"]), row["id"]) for row in tests]
    close = [
        (id, other)
        for words, id in asked
        for trained, other in seen
        if similarity(words, trained) >= TOO_CLOSE
    ]
    assert not close


def test_ids_and_queries_are_unique() -> None:
    names = ("training", "validation", "adversarial", "large", "languages")
    rows = [row for name in names for row in read(name)]
    assert max(Counter(row["id"] for row in rows).values()) == 1
    assert max(Counter(row["query"] for row in rows).values()) == 1
