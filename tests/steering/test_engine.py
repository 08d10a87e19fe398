"""The engine: what a mix adds, when a change acts, and where the floor lies."""

from __future__ import annotations

import threading
from dataclasses import replace

import pytest
import torch

from persona_tui.core.config import Settings, override
from persona_tui.core.errors import GenerationError, PersonaNotFoundError, PersonaTuiError, VectorFileError
from persona_tui.model import Interventions, ModelWrapper, Request, Sampling, conversation
from persona_tui.model.architecture import find_blocks
from persona_tui.steering import Mix, SteeringEngine
from persona_tui.vectors.manager import PersonaManager

ASKED = conversation("Who are you?")
FREE = Mix(capping=False)  # nothing is done to the model
SAGE = Mix({"sage": 1}, capping=False)


def whole(text: str) -> str:
    """Without a character that the last token left unfinished: a stream never shows it."""
    return text.rstrip("\ufffd").rstrip()


# What is added --------------------------------------------------------------------------------------------


def test_strength_0_is_unsteered(engine: SteeringEngine, model: ModelWrapper) -> None:
    plain = model.generate([Request(ASKED)], engine.sampling)[0].text
    assert engine.reply(ASKED, mix=replace(SAGE, strength=0)).text == whole(plain)
    assert engine.reply(ASKED, mix=FREE).text == whole(plain)
    assert engine.reply(ASKED, mix=SAGE).text != whole(plain)


@pytest.mark.parametrize("strength", [0.3, -0.3, 1.0])
def test_a_persona_is_added_times_gain_and_strength(
    engine: SteeringEngine, model: ModelWrapper, manager: PersonaManager, strength: float
) -> None:
    persona = manager.get("sage")
    vector = persona.safe["response"][persona.layers.index(4)]
    by_hand = Interventions({4: strength * 5.0 * vector})
    expected = model.generate([Request(ASKED)], engine.sampling, by_hand)[0].text
    assert engine.reply(ASKED, mix=replace(SAGE, strength=strength)).text == whole(expected)


def test_raw_vectors_can_be_added_instead(engine: SteeringEngine, manager: PersonaManager) -> None:
    added = engine.interventions(replace(SAGE, safe=False, strength=1)).steering[4]
    persona = manager.get("sage")
    torch.testing.assert_close(added, 5.0 * persona.raw["response"][persona.layers.index(4)])


def test_a_blend_points_between_its_personas_and_is_as_loud(engine: SteeringEngine) -> None:
    def added(**weights: float) -> torch.Tensor:
        return engine.interventions(Mix(weights, strength=1, capping=False)).steering[4]

    sage, trickster = added(sage=1), added(trickster=1)
    blended = added(sage=0.5, trickster=0.25)
    torch.testing.assert_close(blended, added(sage=2, trickster=1))  # only proportions matter
    expected = sage * 0.5 + trickster * 0.25
    assert torch.cosine_similarity(blended, expected, dim=0).item() == pytest.approx(1, abs=1e-5)
    assert blended.norm().item() == pytest.approx((2 * sage.norm() + trickster.norm()).item() / 3, rel=1e-4)
    torch.testing.assert_close(added(sage=-1), -sage)


def test_personas_of_different_layers_are_each_heard_at_every_layer_of_a_blend(
    engine: SteeringEngine,
) -> None:
    both = engine.interventions(Mix({"sage": 1, "explorer": 1}, 1, capping=False)).steering
    assert set(both) == {3, 4}
    for name in ("sage", "explorer"):
        alone = engine.interventions(Mix({name: 1}, 1, capping=False, layers=(3, 4))).steering
        for layer, vector in both.items():
            assert torch.cosine_similarity(vector, alone[layer], dim=0) > 0.2


