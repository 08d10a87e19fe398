"""One range for each number, wherever it is given."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import pytest

from persona_tui.chat.log import fault_of
from persona_tui.cli.options import Within
from persona_tui.core.config import Settings, override
from persona_tui.core.errors import PersonaTuiError
from persona_tui.core.mix import PLAUSIBILITY, STRENGTH, TEMPERATURE, TOP_P, WEIGHT, Mix, Range, parse_blend

NAN = float("nan")


def _setting(key: str) -> Callable[[float], Any]:
    return lambda value: override(Settings(), {key: value})


def _recorded(**mix: Any) -> None:
    if problem := fault_of("mix", {"mix": mix}):
        raise PersonaTuiError(problem)


def _sampling(**values: Any) -> None:
    from persona_tui.model import Sampling

    Sampling(**values)


def _recorded_sampling(value: float) -> None:
    if problem := fault_of("settings", {"node": 1, "settings": {"sampling": {"temperature": value}}}):
        raise PersonaTuiError(problem)


WAYS: list[tuple[Range, Callable[[float], Any]]] = [
    (STRENGTH, lambda value: Mix(strength=value)),
    (STRENGTH, _setting("steering.default_strength")),
    (STRENGTH, lambda value: Within(STRENGTH)(str(value))),
    (STRENGTH, lambda value: _recorded(strength=value)),
    (WEIGHT, lambda value: Mix({"sage": value})),
    (WEIGHT, lambda value: parse_blend(f"sage:{value}")),
    (WEIGHT, lambda value: _recorded(weights={"sage": value})),
    (TEMPERATURE, _setting("generation.temperature")),
    (TEMPERATURE, _setting("extraction.temperature")),
    (TEMPERATURE, lambda value: _sampling(temperature=value)),
    (TEMPERATURE, _recorded_sampling),
    (TOP_P, _setting("generation.top_p")),
    (TOP_P, lambda value: _sampling(top_p=value)),
    (PLAUSIBILITY, lambda value: Mix(plausibility=value)),
    (PLAUSIBILITY, _setting("steering.plausibility")),
]


@pytest.mark.parametrize(("range", "give"), WAYS)
def test_what_one_place_takes_every_place_takes(range: Range, give: Callable[[float], Any]) -> None:
    for value in (float(range.high), range.high / 2):
        give(value)
    for value in (range.high * 1.01 + 1e-3, range.low - 1e-3, 1e38, -3e38, NAN, float("inf")):
        assert value not in range
        with pytest.raises((PersonaTuiError, click.BadParameter)):
            give(value)


def test_an_error_says_what_is_allowed() -> None:
    with pytest.raises(PersonaTuiError, match=r"strength must be a number from -100 to 100, not 1e\+38\."):
        Mix(strength=1e38)
    with pytest.raises(PersonaTuiError, match=r"temperature must be a number from 0 \(always the likeliest"):
        TEMPERATURE.check("temperature", NAN)


def test_a_session_with_a_number_out_of_range_is_refused_by_line_and_field(tmp_path: Path) -> None:
    from persona_tui.chat.log import read_events

    path = tmp_path / "s.jsonl"
    head = {"kind": "session", "format": 1, "id": "s", "at": ""}
    path.write_text(f"{json.dumps(head)}\n{json.dumps({'kind': 'mix', 'mix': {'strength': 1e38}})}\n")
    with pytest.raises(PersonaTuiError, match=r's\.jsonl:2: this mix does not fit: "mix\.strength"'):
        list(read_events(path))
