"""What is done with a message: edit and branch, walk, write anew, continue, copy."""

from __future__ import annotations

from pathlib import Path

import pytest
from textual import events

from persona_tui.tui.app import PersonaApp

from .driving import never_ending, press, reply, running, say, until

pytestmark = pytest.mark.slow


def said(app: PersonaApp) -> list[str]:
    """Return the messages on the screen, the user's only."""
    return [block.source for block in app.main.chat.messages if block.role == "user"]


async def test_an_edited_message_is_a_branch_and_both_can_be_walked(workspace: Path) -> None:
    async with running(workspace) as (app, pilot):
        await reply(pilot, app, "What is bread?")
        await reply(pilot, app, "And soup?")
        first = app.main.chat.messages[1].source
        await press(pilot, *"draft", "alt+up", "up", "up", "up", "e")
        prompt = app.main.prompt
        assert prompt.has_focus and prompt.text == "What is bread?"
        assert app.main.query_one("#prompt-note").display
        await press(pilot, "backspace", *" made of?", "enter")
        await until(pilot, lambda: not app.busy, "the answer to the new form")
        assert prompt.text == "draft", "what was being written is back"
        assert said(app) == ["What is bread made of?"]
        assert "‹2/2›" in app.main.chat.messages[0].heading
        await press(pilot, "alt+up", "up", "left")
        await until(pilot, lambda: said(app) == ["What is bread?", "And soup?"], "the first branch, whole")
        assert app.main.chat.messages[1].source == first
        assert app.main.chat.marked is app.main.chat.messages[0]
        await press(pilot, "right")
        await until(pilot, lambda: said(app) == ["What is bread made of?"], "the second one")


async def test_escape_leaves_an_edited_message_as_it_was(workspace: Path) -> None:
    async with running(workspace) as (app, pilot):
        await reply(pilot, app, "What is bread?")
        await press(pilot, "alt+up", "up", "e", *"xyz", "escape")
        assert app.main.prompt.text == "" and app.main.prompt.editing is None
        assert not app.main.query_one("#prompt-note").display
        assert len(app.chat.conversation) == 2


async def test_a_reply_can_be_put_in_the_models_mouth(workspace: Path) -> None:
    async with running(workspace) as (app, pilot):
        await reply(pilot, app, "What is bread?")
        await press(pilot, "alt+up", "e")
        app.main.prompt.replace_text("Bread is a kind of stone, and")
        await press(pilot, "enter")
        await until(pilot, lambda: "written by you" in app.main.chat.messages[1].heading, "it stands")
        assert not app.busy
        await say(pilot, "/continue")
        await until(pilot, lambda: not app.busy and app.replies.last is not None, "it goes on")
        text = app.main.chat.messages[1].source
        assert text.startswith("Bread is a kind of stone, and") and len(text) > 40


async def test_a_stopped_reply_goes_on_where_it_ended(workspace: Path) -> None:
    async with running(workspace) as (app, pilot):
        never_ending(app)
        await say(pilot, "Tell me a long story")
        await until(pilot, lambda: app.replies.last is not None and app.replies.last.count > 5, "tokens")
        await press(pilot, "escape")
        await until(pilot, lambda: not app.busy, "stopped")
        block = app.main.chat.messages[-1]
        assert "stopped" in block.heading
        before = block.source
        await press(pilot, "alt+up", "ctrl+o")
        turn = app.replies.last
        await until(pilot, lambda: turn is not None and app.replies.last is turn and turn.count > 5, "more")
        await press(pilot, "escape")
        await until(pilot, lambda: not app.busy, "stopped again")
        after = app.main.chat.messages[-1].source
        assert after.startswith(before) and len(after) > len(before)
        assert len(app.main.chat.messages) == 2


async def test_messages_and_code_are_copied(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")  # no program for a clipboard: the terminal's only
    async with running(workspace) as (app, pilot):
        await reply(pilot, app, "What is bread?")
        await press(pilot, "alt+up", "y")
        assert app.clipboard == app.main.chat.messages[1].source.strip()
        await press(pilot, "up", "y")
        assert app.clipboard == "What is bread?"
        code = "Two:\n\n```\none\n```\n\n```python\ntwo\n```\n"
        app.chat.conversation.edit(2, code)
        app.replies.show()
        await press(pilot, "down", "c")
        assert app.clipboard == "two\n"
        await press(pilot, "c")
        assert app.clipboard == "one\n"
        await press(pilot, "escape")
        await say(pilot, "/copy")
        assert app.clipboard == code.strip()


async def test_nothing_is_changed_while_a_reply_is_written(workspace: Path) -> None:
    async with running(workspace) as (app, pilot):
        never_ending(app)
        await say(pilot, "Tell me a long story")
        await until(pilot, lambda: app.replies.last is not None and app.replies.last.count > 2, "tokens")
        await press(pilot, "alt+up", "e", "left", "f5")
        assert app.main.prompt.editing is None and len(app.chat.conversation) == 2
        await say(pilot, "/new")
        assert app.busy
        await press(pilot, "escape", "escape")
        await until(pilot, lambda: not app.busy, "stopped")


async def test_keys_in_quick_succession_go_to_the_messages(workspace: Path) -> None:
    async with running(workspace) as (app, pilot):
        await reply(pilot, app, "What is bread?")
        for key in ("alt+up", "up"):
            app.post_message(events.Key(key, None))
        first = app.main.chat.messages[0]
        await until(pilot, lambda: app.main.chat.marked is first, "the first message is marked")
        assert app.main.prompt.text == "", "and nothing was fetched from the history"
