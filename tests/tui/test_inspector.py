"""The inspector: a message token by token, beside the chat or over it."""

from __future__ import annotations

from pathlib import Path

import pytest
from textual.pilot import Pilot
from textual.widgets import Input

from persona_tui.chat import Conversation
from persona_tui.core.mix import Mix
from persona_tui.tui.app import PersonaApp
from persona_tui.tui.screens.fork import ForkScreen
from persona_tui.tui.screens.inspector import InspectorScreen
from persona_tui.tui.token_layout import rows_of
from persona_tui.tui.widgets.inspector import Inspector
from persona_tui.tui.widgets.token_view import Scale

from .driving import errors, never_ending, press, reply, running, say, until

pytestmark = pytest.mark.slow

SAGE = Mix({"sage": 1.0}, 0.3)
LIFTED = Mix({"sage": 1.0}, 0.3, percentile=40.0)  # some tokens are below such a floor
SIZES = [(80, 24), (200, 60)]


def inspector(app: PersonaApp) -> Inspector:
    screen = app.screen
    return screen.inspector if isinstance(screen, InspectorScreen) else app.main.inspector


def part(app: PersonaApp, name: str) -> str:
    return str(inspector(app).query_one(name).render())


async def opened(pilot: Pilot[None], app: PersonaApp) -> Inspector:
    """Open the inspector, and wait until every token is known."""
    await press(pilot, "f7")
    await until(pilot, lambda: bool(inspector(app).state.tokens), "a message")
    await until(pilot, lambda: len(inspector(app).state.values) == len(inspector(app).state.tokens), "values")
    return inspector(app)


@pytest.mark.parametrize("size", SIZES)
async def test_the_last_reply_token_by_token(workspace: Path, size: tuple[int, int]) -> None:
    async with running(workspace, size, LIFTED) as (app, pilot):
        await press(pilot, "f7")
        assert app.screen is app.main and not app.main.inspector.display, "there is nothing to inspect"
        await reply(pilot, app, "Who are you?")
        node, readings = app.chat.conversation.last_reply(), list(app.main.trace.readings)
        shown = await opened(pilot, app)
        assert (app.screen is app.main) == (size[0] >= 180)
        assert node is not None and [token.text for token in shown.state.tokens] == node.token_texts
        assert shown.state.values == [reading.projections["assistant"] for reading in readings]
        assert [token.lifted for token in shown.state.tokens] == [reading.lifted for reading in readings]
        head = part(app, "#inspect-head")
        lifted = sum(reading.lifted > 0 for reading in readings)
        assert "sage 0.30 · #2" in head and "on assistant  layer" in head
        assert f"▴ {lifted} of {len(readings)} capped" in head and "floor -" in head
        low, high = min(shown.state.values), max(shown.state.values)
        assert f"min {low:+.2f}" in head and f"max {high:+.2f}" in head and "mean" in head
        assert part(app, "#inspect-foot").startswith(f"1/{len(readings)} ")
        await press(pilot, "pagedown")  # the next that was lifted
        token, scale = shown.view.current, shown.state.lift
        assert token is not None and token.value is not None and token.lifted > 0 and scale is not None
        before = f"lifted from {token.value - token.lifted * scale:+.2f}σ"
        assert before in part(app, "#inspect-foot")
        await press(pilot, "escape")
        assert app.screen is app.main and app.focused is app.main.prompt


async def test_the_cursor_goes_through_tokens_and_to_what_stands_out(workspace: Path) -> None:
    async with running(workspace, (80, 24), SAGE) as (app, pilot):
        await reply(pilot, app, "Who are you?")
        shown = await opened(pilot, app)
        view, values = shown.view, shown.state.values
        await press(pilot, "right", "right", "left")
        assert view.cursor == 1 and part(app, "#inspect-foot").startswith("2/")
        await press(pilot, "l")
        assert values[view.cursor] == min(values)
        assert f"{min(values):+.2f}σ" in part(app, "#inspect-foot")
        await press(pilot, "h")
        assert values[view.cursor] == max(values)
        lifted = [place for place, token in enumerate(view.tokens) if token.lifted > 0]
        await press(pilot, "home", "c")
        assert not lifted or view.cursor in lifted
        await press(pilot, "end")
        assert view.cursor == len(values) - 1
        await press(pilot, "home", "down")
        assert len(view._rows) == 1 or view._row_of[view.cursor] == 1


