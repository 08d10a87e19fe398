"""The shipped conversations of traits: enough of them, and neither words nor length give a side away."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import GroupKFold, cross_val_predict
from sklearn.pipeline import Pipeline, make_pipeline

from persona_tui.datasets.validate import Distinct
from persona_tui.traits.definition import Situation, Split, TraitDefinition, read_definition

TRAITS = Path(__file__).resolve().parents[2] / "datasets" / "traits"
NAMES = ("boundary_maintenance", "crisis_recognition", "empathetic_responsiveness", "harmful_validation")
HELP_LINES = ("988", "116 123", "your local emergency number")
WORDS_AT_MOST = 0.8
LENGTH_WITHIN = (0.4, 0.6)


@pytest.fixture(params=NAMES)
def trait(request: pytest.FixtureRequest) -> TraitDefinition:
    return read_definition(TRAITS / f"{request.param}.jsonl")


@pytest.fixture
def subtle(trait: TraitDefinition) -> TraitDefinition:
    return read_definition(TRAITS / "subtle" / f"{trait.name}.jsonl")


def pairs(trait: TraitDefinition, split: Split) -> list[Situation]:
    return trait.about(split)


def replies(situations: list[Situation]) -> tuple[list[str], list[int]]:
    """All high replies and then all low ones, and 1 for each high one."""
    texts = [str(situation.reply(side)) for side in ("high", "low") for situation in situations]
    return texts, [1] * len(situations) + [0] * len(situations)


def bag_of_words() -> Pipeline:
    words = TfidfVectorizer(ngram_range=(1, 2), token_pattern=r"\w+")
    return make_pipeline(words, LogisticRegression(C=10.0, max_iter=1000, random_state=0))


def test_enough_pairs(trait: TraitDefinition, subtle: TraitDefinition) -> None:
    assert len(pairs(trait, "train")) >= 24 and len(pairs(trait, "test")) >= 24
    assert len(subtle.situations) >= 10
    about = [*pairs(trait, "train"), *pairs(trait, "test"), *subtle.situations]
    assert all(situation.high and situation.low for situation in about)


def test_no_message_comes_twice(trait: TraitDefinition, subtle: TraitDefinition) -> None:
    distinct = Distinct()
    for situation in (*trait.situations, *subtle.situations):
        assert distinct.add_new(situation.prompt[-1]["content"]), situation.id


def test_a_bag_of_words_from_training_hardly_tells_the_held_out_sides(trait: TraitDefinition) -> None:
    texts, sides = replies(pairs(trait, "train"))
    held_out, truth = replies(pairs(trait, "test"))
    scores = bag_of_words().fit(texts, sides).decision_function(held_out)
    assert roc_auc_score(truth, scores) < WORDS_AT_MOST


def test_a_bag_of_words_hardly_tells_left_out_pairs(trait: TraitDefinition) -> None:
    situations = pairs(trait, "train")
    texts, sides = replies(situations)
    groups = [*range(len(situations))] * 2
    scores = cross_val_predict(
        bag_of_words(), texts, sides, groups=groups, cv=GroupKFold(8), method="decision_function"
    )
    assert roc_auc_score(sides, scores) < WORDS_AT_MOST


@pytest.mark.parametrize("split", ["train", "test", "subtle"])
def test_length_does_not_tell(trait: TraitDefinition, subtle: TraitDefinition, split: Split) -> None:
    situations = [*subtle.situations] if str(split) == "subtle" else pairs(trait, split)
    texts, sides = replies(situations)
    lengths = np.array([len(text.split()) for text in texts])
    assert LENGTH_WITHIN[0] <= roc_auc_score(sides, lengths) <= LENGTH_WITHIN[1]


def test_replies_are_short(trait: TraitDefinition) -> None:
    texts, _ = replies([*trait.about("train"), *trait.about("test")])
    assert max(len(text.split()) for text in texts) <= 45


def test_help_lines_are_named_on_both_sides_of_a_crisis() -> None:
    """Otherwise a number would be all there is to recognise."""
    crisis = read_definition(TRAITS / "crisis_recognition.jsonl")
    for side, least in (("high", 0.8), ("low", 0.4)):
        named = [
            any(line in str(situation.reply(side)) for line in HELP_LINES)  # type: ignore[arg-type]
            for situation in (*crisis.about("train"), *crisis.about("test"))
        ]
        assert np.mean(named) >= least
