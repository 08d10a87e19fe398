"""Calibration: which sizes are tried, how they are measured, and what is chosen."""

from __future__ import annotations

import math
from dataclasses import astuple, replace

import pytest
import torch

from persona_tui.core.config import Settings, override
from persona_tui.core.errors import DatasetError, JobCancelled
from persona_tui.core.workspace import Workspace, packaged_root
from persona_tui.datasets.records import read_questions
from persona_tui.extraction import ActivationExtractor, PersonaStudio, calibrated, weakness
from persona_tui.extraction.bench import Bench, calibration_plan, question_work, repetition
from persona_tui.extraction.calibration import (
    MULTIPLES,
    bands,
    find_band,
    fit_contrast,
)
from persona_tui.extraction.sizes import BEYOND, Point, between, choose, fitted, likeliest, third
from persona_tui.model import Interventions, ModelWrapper, Request, Sampling, conversation
from persona_tui.project.project import Project
from persona_tui.traits.definition import SIDES, find_definition
from persona_tui.vectors.persona import (
    DEFAULT_DOSE,
    DEFAULT_STRENGTH,
    UNGUIDED_DOSE,
    Calibration,
    PersonaVector,
    default_gains,
    dose,
)

MARGIN = 0.3


def point(expression: float, drop: float = 0.1, size: float = 1.0, repeated: float = 0.0) -> Point:
    return Point(size, expression, drop, repeated)


def test_the_most_expressive_fluent_point_is_chosen() -> None:
    best = point(0.9, drop=0.25)
    assert choose([point(0.4), best, point(1.5, drop=0.9)], MARGIN) is best


def test_among_equals_the_quietest_is_chosen() -> None:
    quiet = point(0.99, size=1.0)
    assert choose([point(1.0, size=2.0), quiet, point(0.5, size=0.5)], MARGIN) is quiet


def test_louder_than_the_system_prompt_is_no_merit() -> None:
    quiet = point(1.0, size=1.0)
    assert choose([point(2.0, size=3.0), quiet], MARGIN) is quiet


def test_a_loop_is_not_fluent_however_probable_it_is() -> None:
    loop = point(1.0, drop=-2.0, repeated=0.6)
    assert choose([loop, point(0.3)], MARGIN) is not loop


def test_when_nothing_is_fluent_the_least_bad_is_chosen() -> None:
    least = point(0.9, drop=0.5)
    assert choose([point(1.0, drop=3.0), least, point(0.0, drop=0.4)], MARGIN) is least


def test_the_size_is_read_off_between_two_measured_ones() -> None:
    found = choose(between([point(0.2, 0.1, 1.0), point(0.8, 0.5, 4.0)]), MARGIN)
    assert found.coefficient == pytest.approx(2.0, rel=0.05)  # half-way, in equal ratios
    assert found.expression == pytest.approx(0.5, abs=0.03)


def test_a_line_through_all_sizes_tells_more_than_each() -> None:
    losses = (0.1, 0.4, 0.2)  # by chance, the middle one looks worse than the loudest
    found = fitted([point(0.5 + 0.1 * at, losses[at], 2.0**at) for at in range(3)])
    assert (found[0].coefficient, found[-1].coefficient) == pytest.approx((1.0, 4.0))
    assert [each.fluency_drop for each in found] == sorted(each.fluency_drop for each in found)
    assert choose(found, MARGIN).coefficient > 3.5
    assert found[-1].expression == pytest.approx(0.7)


@pytest.mark.parametrize("top", [0.02, 0.3, 0.8, 3.0, 10.0])
def test_the_search_finds_the_likeliest_size_in_few_steps(top: float) -> None:
    tried = likeliest(lambda sizes: [1 - math.log(size / top) ** 2 for size in sizes], start=1.0)
    best = max(tried, key=lambda size: tried[size])
    assert len(tried) <= 9
    assert abs(math.log(best / top)) < math.log(2) or best in (min(tried), max(tried))
    if 0.25 <= top <= 4:
        assert tried[best] > 0.95


