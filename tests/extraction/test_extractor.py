"""Activations: means over responses, independent of how they were batched."""

from __future__ import annotations

import pytest
import torch

from persona_tui.core.config import Settings, override
from persona_tui.core.errors import DatasetError, GenerationError, JobCancelled
from persona_tui.datasets.schema import Question
from persona_tui.extraction import ActivationExtractor, ActivationSums, PersonaStudio
from persona_tui.extraction.extractor import completed
from persona_tui.model import Activations, ModelWrapper, Request, conversation

from .conftest import MakeStudio

PROMPTS = [
    {"system": None, "user": "Who are you?"},
    {"system": "You are a wise old sage.", "user": "What matters to you, and why does it matter so much?"},
    {"system": None, "user": "Tell me a story."},
    {"system": "Joke.", "user": "Hello!"},
    {"system": "You are a wise old sage.", "user": "Tell me a story."},
]


def requests_of(count: int = 7) -> list[Request]:
    return [Request(conversation("Tell me more. " * (n % 3 + 1), None), seed=n) for n in range(count)]


def test_a_batch_is_the_mean_of_its_single_responses(model: ModelWrapper, settings: Settings) -> None:
    extractor = ActivationExtractor(model, settings)
    requests = requests_of()
    alone = [extractor.run([request]) for request in requests]
    together = extractor.run(requests)
    for recipe in ("response", "prompt_last"):
        expected = torch.stack([sums.mean(recipe) for sums in alone]).mean(0)
        torch.testing.assert_close(together.mean(recipe), expected, atol=1e-4, rtol=1e-4)
    assert together.count == len(requests)
    assert together.tokens == sum(sums.tokens for sums in alone)


@pytest.mark.parametrize("batch_size", [1, 3, 32])
def test_the_batch_size_changes_nothing(model: ModelWrapper, settings: Settings, batch_size: int) -> None:
    reference = ActivationExtractor(model, settings).extract_batch(PROMPTS)
    own = override(settings, {"extraction.batch_size": batch_size})
    for layer, vector in ActivationExtractor(model, own).extract_batch(PROMPTS).items():
        torch.testing.assert_close(vector, reference[layer], atol=1e-4, rtol=1e-4)


def test_the_order_of_requests_changes_nothing(model: ModelWrapper, settings: Settings) -> None:
    extractor = ActivationExtractor(model, settings)
    forwards, backwards = extractor.run(requests_of()), extractor.run(requests_of()[::-1])
    torch.testing.assert_close(forwards.mean("response"), backwards.mean("response"), atol=1e-4, rtol=1e-4)


def test_a_single_prompt_gives_a_vector_for_every_target_layer(
    model: ModelWrapper, settings: Settings
) -> None:
    extractor = ActivationExtractor(model, settings)
    vectors = extractor.extract_single("You are a wise old sage.", "Who are you?")
    assert tuple(vectors) == extractor.target_layers
    assert all(vector.shape == (model.hidden_size,) for vector in vectors.values())


def test_another_seed_gives_other_responses(model: ModelWrapper, settings: Settings) -> None:
    other = override(settings, {"extraction.seed": 5})
    first = ActivationExtractor(model, settings).extract_batch(PROMPTS)
    second = ActivationExtractor(model, other).extract_batch(PROMPTS)
    assert any(not torch.allclose(first[layer], second[layer], atol=1e-3) for layer in first)


def test_a_contrast_is_the_unit_vector_from_negative_to_positive(
    model: ModelWrapper, settings: Settings
) -> None:
    extractor = ActivationExtractor(model, settings)
    contrast = extractor.extract_contrastive(PROMPTS[:2], PROMPTS[2:])
    positive, negative = extractor.extract_batch(PROMPTS[:2]), extractor.extract_batch(PROMPTS[2:])
    for layer, direction in contrast.items():
        assert direction.norm().item() == pytest.approx(1, abs=1e-5)
        difference = positive[layer] - negative[layer]
        assert torch.dot(direction, difference).item() == pytest.approx(difference.norm().item(), rel=1e-4)


