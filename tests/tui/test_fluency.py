"""When text counts as broken."""

from __future__ import annotations

import pytest

from persona_tui.tui.fluency import STRAINED, FluencyMeter, fluent_limit, recommended_strength
from persona_tui.vectors.persona import Calibration, PersonaVector

WORDS = [f"word{number}" for number in range(60)]


def read(words: list[str], entropy: float = 0.5) -> FluencyMeter:
    meter = FluencyMeter()
    for word in words:
        meter.add(f" {word}", entropy)
    return meter


def test_plain_text_is_fluent() -> None:
    assert read(WORDS).read(0.3, 0.4).level < 1
    assert not FluencyMeter().read(0.0, None).broken


def test_repetition_is_seen() -> None:
    fluency = read([*WORDS[:20], *["hurry", "hurry", "hush"] * 12]).read(0.0, None)
    assert fluency.broken and fluency.word == "repeats" and "phrases repeat" in fluency.reason


def test_guessing_is_seen_against_what_is_ordinary() -> None:
    assert read(WORDS, 9.0).read(0.0, None).word != "guesses", "nobody knows what is ordinary for this model"
    meter = read(WORDS, 0.5)
    meter.finish(steered=False)
    meter.clear()
    for word in WORDS:
        meter.add(f" {word}", 2.0)
    assert meter.read(0.0, None).word == "guesses"
    meter = read(WORDS, 2.0)
    meter.finish(steered=False)  # this model is that uncertain by itself
    meter.clear()
    for word in WORDS:
        meter.add(f" {word}", 2.2)
    assert not meter.read(0.0, None).broken


def test_a_few_tokens_say_nothing() -> None:
    assert not read(WORDS[:3], 9.0).read(0.0, None).broken


def test_the_calibrated_limit_is_fluent_and_more_is_not() -> None:
    meter = read(WORDS)
    assert not meter.read(0.4, 0.4).broken and not meter.read(-0.4, 0.4).broken
    assert meter.read(0.45, 0.4).word == "too loud"


def test_what_calibration_recommends_is_never_strained() -> None:
    meter = read(WORDS)
    assert meter.read(0.35, 0.4).level > STRAINED
    for strength in (0.1, 0.3, -0.3):
        assert meter.read(strength, 0.3, recommended=0.3).level <= STRAINED
    assert meter.read(0.35, 0.3, recommended=0.3).broken


def persona(limits: list[tuple[float, bool]], gain: float = 2.0) -> PersonaVector:
    """A persona whose calibration found these coefficients fluent, or not."""
    import torch

    curve = [
        {"recipe": "response", "layers": [1], "coefficient": coefficient, "fluent": fluent}
        for coefficient, fluent in limits
    ]
    stack = {"response": torch.ones(1, 4)}
    calibration = Calibration("response", (1,), gain, 0.3, 1.0, 0.1, curve)
    return PersonaVector("one", (1,), stack, stack, stack, {}, calibration)


def test_the_limit_of_a_blend_is_the_mean_of_its_parts() -> None:
    one, other = persona([(0.4, True), (0.8, True), (1.2, False)]), persona([(1.6, True)])
    assert fluent_limit({"one": (one, 1.0)}) == 0.4
    blend = fluent_limit({"one": (one, 1.0), "other": (other, -3.0)})
    assert blend is not None and abs(blend - 0.7) < 1e-9
    uncalibrated = one.with_calibration(None)
    assert fluent_limit({"one": (one, 1.0), "two": (uncalibrated, 1.0)}) is None
    assert fluent_limit({}) is None
    assert recommended_strength({"one": (one, 1.0), "two": (uncalibrated, -1.0)}) == pytest.approx(0.3)
    assert recommended_strength({}) == 0