def test_the_plans_methods_are_replies(engine: SteeringEngine) -> None:
    default = engine.mix  # with the guide
    steered = engine.reply(ASKED, mix=replace(default, weights={"sage": 1}, strength=0.7, capping=False)).text
    assert engine.generate("Who are you?", "sage", 0.7, enable_safety_capping=False) == steered
    prompted = engine.reply(conversation("Who are you?", "Be brief."), mix=FREE).text
    assert engine.generate("Who are you?", None, None, False, "Be brief.") == prompted
    blend = {"sage": 0.5, "trickster": 0.5}
    blended = engine.reply(ASKED, mix=replace(default, weights=blend)).text
    assert engine.generate_with_composite("Who are you?", blend) == blended


def test_the_default_strength_is_used_where_none_is_given(engine: SteeringEngine) -> None:
    assert engine.default_strength == 0.3
    engine.set_default_strength(0.8)
    louder = engine.reply(ASKED, mix=replace(engine.mix, weights={"sage": 1})).text
    assert engine.generate("Who are you?", "sage") == louder
    assert engine.mix.strength == 0.8


def test_many_conversations_share_a_batch(engine: SteeringEngine) -> None:
    requests = [Request(conversation(text), seed=5) for text in ("Who are you?", "Tell me a long story.")]
    together = engine.generate_batch(requests, SAGE)
    alone = [engine.generate_batch([request], SAGE)[0] for request in requests]
    assert [each.token_ids for each in together] == [each.token_ids for each in alone]


# Names ----------------------------------------------------------------------------------------------------


def test_an_unknown_persona_is_named_with_the_nearest(engine: SteeringEngine) -> None:
    with pytest.raises(PersonaNotFoundError, match='Did you mean "sage"'):
        engine.generate("Who are you?", "sagge")
    engine.set_mix(SAGE)
    with pytest.raises(PersonaNotFoundError):
        engine.set_mix(Mix({"nobody": 1}))
    assert engine.mix == SAGE
    with pytest.raises(PersonaNotFoundError):  # also when it would add nothing
        engine.interventions(Mix({"nobody": 1}, strength=0))


def test_one_answer_loads_nothing_for_good(engine: SteeringEngine, manager: PersonaManager) -> None:
    assert manager.list_loaded() == []
    assert engine.generate("Who are you?", "sage", 3.0) != engine.generate("Who are you?")
    assert manager.list_loaded() == []


# The floor ------------------------------------------------------------------------------------------------


def test_the_floor_really_moves(engine: SteeringEngine, manager: PersonaManager) -> None:
    def floors() -> list[float]:
        return [cap.floor for cap in engine.interventions(Mix()).capping.values()]

    assert engine.safety_floor == 25
    before = floors()
    engine.set_safety_floor(75)
    assert engine.safety_floor == 75
    assert all(high > low for high, low in zip(floors(), before, strict=True))
    axes = manager.axes
    assert axes is not None
    for layer, cap in engine.interventions(Mix()).capping.items():
        row = axes.projections["assistant"][axes.layers.index(layer)]
        assert cap.floor == pytest.approx(torch.quantile(row, 0.75).item())
    with pytest.raises(PersonaTuiError, match="from 0 to 100"):
        engine.set_safety_floor(101)


def test_a_higher_floor_acts_on_more_tokens(engine: SteeringEngine) -> None:
    capped = []
    for percentile in (0, 50, 100):
        engine.set_safety_floor(percentile)
        capped.append(engine.reply(ASKED, mix=Mix({"sage": 1}), sampling=Sampling(24, seed=1)).capped_tokens)
    assert capped == sorted(capped) and capped[-1] > capped[0]
    assert engine.reply(ASKED, mix=SAGE).capped_tokens == 0


def test_a_mix_may_bring_its_own_floor_and_axis(engine: SteeringEngine, manager: PersonaManager) -> None:
    axes = manager.axes
    assert axes is not None
    for layer, cap in engine.interventions(Mix(percentile=90, capping_axis="safety")).capping.items():
        assert cap.floor == axes.floor("safety", layer, 90)
        torch.testing.assert_close(cap.axis, axes.axis("safety", layer))