def test_weakness_says_what_is_wrong() -> None:
    def calibration(expression: float, fluent: bool) -> Calibration:
        point = {"chosen": True, "fluent": fluent}
        return Calibration("response", (1,), 1.0, 0.3, expression, 0.8, [point])

    assert weakness(calibration(0.9, fluent=True)) is None
    assert "only 20%" in str(weakness(calibration(0.2, fluent=True)))
    assert "0.80 nats" in str(weakness(calibration(0.9, fluent=False)))


def test_repetition_is_the_share_of_repeated_phrases() -> None:
    assert repetition("") == repetition("one two") == 0
    assert repetition("all of these words are different from each other") == 0
    assert repetition("so it goes so it goes so it goes so it goes") > 0.6


def test_every_row_of_a_sweep_is_steered_by_its_own_point(
    extracted: PersonaStudio, sage: PersonaVector
) -> None:
    """What the sweep relies on: a row among others is what it would be alone."""
    model, layer = extracted.extractor.model, sage.layers[1]
    vector = sage.safe["response"][1]
    requests = [Request(conversation(text), seed=3) for text in ("Who are you?", "Tell me a story, please.")]
    sampling = Sampling(8, 0.7)
    steering = {layer: torch.stack([0 * vector, 3 * vector])}
    plain, steered = model.generate(requests, sampling, Interventions(steering))
    assert plain.token_ids == model.generate(requests[:1], sampling)[0].token_ids
    alone = model.generate(requests[1:], sampling, Interventions({layer: 3 * vector}))[0]
    assert steered.token_ids == alone.token_ids


def test_scoring_steers_every_position(extracted: PersonaStudio, sage: PersonaVector) -> None:
    """Against a hook of the test's own."""
    model, layer = extracted.extractor.model, sage.layers[1]
    vector = 8 * sage.safe["response"][1]
    pair = (conversation("Tell me a story, please."), "Once there was a sage.")
    scored, plain = model.score([pair], Interventions({layer: vector}))[0], model.score([pair])[0]
    block = model.model.model.layers[layer]
    handle = block.register_forward_hook(lambda module, given, output: output + vector)
    try:
        expected = model.score([pair])[0]
    finally:
        handle.remove()
    assert scored.logprob == pytest.approx(expected.logprob, abs=1e-5)
    assert abs(scored.logprob - plain.logprob) > 0.01


@pytest.fixture(scope="module")
def shipped() -> tuple[ActivationExtractor, PersonaVector]:
    """The model that comes with the package, a persona of it, and held-out questions."""
    project = Project(Workspace(packaged_root()), override(Settings(), {"model.name": "builtin"}))
    extractor = ActivationExtractor(
        ModelWrapper.load("builtin"),
        override(Settings(), {"calibration.questions": 4, "calibration.max_new_tokens": 24}),
        questions=read_questions(project.workspace),
        axes=project.personas.axes,
    )
    return extractor, project.personas.get("trickster")


@pytest.mark.slow
def test_steering_recovers_much_of_what_the_prompts_do(
    shipped: tuple[ActivationExtractor, PersonaVector],
) -> None:
    bench = Bench(*shipped)
    assert bench.effect > 0.3
    assert bench.recovered([0.0]) == pytest.approx([0.0], abs=1e-4)
    sizes = likeliest(bench.recovered, bench.coefficient(DEFAULT_DOSE))
    best = max(sizes, key=lambda size: sizes[size])
    assert sizes[best] > 0.4
    much, opposite = bench.recovered([4 * best, -best])
    assert much < sizes[best]
    assert opposite < 0


def test_sizes_that_are_compared_together_are_as_each_alone(
    shipped: tuple[ActivationExtractor, PersonaVector],
) -> None:
    bench = Bench(*shipped)
    some, much = bench.coefficient(1.0), bench.coefficient(4.0)
    alone = [bench.recovered([each])[0] for each in (some, much)]
    assert bench.recovered([some, much]) == pytest.approx(alone, abs=1e-5)
    assert abs(alone[0] - alone[1]) > 0.01

    together = bench.sweep([some, much], uncapped=[much])  # and what all are compared with
    apart = [*Bench(*shipped).sweep([some]), *bench.sweep([much]), *bench.sweep([much], capped=False)]
    assert bench.floor and together[1] != together[2]
    for one, other in zip(together, apart, strict=True):
        assert astuple(one) == pytest.approx(astuple(other), abs=1e-4)