def test_kept_responses_are_spread_over_the_requests(model: ModelWrapper, settings: Settings) -> None:
    extractor = ActivationExtractor(model, settings)
    assert sorted(extractor.run(requests_of(9), keep=3).kept) == [0, 3, 6]
    everything = extractor.run(requests_of(4), keep=100).kept
    assert torch.stack(list(everything.values())).shape == (4, len(extractor.layers), model.hidden_size)


def test_empty_responses_count_for_nothing() -> None:
    sums = ActivationSums((1,))
    silence = Activations((1,), torch.zeros(1, 4), torch.ones(1, 4), n_tokens=0)
    sums.add(silence)
    with pytest.raises(GenerationError, match="only empty responses"):
        sums.mean("response")
    sums.add(Activations((1,), torch.full((1, 4), 2.0), torch.ones(1, 4), n_tokens=3))
    assert sums.count == 1 and sums.mean("response").tolist() == [[2.0] * 4]


def test_sums_are_exact_over_many_responses() -> None:
    sums = ActivationSums((1,))
    value = torch.full((1, 2), 1000.001)
    for _ in range(20_000):
        sums.add(Activations((1,), value, value, n_tokens=1))
    torch.testing.assert_close(sums.mean("response"), value, atol=1e-6, rtol=1e-7)


def test_progress_counts_all_of_the_work(model: ModelWrapper, settings: Settings) -> None:
    seen: list[tuple[int, int, str]] = []
    own = override(settings, {"extraction.batch_size": 4})
    extractor = ActivationExtractor(model, own, on_progress=lambda *values: seen.append(values))
    first, second = requests_of(7), requests_of(4)
    extractor.expect(extractor.work(first) + extractor.work(second))
    extractor.run(first, note="first")
    extractor.run(second, note="second")
    assert [note for _, _, note in seen] == ["first"] * 3 + ["second"] * 2
    assert seen[0][0] == 0
    assert [done for done, _, _ in seen] == sorted(done for done, _, _ in seen)
    total = (extractor.work(first) + extractor.work(second)).tokens
    assert {total for _, total, _ in seen} == {total} and seen[-1][0] == total


def test_the_tokens_that_pass_through_the_model_are_counted(model: ModelWrapper, settings: Settings) -> None:
    extractor = ActivationExtractor(model, settings)
    requests = requests_of(3)
    read = sum(model.count_tokens(each.messages) for each in requests)
    sums = extractor.run(requests)
    assert extractor.tokens == read + sums.tokens
    extractor.scores([(requests[0].messages, "a reply")])
    assert extractor.tokens > read + sums.tokens + model.count_tokens(requests[0].messages)


@pytest.mark.parametrize("where", ["checkpoint", "on_step"])
def test_raising_at_a_checkpoint_or_a_token_ends_the_work(
    model: ModelWrapper, settings: Settings, where: str
) -> None:
    def stop() -> None:
        raise JobCancelled("cancelled")

    extractor = ActivationExtractor(model, settings, **{where: stop})
    with pytest.raises(JobCancelled):
        extractor.extract_batch(PROMPTS)
    assert not any(block._forward_hooks for block in model.model.modules())


def test_a_persona_is_its_difference_from_the_baseline(extracted: PersonaStudio) -> None:
    axes, persona = extracted.manager.axes, extracted.manager.get("sage")
    assert axes is not None
    for recipe in ("response", "prompt_last"):
        torch.testing.assert_close(persona.raw[recipe], persona.mean[recipe] - axes.baseline[recipe])
        cosine = torch.cosine_similarity(persona.safe[recipe], axes.safety[recipe], dim=-1)
        assert cosine.abs().max() < 1e-4
    assert persona.metadata["counts"]["prompts"] == 5
    assert len(persona.metadata["prompts"]) == 5