def test_the_axis_comes_from_the_mix_then_the_settings_then_the_measurement(
    engine: SteeringEngine, model: ModelWrapper, manager: PersonaManager, settings: Settings
) -> None:
    assert engine.capping_axis() == "assistant"
    own = SteeringEngine(model, manager, override(settings, {"steering.capping_axis": "safety"}))
    assert own.capping_axis() == "safety"
    assert own.capping_axis(Mix(capping_axis="assistant")) == "assistant"


def test_without_axes_there_is_no_floor(engine: SteeringEngine, manager: PersonaManager) -> None:
    (manager.vectors_dir / "axes.safetensors").unlink()
    bare = PersonaManager(manager.vectors_dir, manager.model_fingerprint)
    engine = SteeringEngine(engine.model, bare, engine.settings)
    assert not engine.can_cap and engine.capping_axis() is None
    assert engine.interventions(Mix()).capping == {}
    assert engine.reply(ASKED).text == engine.reply(ASKED, mix=FREE).text


# Streaming ------------------------------------------------------------------------------------------------


def test_a_stream_says_what_a_reply_says(engine: SteeringEngine) -> None:
    events = list(engine.stream(ASKED, mix=SAGE))
    reply = engine.reply(ASKED, mix=SAGE)
    assert "".join(event.text for event in events).strip() == reply.text
    assert reply.tokens == len(events) and reply.finish == events[-1].finish
    assert reply.prompt_tokens == engine.model.count_tokens(ASKED)
    assert reply.seconds > 0


def test_a_change_of_the_mix_acts_on_the_next_token(engine: SteeringEngine, model: ModelWrapper) -> None:
    change_at = 4
    loud = replace(SAGE, strength=1)
    engine.set_mix(FREE)
    spoken = []
    for event in engine.stream(ASKED):
        spoken.append(event.token_id)
        if event.index == change_at - 1:
            engine.set_mix(loud)

    polled = iter(range(1000))

    def by_hand() -> Interventions | None:
        return engine.interventions(loud) if next(polled) == change_at else None

    expected = [event.token_id for event in model.stream([Request(ASKED)], engine.sampling, by_hand)]
    assert spoken == expected
    assert spoken[:change_at] == [event.token_id for event in engine.stream(ASKED, mix=FREE)][:change_at]
    assert spoken != [event.token_id for event in engine.stream(ASKED, mix=FREE)]


def test_the_floor_and_the_default_strength_act_on_a_running_stream_too(engine: SteeringEngine) -> None:
    engine.set_mix(Mix({"sage": 1}, percentile=None))
    engine.set_safety_floor(0)
    lifts = []
    for event in engine.stream(ASKED):
        lifts.append(event.capped)
        if event.index == 3:
            engine.set_safety_floor(100)
    assert sum(lifts[4:]) / len(lifts[4:]) > sum(lifts[:4]) / 4


def test_a_fixed_mix_does_not_follow(engine: SteeringEngine) -> None:
    expected = [event.token_id for event in engine.stream(ASKED, mix=SAGE)]
    spoken = []
    for event in engine.stream(ASKED, mix=SAGE):
        spoken.append(event.token_id)
        engine.set_mix(Mix({"trickster": 1}, strength=1))
    assert spoken == expected


def test_a_mix_may_be_set_from_another_thread(engine: SteeringEngine) -> None:
    engine.set_mix(FREE)
    stream = engine.stream(ASKED)
    next(stream)
    thread = threading.Thread(target=engine.set_mix, args=(SAGE,))
    thread.start()
    thread.join()
    assert engine.mix == SAGE
    assert len(list(stream)) > 0


def test_a_stream_can_be_stopped(engine: SteeringEngine) -> None:
    stop = threading.Event()
    events = []
    for event in engine.stream(ASKED, stop=stop):
        events.append(event)
        if event.index == 2:
            stop.set()
    assert events[-1].finish == "cancelled"
    assert sum(event.token_id >= 0 for event in events) == 3
    stopped = engine.reply(ASKED, stop=stop)
    assert (stopped.finish, stopped.tokens, stopped.text) == ("cancelled", 0, "")