@pytest.mark.slow
def test_louder_is_more_expressive_and_less_fluent(
    shipped: tuple[ActivationExtractor, PersonaVector],
) -> None:
    bench = Bench(*shipped)
    nothing, some, much = bench.sweep([0.0, bench.coefficient(2.0), bench.coefficient(5.0)], capped=False)
    assert nothing.expression == pytest.approx(0.0, abs=1e-4)
    assert nothing.expression < some.expression < much.expression
    assert much.fluency_drop > some.fluency_drop


def test_a_calibration_records_what_was_tried_and_marks_one(
    extracted: PersonaStudio, sage: PersonaVector
) -> None:
    calibration = sage.calibration
    assert calibration is not None
    assert calibration.layers == extracted.extractor.band
    chosen = [point for point in calibration.curve if point["chosen"]]
    assert len(chosen) == 1 and chosen[0]["stage"] == "fitted"
    assert calibration.gain * DEFAULT_STRENGTH == pytest.approx(chosen[0]["coefficient"], abs=1e-3)
    measured = [point["coefficient"] for point in calibration.curve if point["stage"] == "sweep"]
    assert min(measured) <= chosen[0]["coefficient"] <= max(measured)
    assert calibration.recovered == max(share for _, share in calibration.recovery)
    assert calibration.questions == 2


def test_it_is_measured_with_the_floor_that_is_in_force(
    extracted: PersonaStudio, sage: PersonaVector
) -> None:
    assert sage.calibration is not None and extracted.manager.axes is not None
    assert sage.calibration.floor == extracted.manager.axes.default_capping_axis
    off = override(extracted.extractor.settings, {"steering.capping": False})
    extractor = ActivationExtractor(extracted.extractor.model, off, axes=extracted.manager.axes)
    extractor.questions = extracted.extractor.questions
    extractor.held_out_questions = extracted.extractor.held_out_questions
    free = calibrated(extractor, sage).calibration
    assert free.floor is None and free.floor_leaves is None
    assert free.recovered == pytest.approx(sage.calibration.recovered, abs=1e-3)


def test_with_the_guide_a_mean_difference_gets_a_louder_gain_and_a_quieter_one_for_without(
    extracted: PersonaStudio, sage: PersonaVector
) -> None:
    found = []
    for guide in (0.0, 0.02):
        changes = {"steering.plausibility": guide, "calibration.distil": False}
        settings = override(extracted.extractor.settings, changes)
        extractor = ActivationExtractor(extracted.extractor.model, settings, axes=extracted.manager.axes)
        extractor.questions = extracted.extractor.questions
        extractor.held_out_questions = extracted.extractor.held_out_questions
        calibration = calibrated(extractor, sage.with_calibration(None)).calibration
        assert calibration is not None
        found.append(calibration)
    free, guided = found
    assert (free.plausibility, free.unguided_gain, guided.plausibility) == (0.0, None, 0.02)
    assert guided.unguided_gain is not None and guided.unguided_gain < guided.gain
    size = guided.unguided_gain * DEFAULT_STRENGTH / MULTIPLES["response"].without
    assert any(size == pytest.approx(each, rel=1e-3) for each, _ in guided.recovery)
    for calibration, multiples in zip(
        found, (MULTIPLES["response"].unguided, MULTIPLES["response"].guided), strict=True
    ):
        sizes = [each["coefficient"] for each in calibration.curve if each["stage"] == "sweep"]
        assert all(any(at == pytest.approx(size * each, rel=1e-3) for at in sizes) for each in multiples)