async def test_a_key_changes_the_direction_and_what_was_not_projected_is_read_again(workspace: Path) -> None:
    async with running(workspace, (200, 60), SAGE) as (app, pilot):
        await reply(pilot, app, "Who are you?")
        await say(pilot, "/load trickster")
        shown = await opened(pilot, app)
        seen = {shown.state.direction}
        before = shown.state.values
        for _ in range(3):
            await press(pilot, "shift+right")
            await until(pilot, lambda: len(shown.state.values) == len(shown.state.tokens), "read again")
            seen.add(shown.state.direction)
        assert seen == {"assistant", "safety", "sage", "trickster"} and shown.state.direction == "trickster"
        await press(pilot, "shift+left", "shift+left", "shift+left")
        assert shown.state.direction == "assistant"
        assert shown.state.values == pytest.approx(before, abs=1e-3), "the pass gives what the writing gave"


async def test_a_resumed_session_is_read_as_it_was_written(workspace: Path) -> None:
    async with running(workspace, mix=SAGE) as (app, pilot):
        never_ending(app)
        await say(pilot, "Who are you?")
        await until(pilot, lambda: app.replies.last is not None and app.replies.last.count > 5, "tokens")
        turn = app.replies.last
        assert turn is not None
        await press(pilot, "ctrl+up", "ctrl+up", "ctrl+up")
        await until(pilot, lambda: turn.run is not None and bool(turn.run.changes), "another mix")
        count = turn.count
        await until(pilot, lambda: turn.count > count + 5, "tokens with that")
        await press(pilot, "escape")
        await until(pilot, lambda: not app.busy, "the reply")
        shown = await opened(pilot, app)
        written, lifted = shown.state.values, [token.lifted for token in shown.state.tokens]
        session = app.chat.session_id
    async with running(workspace, resume=session) as (app, pilot):
        await until(pilot, lambda: len(app.main.chat.messages) == 2, "resumed")
        shown = await opened(pilot, app)
        assert shown.state.values == pytest.approx(written, abs=1e-3)
        assert [token.lifted for token in shown.state.tokens] == pytest.approx(lifted, abs=1e-2)
        await press(pilot, "alt+up")
        await until(pilot, lambda: shown.state.message == 1, "the message before it")
        await until(pilot, lambda: bool(shown.state.values), "read")
        assert "".join(token.text for token in shown.state.tokens).strip() == "Who are you?"
        assert shown.state.floor is None
        await press(pilot, "alt+down")
        await until(pilot, lambda: shown.state.message == 2, "and back")


async def test_a_typed_reply_and_one_whose_persona_is_gone_are_read_too(workspace: Path) -> None:
    async with running(workspace, (200, 60), SAGE) as (app, pilot):
        await reply(pilot, app, "Who are you?")
        app.chat.conversation.edit(2, "A kind of stone.")
        app.replies.show()
        shown = await opened(pilot, app)
        assert "".join(token.text for token in shown.state.tokens) == "A kind of stone."
        await press(pilot, "escape", "alt+up", "left")
        await until(pilot, lambda: shown.state.message == 2, "the marked message")
        app.project.personas.delete("sage")
        app.inspection.forget()
        await until(pilot, lambda: bool(shown.state.values), "read without")
        assert "gone" in shown.state.note