def test_a_system_prompt_takes_the_place_of_the_conversations(engine: SteeringEngine) -> None:
    first = engine.reply(conversation("Who are you?", "Be long."), mix=FREE, system="Be brief.").text
    assert first == engine.reply(conversation("Who are you?", "Be brief."), mix=FREE).text
    assert first == engine.reply(ASKED, mix=FREE, system="Be brief.").text


def test_traces_are_on_the_personas_own_scale(engine: SteeringEngine, manager: PersonaManager) -> None:
    """0 at the baseline and 1 at the persona's mean, whatever the sizes; the axis counts in deviations."""
    manager.load("sage")
    persona = manager.get("sage")
    trace = engine.traces()["sage"]
    for layer, vector in trace.vectors.items():
        row = persona.layers.index(layer)
        mean, baseline = (
            persona.mean["response"][row],
            (persona.mean["response"] - persona.raw["response"])[row],
        )
        assert (vector @ (mean - baseline)).item() == pytest.approx(1, rel=1e-4)
    assert set(trace.vectors) == {4, 5}
    axes = manager.axes
    assert axes is not None
    readings = [
        float((axes.projections["assistant"][axes.layers.index(layer)] * along.norm()).mean())
        for layer, along in engine.traces()["assistant"].vectors.items()
    ]
    assert sum(readings) / len(readings) == pytest.approx(engine.traces()["assistant"].ordinary, rel=1e-3)


def test_every_token_has_a_trace_per_loaded_persona(engine: SteeringEngine, manager: PersonaManager) -> None:
    manager.load("trickster")
    events = list(engine.stream(ASKED, mix=Mix({"sage": 1})))
    assert all(set(event.projections) == {"assistant", "safety", "sage", "trickster"} for event in events)


def test_the_floor_is_read_on_the_scale_of_its_trace(engine: SteeringEngine, manager: PersonaManager) -> None:
    axes = manager.axes
    assert axes is not None
    engine.set_mix(Mix(percentile=50))
    middle = engine.floor_reading("assistant")
    assert middle is not None and abs(middle) < 1  # the median is near the mean, on a scale of deviations
    engine.set_mix(Mix(percentile=5))
    low = engine.floor_reading("assistant")
    assert low is not None and low < middle
    assert engine.floor_reading("safety") is None and engine.floor_reading("sage") is None
    engine.set_mix(Mix(capping_axis="safety"))
    assert engine.floor_reading("safety") is not None and engine.floor_reading("assistant") is None
    engine.set_mix(Mix(capping=False))
    assert engine.floor_reading("safety") is None


def test_loudness_is_a_share_of_ordinary_activations(engine: SteeringEngine, manager: PersonaManager) -> None:
    axes = manager.axes
    assert axes is not None
    ordinary = axes.baseline["response"][axes.layers.index(4)].norm()
    added = manager.get("sage").direction()[4].norm()
    half = pytest.approx(float(0.5 * added / ordinary), rel=1e-5)
    assert engine.loudness(Mix({"sage": 1}, 0.5)) == {4: half}
    assert engine.loudness(Mix()) == {}


def test_without_the_guide_a_persona_is_as_loud_as_that_allows(
    engine: SteeringEngine, manager: PersonaManager
) -> None:
    sage = manager.get("sage")
    assert sage.calibration is not None
    both = replace(sage.calibration, plausibility=0.02, unguided_gain=sage.calibration.gain / 2)
    manager.save(sage.with_calibration(both))
    guided = Mix({"sage": 1}, 1, capping=False, plausibility=0.02)
    loud, quiet = (engine.interventions(mix).steering for mix in (guided, replace(guided, plausibility=0.0)))
    torch.testing.assert_close(loud[4], 2 * quiet[4])
    torch.testing.assert_close(loud[4], sage.direction()[4])


def test_other_layers_can_be_chosen(engine: SteeringEngine) -> None:
    own = engine.interventions(Mix({"sage": 1}, 1, capping=False)).steering
    chosen = engine.interventions(Mix({"sage": 1}, 1, capping=False, layers=(4, 3))).steering
    assert set(own) == {4} and set(chosen) == {3, 4}
    torch.testing.assert_close(chosen[4], own[4] / 2**0.5)
    with pytest.raises(PersonaTuiError, match="no vector at layer 99"):
        engine.interventions(Mix({"sage": 1}, layers=(99,)))


