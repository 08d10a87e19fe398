"""Several mixes side by side: each row is what a reply of its own would have been."""

from __future__ import annotations

import threading
from dataclasses import replace
from itertools import groupby
from typing import Any

import pytest
import torch

from persona_tui.core.errors import GenerationError, PersonaNotFoundError
from persona_tui.model import Cap, Interventions, TokenEvent, conversation
from persona_tui.steering import Mix, SteeringEngine

ASKED = conversation("Who are you?")
MIXES = [
    Mix(capping=False),
    Mix({"sage": 1}, 0.6, capping=False),
    Mix({"explorer": 1}, 0.6, capping=True),
]


def by_row(events: list[TokenEvent]) -> dict[int, list[TokenEvent]]:
    ordered = sorted(events, key=lambda event: (event.row, event.index))
    return {row: list(group) for row, group in groupby(ordered, key=lambda event: event.row)}


def test_each_row_is_the_reply_to_its_mix(engine: SteeringEngine) -> None:
    rows = by_row(list(engine.stream_rows(ASKED, MIXES)))
    assert sorted(rows) == [0, 1, 2]
    for row, mix in enumerate(MIXES):
        alone = list(engine.stream(ASKED, mix=mix))
        assert [event.token_id for event in rows[row]] == [event.token_id for event in alone]
        for beside, single in zip(rows[row], alone, strict=True):
            same = {name: beside.projections[name] for name in single.projections}
            assert same == pytest.approx(single.projections, abs=1e-2)
            assert beside.capped == pytest.approx(single.capped, abs=1e-2)


def test_the_same_mix_twice_says_the_same_without_a_seed(engine: SteeringEngine) -> None:
    unseeded = replace(engine.sampling, seed=None)
    rows = by_row(list(engine.stream_rows(ASKED, [MIXES[1], MIXES[1]], sampling=unseeded)))
    assert [event.token_id for event in rows[0]] == [event.token_id for event in rows[1]]


def test_stopping_ends_every_row(engine: SteeringEngine) -> None:
    stop, events = threading.Event(), list[TokenEvent]()
    for event in engine.stream_rows(ASKED, MIXES[:2], stop=stop):
        events.append(event)
        stop.set()
    assert [event.finish for event in events[-2:]] == ["cancelled", "cancelled"]
    assert {event.index for event in events if event.token_id >= 0} == {0}


def test_a_row_follows_the_present_mix_and_the_other_stays(engine: SteeringEngine) -> None:
    louder, told = Mix({"sage": 1}, 0.9, capping=False), list[tuple[int, dict[str, Any]]]()
    engine.set_mix(MIXES[1])
    events = list[TokenEvent]()
    for event in engine.stream_rows(
        ASKED, [None, MIXES[0]], on_mix=lambda index, mix: told.append((index, mix))
    ):
        events.append(event)
        if (event.row, event.index) == (1, 2):
            engine.set_mix(louder)
    rows = by_row(events)
    assert [index for index, _ in told] == [0, 3] and told[1][1]["strength"] == 0.9
    alone = list(engine.repeat(ASKED, {0: MIXES[1], 3: louder}, engine.sampling))
    assert [event.token_id for event in rows[0]] == [event.token_id for event in alone]
    fixed = list(engine.stream(ASKED, mix=MIXES[0]))
    assert [event.token_id for event in rows[1]] == [event.token_id for event in fixed]
    again = by_row(
        list(engine.repeat_rows(ASKED, [{0: MIXES[1], 3: louder}, {0: MIXES[0]}], engine.sampling))
    )
    assert {row: [event.token_id for event in said] for row, said in again.items()} == {
        row: [event.token_id for event in said] for row, said in rows.items()
    }


def test_an_unknown_persona_is_named(engine: SteeringEngine) -> None:
    with pytest.raises(PersonaNotFoundError, match='Did you mean "sage"'):
        list(engine.stream_rows(ASKED, [Mix({"sagee": 1})]))


def test_every_token_says_how_certain_the_model_was(engine: SteeringEngine) -> None:
    for event in engine.stream_rows(ASKED, MIXES[:2]):
        assert 0 <= event.entropy <= torch.tensor(float(engine.model.model.config.vocab_size)).log() + 1e-4


def test_rows_of_interventions_leave_alone_what_has_none() -> None:
    vector, cap = torch.tensor([1.0, 2.0]), Cap(torch.tensor([1.0, 0.0]), 0.5)
    rows = Interventions.by_row([Interventions({3: vector}), Interventions({}, {5: cap})])
    assert rows.steering[3].tolist() == [[1.0, 2.0], [0.0, 0.0]]
    assert rows.capping[5] == [None, cap]
    assert Interventions.by_row([Interventions.none()] * 2) == Interventions.none()
    with pytest.raises(GenerationError, match="one per row"):
        Interventions.by_row([Interventions({}, {5: [cap]})])
