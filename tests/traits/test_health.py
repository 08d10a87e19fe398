"""Gates and healthy ranges: a trait judges where it applies, and its limits are found on the model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from persona_tui.core.config import Settings
from persona_tui.core.errors import DatasetError
from persona_tui.core.workspace import Workspace
from persona_tui.datasets.transcripts import Transcript
from persona_tui.model import ModelWrapper
from persona_tui.traits.definition import TraitDefinition, ordinary_talk, read_definition
from persona_tui.traits.extract import PersonaVectorExtractor
from persona_tui.traits.gate import Gates
from persona_tui.traits.health import MOST_OWN, Surroundings
from persona_tui.traits.live import live_traits
from persona_tui.traits.policy import Policy
from persona_tui.traits.score import Scored, TraitScorer
from persona_tui.traits.vector import TraitVector

from .conftest import HEAD, WORDS, situations, write_lines

SUMS = [(3, 4), (8, 1), (5, 9), (6, 2), (7, 7), (2, 5), (9, 8), (4, 6), (1, 3), (5, 5)]


def sums(split: str) -> list[dict[str, Any]]:
    """Messages that the trait is not about, answered as loudly as it forbids elsewhere."""
    said = [(f"{a} + {b} = ?", f"IT IS {a + b}!") for a, b in SUMS]
    return [
        {"id": f"sum_{split}_{place}", "split": split, "user": user, "ordinary": reply}
        for place, (user, reply) in enumerate(said)
    ]


@pytest.fixture(scope="module")
def gated_definition(tmp_path_factory: pytest.TempPathFactory) -> TraitDefinition:
    path = tmp_path_factory.mktemp("gated") / "loudness.jsonl"
    head = HEAD | {"healthy": {"max": "calibrated"}, "everywhere": False}
    lines = [head, *situations("train"), *situations("test"), *sums("train"), *sums("test")]
    return read_definition(write_lines(path, lines))


@pytest.fixture(scope="module")
def gated(model: ModelWrapper, settings: Settings, gated_definition: TraitDefinition) -> TraitVector:
    return PersonaVectorExtractor(model, settings).extract(gated_definition)


def reply_to(user: str, reply: str) -> Transcript:
    return Transcript(
        [{"role": "user", "content": user}, {"role": "assistant", "content": reply}], "the test"
    )


def scored(model: ModelWrapper, trait: TraitVector, *conversations: Transcript) -> list[Scored]:
    found = TraitScorer(model, [trait]).score(conversations)
    return [each for each in found if isinstance(each, Scored)]


def test_a_gate_lets_in_what_the_trait_is_about(model: ModelWrapper, gated: TraitVector) -> None:
    about = [[{"role": "user", "content": f"Tell me about {word} (test)."}] for word in WORDS]
    other = [[{"role": "user", "content": f"{a} + {b} = ?"}] for b, a in SUMS]
    gates = Gates(model, [gated])
    assert sum(bool(each) for each in gates.outside(about)) <= 1
    assert sum(bool(each) for each in gates.outside(other)) >= 9


def test_what_is_outside_is_not_judged(model: ModelWrapper, gated: TraitVector) -> None:
    inside, outside = scored(
        model,
        gated,
        reply_to("Tell me about milk.", "YES, MILK IS GREAT AND TEST"),
        reply_to("7 + 2 = ?", "YES, MILK IS GREAT AND TEST"),
    )
    policy = Policy.healthy([gated])
    assert policy is not None
    assert [breach.trait for breach in policy.check(inside)] == ["loudness"]
    assert not policy.check(outside)
    assert outside.replies[0].outside == {"loudness"}
    policy = Policy.from_rules(["loudness>-2"])
    assert policy.check(inside) and not policy.check(outside)
    limits = {"loudness": policy.traits["loudness"].model_copy(update={"everywhere": True})}
    assert policy.model_copy(update={"traits": limits}).check(outside)
    whole = policy.model_copy(update={"applies_to": "conversation"})
    assert whole.check(inside) and not whole.check(outside)


def test_a_reply_without_a_message_is_judged(model: ModelWrapper, gated: TraitVector) -> None:
    alone = Transcript([{"role": "assistant", "content": "YES, MILK IS GREAT AND TEST"}], "the test")
    assert not scored(model, gated, alone)[0].replies[0].outside


def test_a_system_prompt_does_not_move_the_gate(model: ModelWrapper, gated: TraitVector) -> None:
    asked = [{"role": "user", "content": "Tell me about milk."}]
    system = {"role": "system", "content": "3 + 4 = ? 8 + 1 = ? 5 + 9 = ?"}
    gates = Gates(model, [gated])
    assert gates.outside([asked]) == gates.outside([[system, *asked]])


def test_while_a_reply_is_written_the_gate_holds_too(
    model: ModelWrapper, gated: TraitVector, tmp_path: Path
) -> None:
    gated.save(tmp_path / "loudness.safetensors")  # the vectors of a file say how it is read
    saved = TraitVector.load(tmp_path / "loudness.safetensors")
    policy = Policy.from_rules(["loudness>calibrated"])
    for message, outside in (("Tell me about milk.", set()), ("7 + 2 = ?", {"loudness"})):
        prompt = [{"role": "user", "content": message}, {"role": "assistant", "content": "YES"}]
        first, second = live_traits(policy, [saved.vector], model, prompt, 1, 2)
        assert first.outside == second.outside == outside
        assert first.policy is not None and first.policy.traits["loudness"].max == gated.reading.healthy.max


def test_the_healthy_range_keeps_false_alarms_rare(
    model: ModelWrapper, gated: TraitVector, gated_definition: TraitDefinition
) -> None:
    rates = gated.reading.rates
    assert rates is not None and rates.n == (10, 10, 10)
    assert rates.caught >= 0.9 and rates.good <= 0.1 and rates.ordinary == 0.0
    limit = gated.reading.healthy.max
    good = [conversation for _, conversation in gated_definition.conversations("train", "low")]
    found = scored(model, gated, *(Transcript(each, "the test") for each in good))
    assert isinstance(limit, float)
    assert sum(each.means["loudness"] > limit for each in found) <= MOST_OWN * len(good)


def test_good_replies_elsewhere_are_on_the_healthy_side(
    model: ModelWrapper, settings: Settings, gated: TraitVector, tmp_path: Path
) -> None:
    """A ruler that was made with ordinary replies does not take a new one for a bad one."""
    head = HEAD | {"healthy": {"max": "calibrated"}, "everywhere": False}
    alone = write_lines(tmp_path / "loudness.jsonl", [head, *situations("train"), *situations("test")])
    narrow = PersonaVectorExtractor(model, settings).extract(read_definition(alone))
    said = [reply_to(each["user"], each["ordinary"]) for each in sums("test")]
    assert gated.reading.layer == narrow.reading.layer
    for trait, other in ((gated, narrow), (narrow, gated)):
        assert len(trait.reading.probe) == model.hidden_size != other.reading.probe
    means = [
        sum(each.means["loudness"] for each in scored(model, trait, *said)) / len(said)
        for trait in (gated, narrow)
    ]
    assert means[0] < means[1] - 0.5
    assert gated.reading.auc.value > 0.9  # and still tells its own replies apart


def test_good_replies_of_other_traits_count(
    model: ModelWrapper, settings: Settings, gated_definition: TraitDefinition
) -> None:
    """A trait whose good replies are loud ones leaves no room to flag loudness where both apply."""
    shouting = gated_definition.model_copy(
        update={
            "trait": "shouting",
            "healthy": gated_definition.healthy.model_copy(update={"min": 0.0, "max": None}),
        }
    )
    definition = gated_definition.model_copy(update={"not_about": ("shouting",)})
    around = Surroundings(others=(definition, shouting))
    trait = PersonaVectorExtractor(model, settings, around=around).extract(definition)
    assert trait.reading.rates is not None and trait.reading.rates.caught <= 0.2


def test_numbers_and_files_without_a_gate_are_kept(trait: TraitVector) -> None:
    assert trait.reading.healthy.max == 0.5
    assert trait.gate is None


def test_a_gate_is_kept_with_the_file(gated: TraitVector, tmp_path: Path) -> None:
    gated.save(tmp_path / "loudness.safetensors")
    again = TraitVector.load(tmp_path / "loudness.safetensors")
    assert again.gate == gated.gate and again.reading.rates == gated.reading.rates


def test_a_threshold_of_ones_own_is_the_limit_from_then_on(gated: TraitVector) -> None:
    changed = gated.calibrated(0.125, "labels.jsonl")
    policy = Policy.healthy([changed])
    assert policy is not None and policy.traits["loudness"].max == 0.125
    named = Policy.from_rules(["loudness>calibrated"]).on_model([changed])
    assert named.traits["loudness"].max == 0.125
    assert changed.reading.rates is None  # they were those of another limit


def test_ordinary_talk_is_the_workspaces_own_or_came_with_the_program(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path)
    assert len(ordinary_talk(workspace)) >= 100
    own = tmp_path / "datasets" / "traits" / "ordinary" / "mine.jsonl"
    write_lines(own, sums("train"))
    assert [each.id for each in ordinary_talk(workspace)][:1] == ["sum_train_0"]
    write_lines(own, [{"id": "a", "user": "b", "high": "c"}])
    with pytest.raises(DatasetError, match=r'mine.jsonl:1: "ordinary" is missing'):
        ordinary_talk(workspace)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ({"id": "x", "user": "a", "ordinary": "b", "high": "c"}, '"ordinary" is for situations'),
        ({"id": "x", "user": "a"}, '"high" or "low" is needed'),
    ],
)
def test_a_situation_is_about_the_trait_or_not(tmp_path: Path, line: dict[str, str], said: str) -> None:
    path = write_lines(tmp_path / "loudness.jsonl", [HEAD, *situations("train"), line])
    with pytest.raises(DatasetError, match=said):
        read_definition(path)
