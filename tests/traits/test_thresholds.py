"""Thresholds from labels."""

from __future__ import annotations

import pytest

from persona_tui.core.errors import DatasetError
from persona_tui.datasets.transcripts import read_file
from persona_tui.traits.definition import TraitDefinition
from persona_tui.traits.score import TraitScorer
from persona_tui.traits.thresholds import (
    counts_at,
    fit_threshold,
    labelled_scores,
    reference_scores,
)
from persona_tui.traits.vector import TraitVector

from .conftest import WORDS, Write, chat


def test_labels_of_every_kind(scorer: TraitScorer, lines: Write) -> None:
    loud = [
        chat("hi", f"{word.upper()} IS FINE", label=(1, True, "high")[place % 3])
        for place, word in enumerate(WORDS)
    ]
    quiet = [
        chat("hi", f"{word} is fine", label=(0, False, "LOW")[place % 3]) for place, word in enumerate(WORDS)
    ]
    path = lines([*loud, *quiet, chat("hi", "x"), chat("hi", "x", label="perhaps"), {"no": 1}])
    high, low, bad = labelled_scores("loudness", scorer.stream(read_file(path)))
    assert (len(high), len(low)) == (10, 10)
    assert [line.line for line in bad] == [21, 22, 23]
    assert min(high) > max(low)


def test_the_fit(trait: TraitVector) -> None:
    fit = fit_threshold(trait, [2.0, 3.0, 4.0, 1.2], [0.0, 1.0, 0.5, 1.1])
    assert 1.1 < fit.threshold < 1.2
    assert (fit.accuracy, fit.auc.value) == (1, 1)
    assert fit.accuracy_unseen <= fit.accuracy
    assert fit.before == trait.reading.threshold
    assert fit.confusion == {"true_high": 4, "false_low": 0, "false_high": 0, "true_low": 4}


def test_few_false_alarms(trait: TraitVector) -> None:
    high, low = [1.0, 2.0, 3.0, 4.0], [0.0, 0.5, 1.5, 3.5]
    assert fit_threshold(trait, high, low, 0.0).threshold > 3.5
    assert fit_threshold(trait, high, low).threshold < 3.5


def test_too_few(trait: TraitVector) -> None:
    with pytest.raises(DatasetError, match="1 replies are labelled low"):
        fit_threshold(trait, [1.0, 2.0], [0.0])


def test_the_test_conversations_can_be_calibrated_on(
    scorer: TraitScorer, definition: TraitDefinition, trait: TraitVector
) -> None:
    high, low = reference_scores(scorer, definition)
    assert (len(high), len(low)) == (10, 10)
    fit = fit_threshold(trait, high, low)
    assert counts_at(high, low, fit.threshold) == fit.confusion
    assert counts_at([1.0], [0.0, 2.0], 1.0) == {
        "true_high": 1,
        "false_low": 0,
        "false_high": 1,
        "true_low": 1,
    }
