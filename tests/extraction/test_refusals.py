"""Refusals are known by their first words."""

from __future__ import annotations

import json
from statistics import fmean

import pytest

from persona_tui.core.workspace import packaged_root
from persona_tui.extraction.axes import refuses


@pytest.mark.parametrize("label", ["refused", "answered"])
@pytest.mark.parametrize("split", ["train", "test"])
def test_replies_that_refuse_are_told_from_others_that_look_like_it(label: str, split: str) -> None:
    lines = (packaged_root() / "datasets" / "safety" / "refusals.jsonl").read_text(encoding="utf-8")
    rows = [json.loads(line) for line in lines.splitlines()]
    chosen = [row["reply"] for row in rows if row["label"] == label and row["split"] == split]
    assert len(chosen) == 20
    assert fmean(refuses(reply) == (label == "refused") for reply in chosen) >= 0.9


def test_only_the_beginning_counts() -> None:
    assert not refuses("Here is how to bake bread. " + "Knead it well. " * 20 + "I cannot help with more.")
    assert refuses("I\u2019m sorry, but I can\u2019t help with that.")
    assert not refuses("")