def test_the_third_size_goes_to_where_the_first_two_are_not_enough() -> None:
    quiet, clear = point(0.5, size=1.0), point(0.95, size=2.0)
    assert third(quiet, point(0.7, size=2.0), MARGIN) == pytest.approx(2 * BEYOND)
    assert third(replace(quiet, expression=0.9), clear, MARGIN) == 1 / BEYOND
    assert (
        third(quiet, clear, MARGIN) == third(quiet, replace(clear, fluency_drop=1.0), MARGIN) == math.sqrt(2)
    )
    assert third(replace(quiet, repetition=0.5), replace(clear, repetition=0.5), MARGIN) == 1 / BEYOND


@pytest.mark.slow
def test_a_twin_counts_as_tokens_that_pass(shipped: tuple[ActivationExtractor, PersonaVector]) -> None:
    bench, extractor = Bench(*shipped), shipped[0]
    bench.sweep([0.0], capped=False)  # also what all are compared with
    passed = []
    for plausibility in (0.0, 1e-9):  # allows whatever is likely at all: the words are nearly the same
        before = extractor.tokens
        bench.sweep([0.0], plausibility, capped=False)
        passed.append(extractor.tokens - before)
    asked = sum(extractor.model.count_tokens(trial.bare) for trial in bench.trials)
    assert passed[1] - passed[0] > asked


@pytest.mark.parametrize(("guided", "usual"), [(True, DEFAULT_DOSE), (False, UNGUIDED_DOSE)])
def test_an_uncalibrated_persona_has_the_usual_dose(
    extracted: PersonaStudio, sage: PersonaVector, guided: bool, usual: float
) -> None:
    plain, band = sage.with_calibration(None), extracted.extractor.band
    assert plain.steering_layers == band
    added = sum(
        DEFAULT_STRENGTH
        * float(vector.norm())
        / float((plain.mean["response"] - plain.raw["response"])[row].norm())
        for layer, vector in plain.direction(guided=guided).items()
        for row in [plain.layers.index(layer)]
    )
    assert added == pytest.approx(usual, rel=1e-4)
    gains = default_gains(plain, band)
    assert gains["gain"] * DEFAULT_STRENGTH * dose(plain, band, "response") == pytest.approx(DEFAULT_DOSE)


def test_a_small_extraction_gets_a_small_calibration(extracted: PersonaStudio, sage: PersonaVector) -> None:
    extractor = ActivationExtractor(
        extracted.extractor.model, override(extracted.extractor.settings, {"calibration.questions": 50})
    )
    extractor.held_out_questions = extracted.extractor.held_out_questions * 20
    extractor.questions = extracted.extractor.questions
    prompts = sage.metadata["prompts"]
    each = question_work(extractor, prompts).tokens
    least, work = calibration_plan(extractor, prompts, {"passed": 1, "responses": 10})
    before = work.tokens - least * each
    assert least == 6 and before > each / 2  # lessons, and the comparison of sizes
    for passed, expected in ((2 * (before + 10 * each), 10), (2000 * before, 40)):
        count, work = calibration_plan(extractor, prompts, {"passed": passed, "responses": 10})
        assert count == expected and work.tokens == before + count * each <= passed / 2
    assert calibration_plan(extractor, prompts, {})[0] == 40


def test_the_band_is_kept_unless_another_recovers_more(extracted: PersonaStudio, sage: PersonaVector) -> None:
    best, table = find_band(extracted.extractor, [sage])
    assert list(table) == bands(extracted.extractor) and best in table
    assert table[best] >= table[extracted.extractor.band]
    assert best == extracted.extractor.band or table[best] == max(table.values())


def test_what_has_no_prompts_gets_the_loudest_size_that_is_fluent(
    extracted: PersonaStudio, sage: PersonaVector
) -> None:
    bare = replace(sage, metadata={}, calibration=None)
    fitted = fit_contrast(extracted.extractor, bare)
    assert fitted.steering_layers == extracted.extractor.band
    assert fitted.metadata["gain"] > 0 and fitted.metadata["loudness"]["gained"] is None
    sides = [
        [[*conversation("Who are you?"), {"role": "assistant", "content": text}]] for text in ("Yes!", "No.")
    ]
    contrasted = fit_contrast(extracted.extractor, bare, *sides)
    assert isinstance(contrasted.metadata["loudness"]["gained"], float)


