"""Extraction: vectors, layers, thresholds, files, and what steers."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from persona_tui.core.config import Settings
from persona_tui.core.errors import (
    DatasetError,
    GenerationError,
    JobCancelled,
    PersonaNotFoundError,
    VectorFileError,
)
from persona_tui.model import ModelWrapper, Sampling, conversation
from persona_tui.steering import Mix, SteeringEngine, parse_blend
from persona_tui.traits.definition import TraitDefinition, read_definition
from persona_tui.traits.extract import NATURAL, PersonaVectorExtractor, left_out_scores
from persona_tui.traits.live import LiveTraits
from persona_tui.traits.policy import Policy
from persona_tui.traits.probe import Sample
from persona_tui.traits.vector import RECIPE, TraitStore, TraitVector
from persona_tui.vectors.manager import PersonaManager
from persona_tui.vectors.persona import DEFAULT_STRENGTH
from tests.model.conftest import make_model, make_tokenizer

from .conftest import HEAD, situations, write_definition, write_lines


def test_the_vector_is_the_difference_of_the_means(
    model: ModelWrapper, definition: TraitDefinition, trait: TraitVector
) -> None:
    def mean(side: str) -> torch.Tensor:
        texts = [messages for _, messages in definition.conversations("train", side)]  # type: ignore[arg-type]
        return torch.stack([each.response for each in model.read(texts, trait.vector.layers)]).mean(0)

    high, low = mean("high"), mean("low")
    torch.testing.assert_close(trait.vector.raw[RECIPE], high - low, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(trait.vector.mean[RECIPE], high, atol=1e-4, rtol=1e-4)
    row = trait.vector.layers.index(trait.reading.layer)
    assert trait.direction.norm().item() == pytest.approx(1, abs=1e-5)
    scores = [trait.score(float(each[row] @ trait.direction)) for each in (high, low)]
    assert scores == pytest.approx([1, -1], abs=1e-3)
    assert trait.reading.strength == pytest.approx(float((high - low)[row].norm()), rel=1e-4)


def test_capitals_can_be_told_even_by_a_random_model(trait: TraitVector) -> None:
    assert trait.reading.auc.value > 0.9
    assert trait.reading.held_out is not None and trait.reading.held_out.auc.value > 0.9
    assert trait.reading.held_out.high == 10
    assert trait.reading.counts == {"high": 10, "low": 10}


def test_the_layer_is_a_middle_or_late_one_with_the_best_separation(
    model: ModelWrapper, trait: TraitVector
) -> None:
    layers = trait.reading.layers
    assert [each.layer for each in layers] == list(range(model.n_layers // 2, model.n_layers))
    best = max(layers, key=lambda each: each.separation)
    assert (trait.reading.layer, trait.reading.separation) == (best.layer, best.separation)


def test_left_out_replies_are_judged_without_their_situation() -> None:
    # One situation is turned round. Vectors that had seen it would be pulled towards it.
    torch.manual_seed(0)
    high, low = torch.randn(8, 1, 4, dtype=torch.float64), torch.randn(8, 1, 4, dtype=torch.float64)
    high[:, :, 0] += 10
    names = [str(number) for number in range(8)]
    high[0, 0, 0], low[0, 0, 0] = -10, 20
    scores = left_out_scores(high, low, names, names)
    gap = high[1:].mean(0) - low[1:].mean(0)
    by_hand = ((high[0] - (high[1:].mean(0) + low[1:].mean(0)) / 2) * gap).sum() / ((gap * gap).sum() / 2)
    assert scores.high[0, 0] == pytest.approx(float(by_hand))
    assert scores.high[0, 0] < 0 < scores.low[0, 0]


def test_sides_need_not_be_paired() -> None:
    torch.manual_seed(0)
    high, low = torch.randn(5, 2, 4).double() + 3, torch.randn(9, 2, 4).double()
    scores = left_out_scores(high, low, list("abcde"), list("fghijklmn"))
    assert scores.high.shape == (5, 2) and np.isfinite(scores.low).all()


def test_the_test_set_chooses_nothing(
    model: ModelWrapper, settings: Settings, trait: TraitVector, tmp_path: Path
) -> None:
    swapped = [{**each, "high": each["low"], "low": each["high"]} for each in situations("test")]
    path = write_lines(tmp_path / "loudness.jsonl", [HEAD, *situations("train"), *swapped])
    other = PersonaVectorExtractor(model, settings).extract(read_definition(path))
    assert other.reading.held_out is not None and other.reading.held_out.auc.value < 0.1
    assert "held-out" in str(other.reading.weakness) and trait.reading.weakness is None
    same = ("layer", "threshold", "strength", "separation")
    assert all(getattr(other.reading, key) == getattr(trait.reading, key) for key in same)


def test_opposed_system_prompts(model: ModelWrapper, settings: Settings, definition: TraitDefinition) -> None:
    trait = PersonaVectorExtractor(model, settings).extract(definition, "prompts")
    assert trait.reading.recipe == "prompts"
    pairs = trait.vector.metadata["pairs"]
    assert pairs["generated"] == 2 * 4
    assert 4 <= pairs["kept"] == trait.reading.counts["high"] <= 8
    assert trait.vector.metadata["expression"] > 0
    again = PersonaVectorExtractor(model, settings).extract(definition, "prompts")
    torch.testing.assert_close(again.direction, trait.direction)


def test_too_little_to_extract_from(model: ModelWrapper, settings: Settings, tmp_path: Path) -> None:
    extractor = PersonaVectorExtractor(model, settings)
    few = [HEAD, *situations("train", ("the sea", "a road"))]
    definition = read_definition(write_lines(tmp_path / "few.jsonl", few))
    with pytest.raises(DatasetError, match="at least 4 are needed"):
        extractor.extract(definition)
    path = write_definition(tmp_path / "unasked.jsonl", high_prompts=[], low_prompts=[])
    with pytest.raises(DatasetError, match="high_prompts"):
        extractor.extract(read_definition(path), "prompts")


def test_a_base_model_with_little_room(base_model: ModelWrapper, settings: Settings, tmp_path: Path) -> None:
    long = {"id": "long", "user": "x" * 400, "high": "A", "low": "a"}
    path = write_lines(tmp_path / "loudness.jsonl", [HEAD, *situations("train"), long])
    said: list[str] = []
    extractor = PersonaVectorExtractor(base_model, settings, log=said.append)
    trait = extractor.extract(read_definition(path))
    assert trait.reading.counts == {"high": 10, "low": 10} and trait.reading.held_out is None
    assert len(said) == 2 and "long (high) is left out" in said[0]
    none = write_lines(tmp_path / "none.jsonl", [HEAD, *[{**long, "id": str(each)} for each in range(5)]])
    with pytest.raises(GenerationError, match="only 0 of 5 high conversations"):
        extractor.extract(read_definition(none))


def test_it_can_be_cancelled(model: ModelWrapper, settings: Settings, definition: TraitDefinition) -> None:
    def stop() -> None:
        raise JobCancelled("cancelled")

    with pytest.raises(JobCancelled):
        PersonaVectorExtractor(model, settings, checkpoint=stop).extract(definition)


# Files ------------------------------------------------------------------------------------------------------


def test_a_file_holds_all_of_it(store: TraitStore, trait: TraitVector) -> None:
    again = store.get("loudness")
    assert again.reading == trait.reading
    assert (again.centre, again.half_gap) == pytest.approx((trait.centre, trait.half_gap), rel=1e-5)
    torch.testing.assert_close(again.direction, trait.direction)
    summary = json.loads((store.folder / "summary.json").read_text())
    assert summary["traits"]["loudness"]["layer"] == trait.reading.layer
    assert summary["model_fingerprint"] == store.fingerprint
    assert store.names() == ["loudness"] == [each.name for each in store.select()]


def test_a_file_without_a_probe_is_scored_along_the_difference(store: TraitStore, trait: TraitVector) -> None:
    store.save(trait.with_reading(probe=()))
    old = store.get("loudness")
    raw = old.vector.raw[RECIPE][old.vector.layers.index(old.reading.layer)]
    torch.testing.assert_close(old.direction, raw / raw.norm())
    scale = old.vector.scale
    torch.testing.assert_close(scale.vectors[old.reading.layer], old.direction / old.half_gap)


def test_a_trace_is_on_the_scale_of_scores(store: TraitStore, trait: TraitVector) -> None:
    scale = store.get("loudness").vector.scale
    torch.testing.assert_close(scale.vectors[trait.reading.layer], trait.direction / trait.half_gap)
    assert scale.ordinary == pytest.approx(trait.centre / trait.half_gap, rel=1e-5)


def test_a_probe_that_does_not_fit_is_named(store: TraitStore, trait: TraitVector) -> None:
    trait.with_reading(probe=(1.0, 2.0)).save(store.path_of("loudness"))
    with pytest.raises(VectorFileError, match="a probe of 2 numbers does not fit"):
        store.get("loudness")


def test_a_probe_leaves_out_whole_situations() -> None:
    """A reply that contradicts all others is not judged by a probe that has seen it, nor its twin."""
    numbers = np.random.default_rng(0)
    rows, sides = numbers.normal(size=(20, 4)), np.tile([1.0, -1.0], 10)
    rows[:, 0] += 4 * sides
    rows[0, 0], rows[1, 0] = -8.0, 8.0
    names = [str(place // 2) for place in range(20)]
    sample = Sample(rows, sides, np.ones(20, dtype=bool), names)
    scores = sample.left_out()
    assert scores[0] < -1.5 and scores[1] > 1.5
    assert scores[2:][sides[2:] > 0].mean() > 0.5 > -0.5 > scores[2:][sides[2:] < 0].mean()


def test_what_is_no_trait_of_this_model(store: TraitStore, settings: Settings, tmp_path: Path) -> None:
    other = ModelWrapper(make_model(seed=9, num_hidden_layers=4), make_tokenizer(), "other")
    with pytest.raises(VectorFileError, match="made on tiny and cannot be used with other"):
        TraitStore(store.folder, other.fingerprint, "other").get("loudness")
    with pytest.raises(VectorFileError, match='Did you mean "loudness"'):
        store.get("loudnes")
    with pytest.raises(VectorFileError, match="No traits have been extracted for new"):
        TraitStore(tmp_path / "new" / "traits").select()
    (store.folder / "bad.safetensors").write_bytes(b"no")
    store.write_summary()
    assert "cut off" in json.loads((store.folder / "summary.json").read_text())["traits"]["bad"]["error"]


# Steering and live traces -----------------------------------------------------------------------------------


@pytest.fixture
def engine(store: TraitStore, model: ModelWrapper, settings: Settings) -> SteeringEngine:
    manager = PersonaManager(store.folder.parent, model.fingerprint, model.name)
    return SteeringEngine(model, manager, settings)


def test_a_trait_is_loaded_listed_and_blended_like_a_persona(
    engine: SteeringEngine, trait: TraitVector
) -> None:
    manager = engine.personas
    assert (manager.list_available(), manager.list_traits()) == ([], ["trait:loudness"])
    with pytest.raises(PersonaNotFoundError, match='Did you mean "trait:loudness"'):
        manager.get("trait:loudnes")
    manager.load("trait:loudness")
    assert manager.list_loaded() == ["trait:loudness"]
    added = engine.interventions(Mix({"trait:loudness": 1}, 0.5, capping=False)).steering
    targets = trait.vector.metadata["target_layers"]
    assert sorted(added) == targets
    row = trait.vector.layers.index(targets[0])
    natural = trait.vector.raw[RECIPE][row] * NATURAL / (DEFAULT_STRENGTH * len(targets) ** 0.5)
    torch.testing.assert_close(added[targets[0]], 0.5 * natural, atol=1e-5, rtol=1e-4)
    assert manager.unload("trait:loudness") and manager.list_loaded() == []


def test_blends_may_name_traits() -> None:
    assert parse_blend("sage:0.5,trait:loudness:-0.3") == {"sage": 0.5, "trait:loudness": -0.3}
    assert parse_blend("trait:loudness") == {"trait:loudness": 1.0}


def test_steering_moves_the_score(engine: SteeringEngine, trait: TraitVector) -> None:
    engine.personas.load("trait:loudness")

    def live(strength: float) -> float:
        traits = LiveTraits()
        mix = Mix({"trait:loudness": 1}, strength, capping=False)
        for event in engine.stream(conversation("Hello"), mix=mix, sampling=Sampling(12, 0.0)):
            traits.feed(event)
        return traits.scores["loudness"]

    assert live(-1.0) < live(0.0) < live(1.0)


def test_live_scores_are_those_of_the_finished_text(
    engine: SteeringEngine, model: ModelWrapper, trait: TraitVector
) -> None:
    engine.personas.load("trait:loudness")
    messages = conversation("Tell me about the sea.")
    ids: list[int] = []
    traits = LiveTraits()
    for event in engine.stream(messages, mix=Mix(capping=False), sampling=Sampling(20, 0.0)):
        traits.feed(event)
        ids.append(event.token_id)
    # Cut off at its length, so that the last token is in no pass: read all tokens but that one.
    prompt = model.tokenizer(model.render(messages), add_special_tokens=False)["input_ids"]
    layer = trait.reading.layer
    with torch.no_grad():
        hidden = model.model(torch.tensor([prompt + ids[:-1]]), output_hidden_states=True).hidden_states
    mean = hidden[layer + 1][0, len(prompt) :].mean(0)
    assert traits.count == len(ids) - 1
    assert traits.scores["loudness"] == pytest.approx(trait.score(float(mean @ trait.direction)), abs=1e-3)


def test_breaches_show_once_and_minima_at_the_end(engine: SteeringEngine) -> None:
    engine.personas.load("trait:loudness")
    sampling = Sampling(20, 0.0)
    for rules, during, after in (
        (["loudness>-100"], 1, 0),
        (["loudness<100"], 0, 1),
        (["loudness>100"], 0, 0),
    ):
        policy = Policy.from_rules(rules)
        traits = LiveTraits(policy, user="Hello", turn=3)
        seen = [
            breach
            for event in engine.stream(conversation("Hello"), mix=Mix(capping=False), sampling=sampling)
            for breach in traits.feed(event)
        ]
        ended = traits.finish()
        assert (len(seen), len(ended)) == (during, after)
        assert all(breach.turn == 3 for breach in [*seen, *ended])
        assert traits.finish() == []
        assert len(traits.breaches()) == during + after
