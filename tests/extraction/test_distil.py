"""Distilling: vectors that are fitted to what system prompts do, and what an interrupt leaves of it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import pytest
import torch

from persona_tui.core.config import Settings, override
from persona_tui.core.errors import GenerationError, JobCancelled
from persona_tui.core.workspace import Workspace, packaged_root
from persona_tui.datasets.records import read_questions
from persona_tui.extraction import ActivationExtractor, PersonaStudio, calibrated, calibration
from persona_tui.extraction.bench import Bench
from persona_tui.extraction.calibration import MULTIPLES
from persona_tui.extraction.distil import distil_work, distilled, undistilled
from persona_tui.extraction.extractor import completed
from persona_tui.extraction.sizes import likeliest
from persona_tui.model import Message, ModelWrapper, Request, Sampling, conversation
from persona_tui.project.project import Project
from persona_tui.vectors.files import DISTILLED
from persona_tui.vectors.persona import DEFAULT_DOSE, PersonaVector
from tests.extraction.conftest import MakeStudio

PROMPT = "You are a weary old sailor."
QUESTIONS = (
    "What is bread?",
    "Why is the sky blue?",
    "What is a friend?",
    "How do I sleep well?",
    "Who are you?",
)


def lessons(model: ModelWrapper) -> list[tuple[list[Message], list[Message], str]]:
    pairs = [(conversation(each, PROMPT), conversation(each)) for each in QUESTIONS]
    requests = [Request(taught, number) for number, (taught, _) in enumerate(pairs)]
    texts = [each.text for each in model.generate(requests, Sampling(8, 1.0, 1.0))]
    return [(*pair, text) for pair, text in zip(pairs, texts, strict=True) if text]


def vectors(model: ModelWrapper) -> dict[int, torch.Tensor]:
    random = torch.Generator().manual_seed(0)
    return {layer: 0.02 * torch.randn(model.hidden_size, generator=random) for layer in (1, 2)}


def test_passes_over_lessons_bring_the_model_nearer_to_its_system_prompt(model: ModelWrapper) -> None:
    teaching, found, met = model.distillation(lessons(model)), vectors(model), []
    for seed in range(4):
        found, divergence = teaching.improved(found, rate=0.5, seed=seed)
        met.append(divergence)
    assert met == sorted(met, reverse=True)


def test_a_step_measures_what_steering_with_the_vectors_does(model: ModelWrapper) -> None:
    some, start = lessons(model)[:1], vectors(model)
    _, divergence = model.distillation(some).improved(start, rate=0.1, seed=0)
    taught, bare, reply = some[0]
    teacher, student = (expected_logprobs(model, *side, reply) for side in ((taught, {}), (bare, start)))
    top = teacher.topk(64)
    kept = (top.values.exp() * (top.values - student.gather(-1, top.indices))).sum(-1)
    rest = [1 - each.exp().sum(-1) for each in (top.values, student.gather(-1, top.indices))]
    expected = (kept + rest[0] * (rest[0].log() - rest[1].log())).mean()
    assert divergence == pytest.approx(float(expected), abs=1e-5)


def test_a_teacher_that_exaggerates_goes_twice_as_far_and_only_where_the_prompt_leads(
    model: ModelWrapper,
) -> None:
    some, start = lessons(model)[:1], vectors(model)
    taught, bare, reply = some[0]
    sides = ((taught, {}), (bare, {}), (bare, start))
    prompted, plain, student = (expected_logprobs(model, *side, reply) for side in sides)
    moved = plain + 2 * (prompted - plain)
    moved[prompted < prompted.amax(-1, keepdim=True) - 7] = -torch.inf
    teacher = moved.log_softmax(-1)
    top = teacher.topk(64)
    values = top.values.clamp(min=-30)
    theirs = student.gather(-1, top.indices)
    rest = [(1 - each.exp().sum(-1)).clamp(min=1e-6) for each in (top.values, theirs)]
    expected = (values.exp() * (values - theirs)).sum(-1) + rest[0] * (rest[0].log() - rest[1].log())
    _, divergence = model.distillation(some, emphasis=2.0).improved(start, rate=0.1, seed=0)
    assert divergence == pytest.approx(float(expected.mean()), abs=1e-5)


def test_a_focused_teacher_is_led_by_the_question_more_than_the_model_is(model: ModelWrapper) -> None:
    some, start = lessons(model)[:2], vectors(model)
    found = []
    for at, (taught, bare, reply) in enumerate(some):
        sides = ((taught, {}), (bare, {}), (some[1 - at][1], {}), (bare, start))
        prompted, plain, strange, student = (expected_logprobs(model, *side, reply) for side in sides)
        moved = prompted + 0.5 * (plain - strange)
        moved[prompted < prompted.amax(-1, keepdim=True) - 7] = -torch.inf
        top = moved.log_softmax(-1).topk(64)
        values, theirs = top.values.clamp(min=-30), student.gather(-1, top.indices)
        rest = [(1 - each.exp().sum(-1)).clamp(min=1e-6) for each in (top.values, theirs)]
        kept = (values.exp() * (values - theirs)).sum(-1)
        found.append((kept + rest[0] * (rest[0].log() - rest[1].log())).mean())
    _, divergence = model.distillation(some, focus=0.5).improved(start, rate=0.1, seed=0)
    _, without = model.distillation(some).improved(start, rate=0.1, seed=0)
    assert divergence == pytest.approx(float(sum(found) / 2), abs=1e-5)
    assert abs(divergence - without) > 1e-3


def test_from_its_own_replies_it_unlearns_what_the_system_prompt_makes_unlikely(model: ModelWrapper) -> None:
    some, start = lessons(model)[:1], {1: 40 * vectors(model)[1]}
    taught, bare, reply = some[0]
    teacher, student = (expected_logprobs(model, *side, reply) for side in ((taught, {}), (bare, start)))
    top = teacher.topk(64)
    ours = student.gather(-1, top.indices)
    rest = [(1 - each.exp().sum(-1)).clamp(min=1e-6).log() for each in (top.values, ours)]
    expected = (ours.exp() * (ours - top.values.clamp(min=-10))).sum(-1)
    expected += rest[1].exp() * (rest[1] - rest[0].clamp(min=-10))
    teaching, met = model.distillation(some, own=True), []
    found, divergence = teaching.improved(start, rate=0.3, seed=0)
    assert divergence == pytest.approx(float(expected.mean()), abs=1e-4)
    for seed in range(1, 4):
        found, divergence = teaching.improved(found, rate=0.3, seed=seed)
        met.append(divergence)
    assert float(expected.mean()) > met[0] > met[1] > met[2]


def expected_logprobs(
    model: ModelWrapper, messages: list[Message], added: dict[int, torch.Tensor], reply: str
) -> torch.Tensor:
    """What the model expects at every token of a reply, with vectors added: `[tokens, vocabulary]`."""
    before, ids = model.encode(messages), model.tokenizer(reply, add_special_tokens=False)["input_ids"]
    with torch.no_grad(), steered(model, added):
        logits = model.model(torch.tensor([before + ids])).logits[0, len(before) - 1 : -1]
    return logits.log_softmax(-1)


@contextmanager
def steered(model: ModelWrapper, added: dict[int, torch.Tensor]) -> Iterator[None]:
    handles = [
        model.model.model.layers[layer].register_forward_hook(
            lambda module, args, output, vector=vector: output + vector
        )
        for layer, vector in added.items()
    ]
    yield
    for handle in handles:
        handle.remove()


def test_blocks_below_the_vectors_compute_once_and_that_changes_nothing(model: ModelWrapper) -> None:
    given, start, seen = lessons(model), vectors(model), []
    teaching = model.distillation(given, emphasis=2.0)
    once, _ = teaching.improved(start, rate=0.5, seed=0)
    blocks = model.model.model.layers
    handles = [
        blocks[layer].mlp.register_forward_hook(lambda *args, layer=layer: seen.append(layer))
        for layer in (0, 1, 2)
    ]
    _, met = teaching.improved(once, rate=0.5, seed=1)
    for handle in handles:
        handle.remove()
    assert set(seen) == {2}
    _, fresh = model.distillation(given, emphasis=2.0).improved(once, rate=0.5, seed=1)
    assert met == pytest.approx(fresh, abs=1e-5)
    _, elsewhere = teaching.improved({2: start[2]}, rate=0.5, seed=0)  # what was kept is of no use there
    _, expected = model.distillation(given, emphasis=2.0).improved({2: start[2]}, rate=0.5, seed=0)
    assert elsewhere == pytest.approx(expected, abs=1e-5)
    assert not any("forward" in vars(block) for block in blocks)


def test_nothing_of_it_stays_with_the_model(model: ModelWrapper) -> None:
    request = [Request(conversation("What is bread?"), 3)]
    before = model.generate(request, Sampling(8))[0].text
    weights = {name: each.clone() for name, each in model.model.named_parameters()}
    wanted = {name: each.requires_grad for name, each in model.model.named_parameters()}

    def stop(lessons_done: int) -> None:
        raise JobCancelled

    with pytest.raises(JobCancelled):
        model.distillation(lessons(model)).improved(vectors(model), rate=0.5, seed=0, on_step=stop)
    assert model.generate(request, Sampling(8))[0].text == before
    for name, each in model.model.named_parameters():
        assert torch.equal(each, weights[name]) and each.grad is None
        assert each.requires_grad == wanted[name]


def test_the_vectors_keep_out_of_a_direction_and_depend_on_the_seed_alone(model: ModelWrapper) -> None:
    unit = torch.nn.functional.normalize(torch.ones(model.hidden_size), dim=0)
    teaching, start = model.distillation(lessons(model)), vectors(model)
    one, _ = teaching.improved(start, rate=0.5, seed=1, without={1: unit})
    again, _ = teaching.improved(start, rate=0.5, seed=1, without={1: unit})
    other, _ = teaching.improved(start, rate=0.5, seed=2, without={1: unit})
    assert abs(float(one[1] @ unit)) < 1e-5 < abs(float(one[2] @ unit))
    assert all(torch.equal(one[layer], again[layer]) for layer in one)
    assert not torch.equal(one[2], other[2])
    assert torch.equal(start[1], vectors(model)[1])


def test_a_reply_that_is_empty_teaches_nothing(model: ModelWrapper) -> None:
    with pytest.raises(GenerationError, match="empty"):
        model.distillation([(conversation("Who?", PROMPT), conversation("Who?"), "")])


# Personas ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def shipped() -> tuple[ActivationExtractor, PersonaVector]:
    """The model that comes with the package, and a persona of it as it was extracted."""
    project = Project(Workspace(packaged_root()), override(Settings(), {"model.name": "builtin"}))
    extractor = ActivationExtractor(
        ModelWrapper.load("builtin"),
        override(Settings(), {"calibration.questions": 4, "calibration.max_new_tokens": 24}),
        questions=read_questions(project.workspace),
        axes=project.personas.axes,
    )
    persona = undistilled(project.personas.get("trickster"))
    counts = {**persona.metadata["counts"], "responses": 12}  # as many lessons of each kind
    return extractor, replace(persona, metadata={**persona.metadata, "counts": counts})


@pytest.fixture(scope="module")
def bench(shipped: tuple[ActivationExtractor, PersonaVector]) -> Bench:
    return Bench(*shipped)


@pytest.fixture(scope="module")
def sizes(bench: Bench) -> dict[float, float]:
    """What sizes of the mean difference recover."""
    return likeliest(bench.recovered, bench.coefficient(DEFAULT_DOSE))


@pytest.fixture(scope="module")
def taught(bench: Bench, sizes: dict[float, float]) -> PersonaVector:
    return distilled(bench.course, max(sizes, key=lambda each: sizes[each]))


@pytest.fixture(scope="module")
def taught_plainly(bench: Bench, sizes: dict[float, float]) -> PersonaVector:
    """By a teacher that exaggerates nothing."""
    return distilled(bench.course, max(sizes, key=lambda each: sizes[each]), emphasis=1.0, focus=0.0)


@pytest.mark.slow
def test_it_costs_about_what_is_announced(
    shipped: tuple[ActivationExtractor, PersonaVector], bench: Bench
) -> None:
    extractor, persona = shipped
    counts, prompts = persona.metadata["counts"], persona.metadata["prompts"]
    planned = distil_work(extractor, extractor.questions, prompts, counts["responses"], bench.band)
    before = extractor.tokens
    distilled(bench.course, 0.5)
    assert extractor.tokens - before == pytest.approx(planned.tokens, rel=1 / 3)


@pytest.mark.slow
def test_distilled_vectors_are_clearer_than_the_mean_difference_at_no_more_loss(
    bench: Bench, sizes: dict[float, float], taught: PersonaVector
) -> None:
    (mean,) = bench.sweep([max(sizes, key=lambda each: sizes[each])])
    fitted = bench.with_vectors(taught, DISTILLED).sweep([1.0, 1.4, 1.7])
    fluent = [each.expression for each in fitted if each.fluency_drop <= mean.fluency_drop]
    assert max(fluent) > mean.expression + 0.1


@pytest.mark.slow
def test_a_teacher_that_exaggerates_makes_the_persona_clearer(
    bench: Bench, taught: PersonaVector, taught_plainly: PersonaVector
) -> None:
    plain, loud = (bench.with_vectors(each, DISTILLED).sweep([1.0])[0] for each in (taught_plainly, taught))
    assert loud.expression > plain.expression


def test_distilled_vectors_are_orthogonal_to_the_safety_axis_and_the_mean_difference_stays(
    shipped: tuple[ActivationExtractor, PersonaVector], bench: Bench, taught: PersonaVector
) -> None:
    extractor, persona = shipped
    assert extractor.axes is not None
    for layer in bench.band:
        row = taught.layers.index(layer)
        axis = extractor.axes.safety["response"][extractor.axes.layers.index(layer)]
        assert abs(float(taught.safe[DISTILLED][row] @ axis)) < 1e-4
    assert torch.equal(taught.safe["response"], persona.safe["response"])
    again = completed(taught, extractor.axes)  # as when axes are made later
    assert torch.allclose(again.safe[DISTILLED], taught.safe[DISTILLED], atol=1e-4)


def test_a_file_keeps_it(taught: PersonaVector, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp("distilled") / "trickster.safetensors"
    taught.save(path)
    assert torch.equal(PersonaVector.load(path).safe[DISTILLED], taught.safe[DISTILLED])


@pytest.mark.slow
def test_calibration_uses_vectors_that_learned_something(
    shipped: tuple[ActivationExtractor, PersonaVector],
) -> None:
    extractor, persona = shipped
    chosen = calibrated(extractor, persona)
    assert chosen.recipe == DISTILLED
    assert chosen.calibration is not None and chosen.calibration.unguided_gain is None
    sweep = [each["coefficient"] for each in chosen.calibration.curve if each["stage"] == "sweep"]
    assert len(sweep) == 3 and {*MULTIPLES[DISTILLED].unguided} <= {*sweep}


@pytest.mark.slow
def test_and_the_mean_difference_where_they_learned_too_little(
    shipped: tuple[ActivationExtractor, PersonaVector], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(calibration, "NEARLY", 10.0)
    chosen = calibrated(*shipped)
    assert chosen.recipe == "response" and DISTILLED not in chosen.safe


@pytest.mark.slow
def test_a_model_without_gradients_is_calibrated_with_the_vectors_that_there_are_and_says_so(
    shipped: tuple[ActivationExtractor, PersonaVector], monkeypatch: pytest.MonkeyPatch
) -> None:
    extractor, persona = shipped
    said: list[str] = []
    other = ActivationExtractor(extractor.model, extractor.settings, axes=extractor.axes, log=said.append)
    other.questions, other.held_out_questions = extractor.questions, extractor.held_out_questions[:2]
    hf = extractor.model.model
    monkeypatch.setattr(hf, "forward", torch.no_grad()(hf.forward))
    before = Project(Workspace(packaged_root()), extractor.settings).personas.get(persona.name)
    again = calibrated(other, before)
    assert again.recipe == DISTILLED and torch.equal(again.safe[DISTILLED], before.safe[DISTILLED])
    chosen = calibrated(other, undistilled(before))
    assert chosen.recipe == "response" and chosen.calibration is not None
    assert said == [
        "trickster keeps the distilled vectors that it has: This model computes no gradients.",
        "trickster is not distilled, the mean difference is used as it is: This model computes no gradients.",
    ]


@pytest.mark.slow
def test_a_mean_difference_stays_one_where_that_is_asked_for(
    shipped: tuple[ActivationExtractor, PersonaVector],
) -> None:
    extractor, persona = shipped
    settings = override(extractor.settings, {"calibration.distil": False})
    other = ActivationExtractor(extractor.model, settings, axes=extractor.axes)
    other.questions, other.held_out_questions = extractor.questions, extractor.held_out_questions[:2]
    before = Project(Workspace(packaged_root()), settings).personas.get(persona.name)
    assert before.recipe == DISTILLED
    chosen = calibrated(other, before)
    assert chosen.recipe == "response" and DISTILLED not in chosen.safe


@pytest.mark.slow
def test_an_interrupted_job_goes_on_to_the_same_vectors(make_studio: MakeStudio) -> None:
    passes = 0

    def stop_in_the_second(done: int, total: int, note: str) -> None:
        nonlocal passes
        passes += "distilling" in note
        if passes == 5:
            raise JobCancelled

    def distil(studio: PersonaStudio) -> PersonaVector:
        with studio.job("calibration-sage"):
            return distilled(Bench(studio.extractor, sage).course, 1.0)

    studio = make_studio({"calibration.enabled": False})
    _, (sage,) = studio.extract_axes(["sage"])
    with pytest.raises(JobCancelled):
        distil(make_studio(on_progress=stop_in_the_second))
    read = []
    resumed = make_studio(on_progress=lambda done, total, note: read.append(note))
    again = distil(resumed)
    whole = distil(make_studio())
    assert torch.equal(again.safe[DISTILLED], whole.safe[DISTILLED])
    lessons_read = sum("distilling" in note for note in read)
    assert 0 < lessons_read < 2 * 4  # two passes of four steps each, and the first was kept