def test_a_contrast_that_is_loud_at_its_likeliest_is_turned_down_until_it_is_fluent(
    shipped: tuple[ActivationExtractor, PersonaVector],
) -> None:
    """Replies written by others are likeliest far beyond what is fluent on a model that has read little."""
    extractor, _ = shipped
    project = Project(Workspace(packaged_root()), override(Settings(), {"model.name": "builtin"}))
    name = "empathetic_responsiveness"
    trait, definition = project.personas.get(f"trait:{name}"), find_definition(project.workspace, name)
    high, low = ([said for _, said in definition.conversations("train", side)] for side in SIDES)
    bench = Bench(extractor, trait, prompted=False)
    found = fit_contrast(extractor, trait, high, low)
    loudness = found.metadata["loudness"]
    assert loudness["fluent"] and loudness["fluency_drop"] <= extractor.settings.calibration.fluency_margin
    assert loudness["gained"] > 0
    (louder,) = bench.sweep([4 * found.metadata["gain"] * DEFAULT_STRENGTH])
    assert not louder.fluent(extractor.settings.calibration.fluency_margin)


def test_where_no_size_makes_its_replies_likelier_the_usual_dose_counts(
    shipped: tuple[ActivationExtractor, PersonaVector],
) -> None:
    """Where both sides are one, no size is better than another; a gain of next to nothing is no answer."""
    extractor, _ = shipped
    project = Project(Workspace(packaged_root()), override(Settings(), {"model.name": "builtin"}))
    name = "empathetic_responsiveness"
    trait, definition = project.personas.get(f"trait:{name}"), find_definition(project.workspace, name)
    high = [said for _, said in definition.conversations("train", "high")][:2]
    found, bare = fit_contrast(extractor, trait, high, high), fit_contrast(extractor, trait)
    assert found.metadata["loudness"]["gained"] == 0.0
    assert found.metadata["gain"] == bare.metadata["gain"] > 1.0


def test_the_chosen_point_is_fluent_or_the_persona_is_marked_weak(sage: PersonaVector) -> None:
    assert sage.calibration is not None
    chosen = next(point for point in sage.calibration.curve if point["chosen"])
    if any(point["fluent"] for point in sage.calibration.curve if point["stage"] == "sweep"):
        assert chosen["fluent"]
    assert sage.metadata["weak"] == (weakness(sage.calibration) is not None)


@pytest.mark.parametrize("batch_size", [7, 32])
def test_a_calibration_can_be_repeated(
    extracted: PersonaStudio, sage: PersonaVector, batch_size: int
) -> None:
    own = override(extracted.extractor.settings, {"extraction.batch_size": batch_size})
    extractor = ActivationExtractor(extracted.extractor.model, own, axes=extracted.manager.axes)
    extractor.held_out_questions = extracted.extractor.held_out_questions
    again = calibrated(extractor, sage).calibration
    assert sage.calibration is not None
    assert (again.recipe, again.layers) == (sage.calibration.recipe, sage.calibration.layers)
    assert again.gain == pytest.approx(sage.calibration.gain)
    assert again.expression == pytest.approx(sage.calibration.expression, abs=1e-3)


def test_a_persona_without_its_system_prompts_cannot_be_calibrated(
    extracted: PersonaStudio, sage: PersonaVector
) -> None:
    with pytest.raises(DatasetError, match="no system prompts"):
        calibrated(extracted.extractor, replace(sage, metadata={}))


def test_calibrating_can_be_cancelled(extracted: PersonaStudio, sage: PersonaVector) -> None:
    calls = 0

    def stop_soon() -> None:
        nonlocal calls
        calls += 1
        if calls > 3:
            raise JobCancelled("cancelled")

    extractor = ActivationExtractor(
        extracted.extractor.model, extracted.extractor.settings, checkpoint=stop_soon
    )
    extractor.held_out_questions = extracted.extractor.held_out_questions
    with pytest.raises(JobCancelled):
        calibrated(extractor, sage)
