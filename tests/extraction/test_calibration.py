"""Calibration: what is tried, how it is measured, and what is chosen."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from persona_tui.core.config import override
from persona_tui.core.errors import DatasetError, JobCancelled
from persona_tui.extraction import ActivationExtractor, PersonaStudio, calibrate, weakness
from persona_tui.extraction.calibration import (
    DEFAULT_STRENGTH,
    Measured,
    Point,
    candidate_places,
    choose,
    edge_points,
    repetition,
)
from persona_tui.model import Interventions, Request, Sampling, conversation
from persona_tui.vectors.persona import Calibration, PersonaVector

MARGIN = 0.5


def measured(expression: float, drop: float = 0.1, loudness: float = 1.0, repeated: float = 0.0) -> Measured:
    return Measured(Point("response", (1,), 1.0), expression, drop, repeated, loudness, questions=4)


def test_the_most_expressive_fluent_point_is_chosen() -> None:
    best = measured(0.9, drop=0.4)
    assert choose([measured(0.4), best, measured(1.5, drop=0.9)], MARGIN) is best


def test_among_equals_the_quietest_is_chosen() -> None:
    quiet = measured(0.97, loudness=1.0)
    assert choose([measured(1.0, loudness=2.0), quiet, measured(0.5, loudness=0.5)], MARGIN) is quiet


def test_louder_than_the_system_prompt_is_no_merit() -> None:
    quiet = measured(1.0, loudness=1.0)
    assert choose([measured(2.0, loudness=3.0), quiet], MARGIN) is quiet


def test_a_loop_is_not_fluent_however_probable_it_is() -> None:
    loop = measured(1.0, drop=-2.0, repeated=0.6)
    assert choose([loop, measured(0.3)], MARGIN) is not loop


def test_when_nothing_is_fluent_the_least_bad_is_chosen() -> None:
    least = measured(0.9, drop=0.7)
    assert choose([measured(1.0, drop=3.0), least, measured(0.0, drop=0.6)], MARGIN) is least


def sweep(layer: int, *points: tuple[float, float, float]) -> list[Measured]:
    """A place's points: coefficient, expression, fluency drop."""
    return [
        Measured(Point("response", (layer,), coefficient), expression, drop, 0.0, coefficient, questions=4)
        for coefficient, expression, drop in points
    ]


def test_the_last_points_lie_where_a_smoothed_sweep_begins_to_cost_too_much() -> None:
    # One lucky reply makes a louder point seem cheaper; without smoothing the edge would lie before 2.
    bumpy = sweep(1, (1, 0.2, 0.1), (2, 0.4, 0.5), (3, 0.6, 0.3), (4, 0.9, 0.5), (5, 1.0, 1.5))
    assert {point.layers for point in edge_points(bumpy, MARGIN)} == {(1,)}
    middle = sorted(point.coefficient for point in edge_points(bumpy, MARGIN))[1:3]
    assert 3 < middle[0] <= middle[1] < 4


def test_the_last_points_are_at_the_most_expressive_places_that_have_an_edge() -> None:
    weak = sweep(1, (1, 0.1, 0.1), (2, 0.2, 1.0))
    clear = sweep(2, (1, 0.5, 0.1), (2, 0.9, 1.0))
    middling = sweep(3, (1, 0.3, 0.1), (2, 0.6, 1.0))
    harmless = sweep(4, (1, 0.1, 0.0), (2, 0.2, 0.1))
    broken = sweep(5, (1, 1.0, 2.0), (2, 1.0, 3.0))
    points = edge_points([*weak, *clear, *middling, *harmless, *broken], MARGIN)
    assert list(dict.fromkeys(point.layers for point in points)) == [(2,), (3,)]
    assert edge_points([*harmless, *broken], MARGIN) == []


def test_weakness_says_what_is_wrong() -> None:
    def calibration(expression: float, fluent: bool) -> Calibration:
        point = {"chosen": True, "fluent": fluent}
        return Calibration("response", (1,), 1.0, 0.3, expression, 0.8, [point])

    assert weakness(calibration(0.9, fluent=True)) is None
    assert "only 20%" in str(weakness(calibration(0.2, fluent=True)))
    assert "0.80 nats" in str(weakness(calibration(0.9, fluent=False)))


def test_places_are_single_layers_and_bands_of_the_middle() -> None:
    assert candidate_places(range(2, 7), (4, 5), 8) == [
        *((2,), (3,), (4,), (5,)),
        *((2, 3), (2, 3, 4), (2, 3, 4, 5), (4, 5)),
    ]
    places = candidate_places(range(7, 27), range(14, 22), 28)
    singles = [place for place in places if len(place) == 1]
    assert 4 <= len(singles) <= 6 and all(7 <= layer < 21 for (layer,) in singles)
    assert tuple(range(14, 22)) in places


def test_places_exist_in_the_smallest_models() -> None:
    assert candidate_places((0,), (0,), 1) == [(0,)]
    assert candidate_places((0, 1), (1,), 2) == [(0,), (1,), (0, 1)]


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


def test_a_calibration_records_every_point_and_marks_one(sage: PersonaVector) -> None:
    calibration = sage.calibration
    assert calibration is not None
    chosen = [point for point in calibration.curve if point["chosen"]]
    assert len(chosen) == 1
    assert chosen[0]["recipe"] == calibration.recipe
    assert tuple(chosen[0]["layers"]) == calibration.layers
    assert calibration.gain * DEFAULT_STRENGTH == pytest.approx(chosen[0]["coefficient"], abs=1e-3)
    assert {point["stage"] for point in calibration.curve} == {"coarse", "fine"}
    assert {point["recipe"] for point in calibration.curve} == {"response", "prompt_last"}


def test_the_chosen_point_is_fluent_or_the_persona_is_marked_weak(sage: PersonaVector) -> None:
    assert sage.calibration is not None
    chosen = next(point for point in sage.calibration.curve if point["chosen"])
    any_fluent = any(point["fluent"] for point in sage.calibration.curve if point["stage"] == "fine")
    assert chosen["fluent"] == any_fluent
    assert sage.metadata["weak"] == (weakness(sage.calibration) is not None)


@pytest.mark.parametrize("batch_size", [7, 32])
def test_a_calibration_can_be_repeated(
    extracted: PersonaStudio, sage: PersonaVector, batch_size: int
) -> None:
    own = override(extracted.extractor.settings, {"extraction.batch_size": batch_size})
    extractor = ActivationExtractor(extracted.extractor.model, own)
    extractor.questions = extracted.extractor.questions
    extractor.held_out_questions = extracted.extractor.held_out_questions
    again = calibrate(extractor, sage)
    assert sage.calibration is not None
    assert (again.recipe, again.layers) == (sage.calibration.recipe, sage.calibration.layers)
    assert again.gain == pytest.approx(sage.calibration.gain)
    assert again.expression == pytest.approx(sage.calibration.expression, abs=1e-3)


def test_a_persona_without_its_system_prompts_cannot_be_calibrated(
    extracted: PersonaStudio, sage: PersonaVector
) -> None:
    with pytest.raises(DatasetError, match="no system prompts"):
        calibrate(extracted.extractor, replace(sage, metadata={}))


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
        calibrate(extractor, sage)