def test_a_persona_is_found_again(extracted: PersonaStudio) -> None:
    extractor = extracted.extractor
    prompts = [{"system_prompt": text} for text in extracted.manager.get("sage").metadata["prompts"]]
    again = extractor.extract_persona("sage", prompts)
    for recipe, raw in extracted.manager.get("sage").raw.items():
        assert torch.cosine_similarity(again.raw[recipe], raw, dim=-1).min() > 0.999


def test_without_axes_a_persona_is_made_from_the_baseline_alone(
    model: ModelWrapper, settings: Settings, questions: list[Question], extracted: PersonaStudio
) -> None:
    extractor = ActivationExtractor(model, settings, questions=questions)
    prompts = [{"system_prompt": text} for text in extracted.manager.get("sage").metadata["prompts"]]
    persona = extractor.extract_persona("sage", prompts)
    assert persona.metadata["orthogonalised"] is False
    for recipe, raw in extracted.manager.get("sage").raw.items():
        torch.testing.assert_close(persona.raw[recipe], raw, atol=1e-3, rtol=1e-3)
        assert torch.equal(persona.safe[recipe], persona.raw[recipe])
    done = completed(persona, extracted.manager.axes)
    assert "orthogonalised" not in done.metadata
    assert extracted.manager.axes is not None
    axis = extracted.manager.axes.safety["response"]
    assert torch.cosine_similarity(done.safe["response"], axis, dim=-1).abs().max() < 1e-4


def test_a_persona_needs_questions_and_prompts(
    model: ModelWrapper, settings: Settings, questions: list[Question], extracted: PersonaStudio
) -> None:
    prompt = [{"system_prompt": "You are a wise old sage."}]
    axes = extracted.manager.axes
    with pytest.raises(DatasetError, match="no extraction questions"):
        ActivationExtractor(model, settings, axes=axes).extract_persona("sage", prompt)
    with pytest.raises(DatasetError, match="at least one system prompt"):
        ActivationExtractor(model, settings, questions=questions, axes=axes).extract_persona("sage", [])


def test_the_baseline_has_the_system_prompt_that_was_asked_for(make_studio: MakeStudio) -> None:
    def asked(baseline: str) -> list[list[dict[str, str]]]:
        extractor = make_studio({"extraction.baseline": baseline}).extractor
        return [request.messages for request in extractor.baseline_requests()]

    plain, none, own = asked("default"), asked("none"), asked("Be brief.")
    assert {len(messages) for messages in plain} == {1}, "the template may insert its own"
    assert [messages[1:] for messages in none] == plain == [messages[1:] for messages in own]
    assert {messages[0]["content"] for messages in none} == {""}
    assert {messages[0]["content"] for messages in own} == {"Be brief."}


def test_another_baseline_is_made_again_and_recorded(make_studio: MakeStudio) -> None:
    plain = make_studio({"calibration.enabled": False}).create_from_archetype("plain", "sage")
    brief = make_studio({"calibration.enabled": False, "extraction.baseline": "Be brief."})
    assert not brief.extractor.has_baseline
    other = brief.create_from_archetype("brief", "sage")
    assert plain.metadata["extraction"]["baseline"] == "default"
    assert other.metadata["extraction"]["baseline"] == "Be brief."
    assert torch.equal(plain.mean["response"], other.mean["response"])
    assert not torch.allclose(plain.raw["response"], other.raw["response"])


def test_axes_with_another_baseline_do_not_serve(extracted: PersonaStudio, make_studio: MakeStudio) -> None:
    axes = extracted.manager.axes
    assert make_studio(axes=axes).extractor.axes_serve
    other = make_studio({"extraction.baseline": "none"}, axes=axes)
    assert not other.extractor.axes_serve and "baseline" in other.persona_work(["Be wise."])
    assert "baseline" not in make_studio(axes=axes).persona_work(["Be wise."])
