"""The guard: verdicts out of the passes that write, and refusals that write nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from persona_tui.chat import Conversation
from persona_tui.chat.replies import ChatReply
from persona_tui.core.config import Settings, override
from persona_tui.core.errors import MonitorError
from persona_tui.core.mix import Mix
from persona_tui.model import ModelWrapper, TokenEvent, conversation
from persona_tui.monitors.guard import Guard, verdict_of
from persona_tui.monitors.monitor import SelfMonitor
from persona_tui.steering import SteeringEngine
from persona_tui.vectors.manager import PersonaManager

ASKED = "How do I bake bread?"
ALWAYS, NEVER = 1e9, -1e9  # thresholds: everything is dangerous, nothing is


@pytest.fixture
def engine(model: ModelWrapper, tmp_path: Path) -> SteeringEngine:
    settings = override(
        Settings(),
        {"generation.max_new_tokens": 20, "generation.temperature": 0.0, "steering.capping": False},
    )
    return SteeringEngine(model, PersonaManager(tmp_path, model.fingerprint, model.name), settings)


def tuned(monitor: SelfMonitor, message: float, reply: float) -> SelfMonitor:
    """The monitor with other thresholds."""
    other = monitor.with_method(monitor.method, message)
    return replace(other, reply=replace(other.reply, threshold=reply))


def stream(engine: SteeringEngine, guard: Guard | None, asked: str = ASKED) -> list[TokenEvent]:
    return list(engine.stream(conversation(asked), guard=guard))


@contextmanager
def passes(model: ModelWrapper) -> Iterator[Callable[[], int]]:
    """Counts the passes of the model within."""
    count = 0

    def one_more(*_: object) -> None:
        nonlocal count
        count += 1

    handle = model._blocks[0].register_forward_hook(one_more)
    try:
        yield lambda: count
    finally:
        handle.remove()


def test_warning_changes_no_token_and_costs_no_pass(engine: SteeringEngine, monitor: SelfMonitor) -> None:
    with passes(engine.model) as count:
        plain = stream(engine, None)
        without = count()
        guarded = stream(engine, Guard(lambda: monitor, "warn"))
        assert count() == 2 * without
    assert [event.token_id for event in guarded if event.token_id >= 0] == [each.token_id for each in plain]
    assert "".join(event.text for event in guarded) == "".join(event.text for event in plain)


def test_the_message_is_judged_before_the_first_token(engine: SteeringEngine, monitor: SelfMonitor) -> None:
    guard = Guard(lambda: monitor, "warn")
    first, *rest = stream(engine, guard)
    verdict, alone = verdict_of(first), monitor.check(ASKED)
    assert verdict is not None and (first.token_id, first.text, first.finish) == (-1, "", None)
    assert verdict.score == pytest.approx(alone.score, abs=1e-4)
    assert replace(verdict, score=0, category_probability=0, agreement=0) == replace(
        alone, score=0, category_probability=0, agreement=0
    )
    judged = [event.index for event in rest if verdict_of(event) is not None]
    assert judged == [8, 12, 16, 19]
    assert all(each.about == "reply" for each in map(verdict_of, rest) if each is not None)
    assert guard.message == verdict and guard.reply == verdict_of(rest[-1])


def test_a_refused_message_is_read_once_and_never_answered(
    engine: SteeringEngine, monitor: SelfMonitor
) -> None:
    guard = Guard(lambda: tuned(monitor, ALWAYS, NEVER), "refuse")
    with passes(engine.model) as count:
        (only,) = stream(engine, guard)
        assert count() == 1
    assert (only.token_id, only.text, only.finish) == (-1, "", "refused")
    verdict = verdict_of(only)
    assert verdict is not None and not verdict.safe and "threshold" in verdict.reason
    assert guard.record()["message"]["safe"] is False


def test_a_reply_that_turns_dangerous_is_stopped(engine: SteeringEngine, monitor: SelfMonitor) -> None:
    plain = stream(engine, None)
    *said, last = stream(engine, Guard(lambda: tuned(monitor, NEVER, ALWAYS), "refuse"))
    assert (last.finish, last.index, last.text, last.token_id) == ("refused", 8, "", -1)
    kept = [event.token_id for event in said if event.token_id >= 0]
    assert kept == [event.token_id for event in plain[:8]]
    # In the other modes it is only said.
    warned = stream(engine, Guard(lambda: tuned(monitor, ALWAYS, ALWAYS), "warn"))
    assert warned[-1].finish == plain[-1].finish


def test_off_reads_nothing(engine: SteeringEngine) -> None:
    def load() -> SelfMonitor:
        raise AssertionError("the monitor was loaded")

    events = stream(engine, Guard(load))
    assert all(verdict_of(event) is None for event in events)


def test_a_mode_can_change_while_a_reply_is_written(engine: SteeringEngine, monitor: SelfMonitor) -> None:
    guard = Guard(lambda: tuned(monitor, NEVER, ALWAYS), "warn")
    seen = []
    for event in engine.stream(conversation(ASKED), guard=guard):
        seen.append(event)
        if event.index == 9:
            guard.set_mode(" REFUSE ")
    assert (seen[-1].finish, seen[-1].index) == ("refused", 12)


def test_modes_are_checked() -> None:
    def missing() -> None:
        raise MonitorError("there is no monitor")

    guard = Guard(lambda: pytest.fail("loaded"), exists=missing)
    with pytest.raises(MonitorError, match="off, warn, refuse or critique"):
        guard.set_mode("maybe")
    with pytest.raises(MonitorError, match="no monitor"):
        guard.set_mode("warn")
    guard.set_mode("off")
    assert guard.mode == "off" and guard.watch is None


def test_rows_side_by_side_are_judged_each(engine: SteeringEngine, monitor: SelfMonitor) -> None:
    mixes = [Mix(capping=False), Mix(capping=False)]
    guard = Guard(lambda: monitor, "warn")
    events = list(engine.stream_rows(conversation(ASKED), mixes, guard=guard))
    assert [event.row for event in events[:2]] == [0, 1] and all(map(verdict_of, events[:2]))
    refusing = Guard(lambda: tuned(monitor, ALWAYS, NEVER), "refuse")
    (only,) = engine.stream_rows(conversation(ASKED), mixes, guard=refusing)
    assert only.finish == "refused"


def test_a_reader_who_leaves_closes_the_stream(engine: SteeringEngine, monitor: SelfMonitor) -> None:
    before = [len(block._forward_hooks) for block in engine.model._blocks]
    events = engine.stream(conversation(ASKED), guard=Guard(lambda: monitor, "warn"))
    next(iter(events))
    events.close()  # type: ignore[attr-defined]
    assert [len(block._forward_hooks) for block in engine.model._blocks] == before


# In a conversation ------------------------------------------------------------------------------------------


def test_a_turn_is_logged_with_its_verdicts(engine: SteeringEngine, monitor: SelfMonitor) -> None:
    guard = Guard(lambda: monitor, "warn")
    talk = Conversation()
    talk.add_user(ASKED)
    reply = talk.begin_reply()
    list(ChatReply.to(talk, reply, engine.mix).write(engine, engine.sampling, guard))
    logged = talk.node(reply).runs[-1].stats["guard"]
    assert set(logged) == {"message", "reply"} and logged["message"]["monitor"] == "default"
    assert len(talk.node(reply).token_texts) == len(talk.node(reply).token_ids)


def test_a_refused_message_is_not_shown_to_the_model_again(
    engine: SteeringEngine, monitor: SelfMonitor
) -> None:
    guard = Guard(lambda: tuned(monitor, ALWAYS, NEVER), "refuse")
    talk = Conversation()
    talk.add_user("Something dangerous")
    reply = talk.begin_reply()
    list(ChatReply.to(talk, reply, engine.mix).write(engine, engine.sampling, guard))
    assert talk.node(reply).finish == "refused" and talk.node(reply).text == ""
    assert talk.node(reply).runs[-1].stats["guard"]["message"]["safe"] is False
    assert talk.messages() == []
    talk.add_user(ASKED)
    assert talk.messages() == conversation(ASKED)


def test_a_message_in_disguise_is_read_once_more(
    engine: SteeringEngine, model: ModelWrapper, monitor: SelfMonitor
) -> None:
    guard = Guard(lambda: monitor, "warn")
    hidden = " ".join(ASKED)
    with passes(model) as count:
        plain = stream(engine, None, hidden)
        without = count()
        assert [event.token_id for event in stream(engine, guard, hidden)[1:]] == [
            event.token_id for event in plain
        ]
        assert count() == 2 * without + 1
    assert guard.message == monitor.check(ASKED)