async def test_a_reply_is_inspected_while_it_is_written(workspace: Path) -> None:
    async with running(workspace, (200, 60), SAGE) as (app, pilot):
        never_ending(app)
        await say(pilot, "Tell me a long story")
        await until(pilot, lambda: app.replies.last is not None and app.replies.last.count > 2, "tokens")
        await press(pilot, "f7")
        shown = app.main.inspector
        await until(pilot, lambda: len(shown.state.values) > 5, "the tokens so far")
        count = len(shown.state.values)
        await until(pilot, lambda: len(shown.state.values) > count, "and more")
        await press(pilot, "escape", "escape")
        await until(pilot, lambda: not app.busy, "stopped")
        node = app.chat.conversation.last_reply()
        assert node is not None and len(shown.state.values) == len(node.token_ids)
        await pilot.resize_terminal(30, 8)
        await until(pilot, lambda: not shown.display, "no room beside the chat")


async def test_a_command_inspects_a_message_by_its_number(workspace: Path) -> None:
    async with running(workspace, (200, 60), SAGE) as (app, pilot):
        await reply(pilot, app, "Who are you?")
        await say(pilot, "/inspect #9")
        assert "no message 9" in errors(app)[-1] and not app.main.inspector.display
        await say(pilot, "/inspect #1")
        await until(pilot, lambda: bool(inspector(app).state.values), "read")
        assert inspector(app).state.title.startswith("you · #1")
        await press(pilot, "escape")
        await say(pilot, "/inspect")
        assert inspector(app).state.title.startswith("sage 0.30 · #2")


async def test_answers_side_by_side_are_inspected_before_and_after_one_is_kept(workspace: Path) -> None:
    async with running(workspace, (200, 60), SAGE) as (app, pilot):
        await press(pilot, "f6")
        await say(pilot, "Who are you?")
        await until(pilot, lambda: app.replies.pending, "two answers")
        shown = await opened(pilot, app)
        values = shown.state.values
        await press(pilot, "escape", "alt+left")
        await until(pilot, lambda: shown.state.message == app.chat.conversation.path()[-1].id, "the kept one")
        assert shown.state.values == values
        await until(pilot, lambda: bool(shown.state.choices and shown.state.heat), "what is known of a token")


def test_a_conversation_of_another_time_is_left_alone(workspace: Path) -> None:
    """What comes back from the model's thread for a conversation that is not open any more is not shown."""
    from persona_tui.project.project import Project
    from persona_tui.tui.messages import MessageReread

    app = PersonaApp(Project.open(workspace), Mix())
    app.inspection.reread(MessageReread(Conversation(), 1, None, ValueError("late")))
    assert app.inspection._notes == {}
    app.worker.close(10)


def test_rows_hold_every_token_and_break_between_words() -> None:
    texts = ["The", " old", " b", "ooks", "", " say", "\n", "日本語", " a_very_long_word_that_does_not_fit"]
    for width in (8, 12, 40):
        rows = rows_of(texts, width)
        assert {piece.token for row in rows for piece in row} == set(range(len(texts)))
        assert all(piece.start + piece.width <= width for row in rows for piece in row)
    first = ["".join(piece.text for piece in row) for row in rows_of(texts[:4], 9)]
    assert first == ["The old ", "books"]


def test_bars_and_colours_lie_around_the_floor() -> None:
    scale = Scale(middle=-1.0, span=2.0)
    assert [scale.bar(value) for value in (-3, -1, 1, 9)] == ["▁", "▅", "█", "█"]
    assert [scale.level(value) for value in (-3, -1, 0, 9)] == [-3, 0, 2, 3]


@pytest.mark.parametrize("size", SIZES)
async def test_a_token_says_how_probable_it_was_and_a_reply_goes_on_differently(
    workspace: Path, size: tuple[int, int]
) -> None:
    async with running(workspace, size, SAGE) as (app, pilot):
        await reply(pilot, app, "Who are you?")
        node, events = app.chat.conversation.last_reply(), app.replies.last
        assert node is not None and events is not None
        shown = await opened(pilot, app)
        await until(pilot, lambda: bool(inspector(app).state.choices), "probabilities")
        logprobs = [choice.logprob for choice in shown.state.choices]
        assert logprobs == pytest.approx([event.logprob for event in events.events], abs=1e-3)
        await press(pilot, "right", "right")
        foot = part(app, "#inspect-foot")
        assert "rank" in foot and "unsteered" in foot and "nats" in foot
        await press(pilot, "enter")
        await until(pilot, lambda: isinstance(app.screen, ForkScreen), "asked what instead")
        screen = app.screen
        assert isinstance(screen, ForkScreen)
        await until(pilot, lambda: screen.focused is not None, "a list")
        wanted = screen._offered[0]
        before = app.replies.last
        await press(pilot, "enter")
        await until(pilot, lambda: app.replies.last is not before and not app.busy, "it goes on")
        other = app.chat.conversation.last_reply()
        assert other is not None and other.id != node.id and other.parent == node.parent
        assert other.text.startswith("".join(node.token_texts[:2]) + wanted) and other.runs
        assert app.chat.conversation.siblings(other.id) == (1, 2) and app.screen is app.main
        assert node.text == app.chat.conversation.node(node.id).text