def test_steering_towards_a_persona_shows_in_its_trace(engine: SteeringEngine) -> None:
    def trace(strength: float) -> float:
        events = list(engine.stream(ASKED, mix=replace(SAGE, strength=strength)))
        return events[0].projections["sage"]

    assert trace(0.5) > trace(0.0) > trace(-0.5)


def test_what_is_reported_of_the_floor_is_what_was_done(
    engine: SteeringEngine, model: ModelWrapper, manager: PersonaManager, settings: Settings
) -> None:
    told: list[str] = []
    engine.on_note = told.append
    reply = engine.reply(ASKED, mix=Mix())
    assert reply.floor is not None and reply.floor.layers == engine.capping_layers and not told
    assert engine.reply(ASKED, mix=Mix(capping=False)).floor is None and not told

    (manager.vectors_dir / "axes.safetensors").unlink()
    bare = SteeringEngine(model, PersonaManager(manager.vectors_dir, model.fingerprint, model.name), settings)
    bare.on_note = told.append
    assert bare.reply(ASKED, mix=Mix()).floor is None
    assert bare.describe(Mix())["floor"] is None
    assert len(told) == 1 and "nothing is capped: tiny has no axes yet" in told[0]


def test_layers_without_a_floor_are_named(
    model: ModelWrapper, manager: PersonaManager, settings: Settings
) -> None:
    there = manager.axes.layers[-1] if manager.axes is not None else 0
    for layers, words in (([0, there], "at layer 0 there is no floor"), ([0, 1], "nothing is capped")):
        engine = SteeringEngine(model, manager, override(settings, {"steering.capping_layers": layers}))
        floor = engine.floor_of(Mix())
        assert (floor.layers if floor else ()) == tuple(layer for layer in layers if layer == there)
        assert words in engine.unenforced(Mix())
        assert engine.unenforced(Mix(capping=False)) == ""


def test_one_damaged_file_that_is_loaded_keeps_nobody_from_talking(
    engine: SteeringEngine, manager: PersonaManager, model: ModelWrapper, settings: Settings
) -> None:
    for name in ("sage", "explorer"):
        manager.load(name)
    path = manager.path_of("explorer")
    path.write_bytes(path.read_bytes()[:200])
    fresh = SteeringEngine(model, PersonaManager(manager.vectors_dir, model.fingerprint), settings)
    told: list[str] = []
    fresh.on_note = told.append
    events = list(fresh.stream(ASKED, mix=SAGE))
    assert "sage" in events[0].projections and "explorer" not in events[0].projections
    assert len(told) == 1 and str(path) in told[0] and "persona-tui unload explorer" in told[0]
    with pytest.raises(VectorFileError):  # who speaks must be there whole
        list(fresh.stream(ASKED, mix=Mix({"explorer": 1})))
    fresh.personas.unload("explorer")
    told.clear()
    list(fresh.stream(ASKED, mix=SAGE))
    assert not told


def test_numbers_that_overflow_end_in_one_line_however_they_are_read(
    engine: SteeringEngine, model: ModelWrapper
) -> None:
    huge = Interventions({4: torch.full((model.hidden_size,), 3e38)})
    with pytest.raises(GenerationError, match="numbers overflowed"):
        model.generate([Request(ASKED)], engine.sampling, huge)
    with pytest.raises(GenerationError, match="numbers overflowed"):
        model.reread_reply(ASKED, "No.", {"there": {5: torch.ones(model.hidden_size)}}, {0: huge})
    block = find_blocks(model.model)[2]
    hook = block.register_forward_hook(lambda module, args, output: output * torch.nan)
    try:
        with pytest.raises(GenerationError, match="numbers overflowed"):
            model.read([ASKED], [4])
    finally:
        hook.remove()
