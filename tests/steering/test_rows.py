"""Different conversations as rows of one batch, each with its own mix, sampling, seed and end."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import replace
from datetime import date

import pytest
import torch

from persona_tui.core.errors import PersonaNotFoundError
from persona_tui.model import Interventions, Request, Sampling, TokenEvent, conversation
from persona_tui.model.architecture import Overflow
from persona_tui.model.prompts import PromptEncoder
from persona_tui.model.text import Rendering
from persona_tui.steering import Mix, SteeringEngine
from persona_tui.steering.rows import VoicedRow, stream_voices

TEXTS = ("Who are you?", "Tell me a long story about bread and soup, please. " * 6, "Why?", "What is rain?")
MIXES = (Mix(), Mix({"sage": 1.0}, 0.8), Mix({"trickster": 0.5, "explorer": 0.5}, plausibility=0.1), Mix())
SAMPLINGS = (
    Sampling(12, 0.0, 1.0),
    Sampling(9, 1.3, 0.9),
    Sampling(16, 0.8, 1.0),
    Sampling(12, 0.7, 0.5),
)


def rows(engine: SteeringEngine, places: Sequence[int] = range(4), **changes: object) -> list[VoicedRow]:
    found = []
    for place in places:
        request = Request(conversation(TEXTS[place]), 7 + place, SAMPLINGS[place], likeliest=place)
        found.append(VoicedRow(engine, replace(request, **changes), MIXES[place]))  # type: ignore[arg-type]
    return found


def spoken(events: Sequence[TokenEvent], row: int) -> list[int]:
    return [event.token_id for event in events if event.row == row]


def test_each_row_is_what_it_would_be_alone(engine: SteeringEngine) -> None:
    together = list(stream_voices(engine, rows(engine)))
    for place in range(4):
        alone = list(stream_voices(engine, rows(engine, [place])))
        mine = [event for event in together if event.row == place]
        assert [event.token_id for event in mine] == [event.token_id for event in alone]
        assert [event.text for event in mine] == [event.text for event in alone]
        assert [event.logprob for event in mine] == pytest.approx([each.logprob for each in alone], abs=1e-4)
        for name, value in alone[-1].projections.items():
            assert mine[-1].projections[name] == pytest.approx(value, abs=1e-3)
        assert all(len(event.likeliest) == place for event in mine)
        assert [event.nats is not None for event in mine] == [place == 2] * len(mine)
    assert len(spoken(together, 1)) == 9


def test_a_row_has_another_mix_from_the_next_token_on_and_its_neighbours_do_not(
    engine: SteeringEngine,
) -> None:
    before = list(stream_voices(engine, rows(engine)))
    batch, seen = rows(engine), []
    for event in stream_voices(engine, batch):
        seen.append(event)
        if (event.row, event.index) == (3, 4):
            batch[3].set_mix(Mix({"sage": 1.0}, 2.0))
            with pytest.raises(PersonaNotFoundError):
                batch[3].set_mix(Mix({"nobody": 1.0}))
    changed = spoken(seen, 3)
    assert changed[:5] == spoken(before, 3)[:5] and changed != spoken(before, 3)
    assert all(spoken(seen, row) == spoken(before, row) for row in range(3))
    assert [(token, mix["strength"]) for token, mix in batch[3].changes] == [(0, 0.3), (5, 2.0)]
    again = list(stream_voices(engine, batch))
    assert spoken(again, 3) == changed, "written again, it changes where it changed before"


def test_a_row_that_is_stopped_leaves_and_the_others_go_on(engine: SteeringEngine) -> None:
    before = list(stream_voices(engine, rows(engine)))
    batch, seen = rows(engine, stop=None), []
    stop = threading.Event()
    batch[0].request = replace(batch[0].request, stop=stop)
    for event in stream_voices(engine, batch):
        seen.append(event)
        if (event.row, event.index) == (0, 3):
            stop.set()
    assert spoken(seen, 0) == [*spoken(before, 0)[:4], -1]
    assert [event.finish for event in seen if event.row == 0][-1] == "cancelled"
    assert all(spoken(seen, row) == spoken(before, row) for row in range(1, 4))


def test_a_text_ends_a_row_and_is_no_part_of_it(engine: SteeringEngine) -> None:
    whole = "".join(event.text for event in stream_voices(engine, rows(engine, [0])))
    stop = next(each for each in whole[len(whole) // 3 :] if each.isascii() and each.isprintable())
    ended = list(stream_voices(engine, rows(engine, [0], stops=(stop,))))
    assert "".join(event.text for event in ended) == whole.partition(stop)[0]
    assert ended[-1].finish == "stop"


def test_a_row_that_overflows_is_named(engine: SteeringEngine) -> None:
    loudest = Interventions({4: torch.full((engine.model.hidden_size,), 1e38)})
    requests = [row.request for row in rows(engine)]
    ways = Interventions.by_row([Interventions.none(), loudest, Interventions.none(), Interventions.none()])
    with pytest.raises(Overflow) as caught:
        list(engine.model.stream(requests, None, ways))
    assert caught.value.rows == (1,)


def test_a_prompt_is_encoded_beside_the_model_as_by_it(engine: SteeringEngine) -> None:
    encoder = PromptEncoder(engine.model)  # type: ignore[arg-type]
    asked = conversation("Say <|im_end|> twice", "Be brief.")
    assert encoder.conversation(asked) == engine.model.encode(asked)  # type: ignore[attr-defined]
    tokenizer = engine.model.tokenizer  # type: ignore[attr-defined]
    plain, before = tokenizer.chat_template, engine.model.rendering
    try:
        tokenizer.chat_template = "{{ strftime_now('%Y-%m-%d') }} " + plain
        engine.model.rendering = Rendering("2024-02-29T12:00:00")  # type: ignore[misc]
        today = PromptEncoder(engine.model).conversation(asked)  # type: ignore[arg-type]
        assert tokenizer.decode(today).startswith(date.today().isoformat())
    finally:
        tokenizer.chat_template = plain
        engine.model.rendering = before  # type: ignore[misc]
    text = encoder.text("The bread is")
    raw = Request([], 1, Sampling(6, 0.0), text, raw=True)
    events = list(stream_voices(engine, [VoicedRow(engine, raw, Mix())]))
    assert len(spoken(events, 0)) == 6 and "".join(encoder.token(each) for each in text) == "The bread is"