@pytest.mark.parametrize("size", SIZES)
async def test_a_token_has_a_strip_of_its_layers(workspace: Path, size: tuple[int, int]) -> None:
    async with running(workspace, size, SAGE) as (app, pilot):
        await reply(pilot, app, "Who are you?")
        shown = await opened(pilot, app)
        await until(pilot, lambda: shown.state.heat is not None, "the layers")
        heat = shown.state.heat
        assert heat is not None and heat.name == "assistant" and len(heat.tokens) == len(shown.state.tokens)
        foot = part(app, "#inspect-foot")
        assert f"layers    {heat.layers[0]}" in foot and "of the stream, at layer" in foot
        await press(pilot, "right")
        assert part(app, "#inspect-foot") != foot
        assert all(len(line) <= shown.size.width for line in part(app, "#inspect-foot").splitlines()[-4:])
        await press(pilot, "shift+right")
        await until(
            pilot, lambda: shown.state.heat is not None and shown.state.heat.name != "assistant", "another"
        )
        app.inspection.turned("message", -1)
        assert shown.state.heat is None and "of the stream" not in part(app, "#inspect-foot"), "the user's"


async def test_own_words_in_place_of_a_token(workspace: Path) -> None:
    async with running(workspace, (80, 24), SAGE) as (app, pilot):
        await reply(pilot, app, "Who are you?")
        node = app.chat.conversation.last_reply()
        assert node is not None
        await opened(pilot, app)
        await press(pilot, "right", "right", "enter")
        await until(pilot, lambda: isinstance(app.screen, ForkScreen), "asked what instead")
        app.screen.query_one("#fork-own", Input).value = "bread"
        app.screen.set_focus(app.screen.query_one("#fork-own"))
        before = app.replies.last
        await press(pilot, "enter")
        await until(pilot, lambda: app.replies.last is not before and not app.busy, "it goes on")
        other = app.chat.conversation.last_reply()
        assert (
            other is not None
            and "bread" in other.text
            and other.text[: len(node.token_texts[0])] == node.token_texts[0]
        )


@pytest.mark.parametrize("size", SIZES)
async def test_what_is_known_of_a_token_stands_right_below_a_short_message(
    workspace: Path, size: tuple[int, int]
) -> None:
    async with running(workspace, size, SAGE) as (app, pilot):
        await reply(pilot, app, "Who are you?")
        shown = await opened(pilot, app)
        await pilot.pause()
        view, foot = shown.view, shown.query_one("#inspect-foot")
        assert view.max_scroll_y == 0 and view.region.height == view.virtual_size.height
        assert foot.region.y == view.region.bottom + 1
        never_ending(app)
        app.chat.sampling_changes = {"max_new_tokens": 400}
        await press(pilot, "escape")
        await reply(pilot, app, "Tell me a long story about a walk by the sea.")
        shown = await opened(pilot, app)
        await until(pilot, lambda: shown.view.max_scroll_y > 0, "a long one scrolls")
        assert foot_fits(shown)
        await press(pilot, "end")
        await until(pilot, lambda: foot_fits(shown), "what is said of the last token is on the screen")


def foot_fits(shown: Inspector) -> bool:
    """Whether all that is said of a token is inside the frame."""
    return shown.query_one("#inspect-foot").region.bottom <= shown.content_region.bottom
