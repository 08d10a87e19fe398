"""Talking: sending, streaming, stopping, writing anew."""

from __future__ import annotations

from pathlib import Path

import pytest
from textual import events

from .driving import LONGEST, never_ending, notes, press, running, say, until

SIZES = [(80, 24), (120, 40)]


@pytest.mark.parametrize("size", SIZES)
async def test_a_reply_streams_and_is_kept(workspace: Path, size: tuple[int, int]) -> None:
    async with running(workspace, size) as (app, pilot):
        await say(pilot, "What is bread?")
        await until(pilot, lambda: app.replies.last is not None and app.replies.last.count > 0, "a token")
        await until(pilot, lambda: not app.busy, "the reply ends")
        blocks = app.main.chat.messages
        assert [block.role for block in blocks] == ["user", "assistant"]
        said = app.chat.conversation.messages()
        assert [message["role"] for message in said] == ["user", "assistant"]
        assert said[1]["content"] == blocks[1].source.strip() != ""
        turn = app.replies.last
        assert turn is not None
        assert (
            f"{turn.count} tokens" in blocks[1].heading
            and f"prompt {turn.prompt_tokens}" in blocks[1].heading
        )
        assert app.main.status.status.speed is not None
        assert len(app.main.trace.readings) == turn.count


async def test_escape_stops_and_keeps_what_was_said(workspace: Path) -> None:
    async with running(workspace) as (app, pilot):
        never_ending(app)
        await say(pilot, "Tell me a long story")
        await until(pilot, lambda: app.replies.last is not None and app.replies.last.count > 3, "tokens")
        await press(pilot, "escape")
        await until(pilot, lambda: not app.busy, "the reply ends")
        turn = app.replies.last
        assert turn is not None and turn.finish == "cancelled" and turn.count < LONGEST
        assert app.chat.conversation.messages()[-1]["role"] == "assistant"
        assert app.is_running


async def test_f5_writes_the_reply_anew(workspace: Path) -> None:
    async with running(workspace) as (app, pilot):
        await say(pilot, "Hello")
        await until(pilot, lambda: not app.busy, "the first reply")
        first = app.replies.last
        await press(pilot, "f5")
        await until(pilot, lambda: not app.busy and app.replies.last is not first, "the second reply")
        assert [block.role for block in app.main.chat.messages] == ["user", "assistant"]
        assert len(app.chat.conversation.path()) == 2
        assert "‹2/2›" in app.main.chat.messages[1].heading


async def test_ctrl_j_and_a_paste_make_lines_and_send_nothing(workspace: Path) -> None:
    async with running(workspace) as (app, pilot):
        await press(pilot, "a", "ctrl+j", "b")
        app.post_message(events.Paste("one\r\ntwo\rthree"))
        await until(
            pilot, lambda: app.main.prompt.text == "a\nbone\ntwo\nthree", "the paste is inserted whole"
        )
        assert not app.main.chat.messages


async def test_a_second_message_waits_for_the_first_reply(workspace: Path) -> None:
    async with running(workspace) as (app, pilot):
        never_ending(app)
        await say(pilot, "First")
        await say(pilot, "Second")
        await until(pilot, lambda: app.main.prompt.text == "Second", "the second message waits in the prompt")
        assert app.busy
        await press(pilot, "escape")
        await until(pilot, lambda: not app.busy, "the reply ends")


async def test_slash_commands_answer_and_complete(workspace: Path) -> None:
    async with running(workspace) as (app, pilot):
        await press(pilot, "slash", "s", "t", "r")
        assert app.main.prompt._completions.chosen == "/strength "
        await press(pilot, "tab", *"0.5", "enter")
        assert app.chat.mix.strength == 0.5
        assert app.project.engine.mix.strength == 0.5
        await say(pilot, "/streng 1")
        assert "/strength" in notes(app)[-1]


async def test_the_chat_follows_until_the_reader_scrolls(workspace: Path) -> None:
    async with running(workspace) as (app, pilot):
        for number in range(30):
            app.main.chat.note(f"note {number}")
        await pilot.pause()
        chat = app.main.chat
        assert chat.scroll_y == chat.max_scroll_y
        await press(pilot, "pageup")
        await until(pilot, lambda: chat.scroll_y < chat.max_scroll_y, "scrolled")
        place = chat.scroll_y
        chat.note("later")
        await pilot.pause()
        assert chat.scroll_y == place
