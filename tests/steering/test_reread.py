"""What was written is read again: the projections are those of the writing, also where the mix changed."""

from __future__ import annotations

import pytest

from persona_tui.chat import Conversation
from persona_tui.chat.reread import reread
from persona_tui.core.errors import GenerationError
from persona_tui.model import TokenEvent, conversation
from persona_tui.steering import Mix, SteeringEngine

ASKED = conversation("Who are you?")
FIRST, SECOND = Mix({"sage": 1}, 0.5), Mix({"explorer": 1}, 0.7, capping=False)


def same(again: list[TokenEvent], written: list[TokenEvent]) -> None:
    assert [event.token_id for event in again] == [event.token_id for event in written]
    for one, other in zip(again, written, strict=True):
        there = {name: other.projections[name] for name in one.projections}
        assert one.projections == pytest.approx(there, abs=1e-3)
        assert one.capped == pytest.approx(other.capped, abs=1e-3)


def changing(engine: SteeringEngine, at: int) -> list[TokenEvent]:
    """A reply whose mix changed with a token."""
    engine.set_mix(FIRST)
    events = list[TokenEvent]()
    for event in engine.stream(ASKED):
        events.append(event)
        if event.index == at - 1:
            engine.set_mix(SECOND)
    return events


def test_one_mix(engine: SteeringEngine) -> None:
    written = list(engine.stream(ASKED, mix=FIRST))
    same(engine.reread_reply(ASKED, [event.token_id for event in written], {0: FIRST}), written)


@pytest.mark.parametrize("at", [1, 5])
def test_a_mix_that_changed_in_mid_reply(engine: SteeringEngine, at: int) -> None:
    written = changing(engine, at)
    same(engine.reread_reply(ASKED, [event.token_id for event in written], {0: FIRST, at: SECOND}), written)


def test_a_text_is_cut_into_tokens_and_read_without_a_mix(engine: SteeringEngine) -> None:
    written = list(engine.stream(ASKED, mix=Mix(capping=False)))
    text = "".join(event.text for event in written)
    again = engine.reread_reply(ASKED, text)
    assert "".join(event.text for event in again).strip() == text.strip()
    assert all(event.capped == 0 for event in again)
    assert engine.reread_reply(ASKED, "") == []


def test_a_message_is_read_at_its_own_tokens(engine: SteeringEngine) -> None:
    events = engine.reread_message(ASKED)
    assert "".join(event.text for event in events).strip() == "Who are you?"
    assert {"assistant", "safety"} <= set(events[0].projections)


def test_what_does_not_fit_is_an_error(engine: SteeringEngine) -> None:
    with pytest.raises(GenerationError, match="context"):
        engine.reread_reply(ASKED, "word " * 2000)


def test_a_reply_that_was_continued_is_read_in_its_parts(engine: SteeringEngine) -> None:
    said, written = Conversation(), list[TokenEvent]()
    said.add_user("Who are you?")
    settings = {"mix": engine.describe(FIRST), "sampling": {}}
    reply = said.begin_reply(settings)
    for begin in (lambda: reply, lambda: said.continue_reply(settings)):
        begin()
        for event in engine.stream(said.prompt(reply), mix=FIRST):
            said.extend(reply, event.text, event.token_id)
            written.append(event)
        said.finish(reply, "length")
    found = reread(engine, said, reply)
    same(found.events, written)
    assert [event.index for event in found.events] == list(range(len(written))) and not found.missing
    said.node(reply).runs[1].settings["mix"]["weights"] = {"nobody_any_more": 1.0}
    assert reread(engine, said, reply).missing == "its mix", "a persona of it is gone"
    said.node(reply).runs[0].settings["fingerprint"] = "another"
    found = reread(engine, said, reply)
    assert found.missing == "its model" and not found.own_tokens
    assert "".join(event.text for event in found.events).strip() == said.node(reply).text.strip()
