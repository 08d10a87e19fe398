"""Mixes and their text form."""

from __future__ import annotations

import math

import pytest

from persona_tui.core.errors import PersonaTuiError
from persona_tui.core.mix import parse_layers
from persona_tui.steering import Mix, parse_blend


@pytest.mark.parametrize(
    ("text", "weights"),
    [
        ("sage", {"sage": 1.0}),
        ("sage:0.5,trickster:0.3", {"sage": 0.5, "trickster": 0.3}),
        (" sage : 1 , trickster : -0.25 ", {"sage": 1.0, "trickster": -0.25}),
        ("sage:0,trickster", {"sage": 0.0, "trickster": 1.0}),
    ],
)
def test_a_blend_is_read(text: str, weights: dict[str, float]) -> None:
    assert parse_blend(text) == weights


@pytest.mark.parametrize(
    "text", ["", ",", "sage,", ":0.5", "sage:", "sage:much", "sage:nan", "sage:inf", "sage:1:2"]
)
def test_a_bad_blend_is_one_line(text: str) -> None:
    with pytest.raises(PersonaTuiError) as caught:
        parse_blend(text)
    assert "\n" not in str(caught.value)


def test_a_name_twice_or_no_weight_at_all_is_an_error() -> None:
    with pytest.raises(PersonaTuiError, match="appears twice"):
        parse_blend("sage:1,sage:2")
    with pytest.raises(PersonaTuiError, match="every weight in the blend"):
        parse_blend("sage:0")


def test_a_mix_is_its_own() -> None:
    weights = {"sage": 1.0}
    mix = Mix(weights)
    weights["sage"] = 2.0
    assert mix.weights == {"sage": 1.0}


@pytest.mark.parametrize(
    "wrong",
    [
        {"strength": math.nan},
        {"weights": {"sage": math.inf}},
        {"percentile": 101},
        {"percentile": -1},
        {"capping_axis": "mood"},
        {"layers": (-1, 2)},
    ],
)
def test_impossible_values_are_errors(wrong: dict[str, object]) -> None:
    with pytest.raises(PersonaTuiError):
        Mix(**wrong)  # type: ignore[arg-type]


def test_layers_are_put_in_order() -> None:
    assert Mix(layers=[5, 4, 5]).layers == (4, 5)  # type: ignore[arg-type]
    assert Mix(layers=()).layers is None


def test_a_label_says_who_speaks() -> None:
    assert Mix().label == ""
    assert Mix({"sage": 0.5, "trickster": 0}).label == "sage"
    assert Mix({"sage": -1}).label == "sage:-1"
    assert Mix({"sage": 0.5, "trickster": 0.3}).label == "sage:0.5,trickster:0.3"


@pytest.mark.parametrize(
    ("text", "layers"),
    [("4", (4,)), ("3-5", (3, 4, 5)), ("7, 3 5", (3, 5, 7)), ("auto", None), ("3-5,4", (3, 4, 5))],
)
def test_layers_are_read(text: str, layers: tuple[int, ...] | None) -> None:
    assert parse_layers(text) == layers


@pytest.mark.parametrize("text", ["many", "3..5", "-1", "1-99999"])
def test_bad_layers_are_one_line(text: str) -> None:
    with pytest.raises(PersonaTuiError, match="layers look like"):
        parse_layers(text)
