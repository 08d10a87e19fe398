"""Conversations are saved as they happen, and taken up again."""

from __future__ import annotations

from pathlib import Path

import pytest

from persona_tui.chat import SessionStore
from persona_tui.core.mix import Mix
from persona_tui.core.workspace import Workspace
from persona_tui.tui.screens.ask import AskScreen
from persona_tui.tui.screens.confirm import ConfirmScreen
from persona_tui.tui.screens.sessions import SessionList, SessionsScreen

from .driving import notes, press, reply, running, say, until

pytestmark = pytest.mark.slow


def store(workspace: Path) -> SessionStore:
    return SessionStore(Workspace.find(workspace))


async def listed(app, pilot, count: int) -> SessionList:  # type: ignore[no-untyped-def]
    await until(pilot, lambda: isinstance(app.screen, SessionsScreen), "the screen")
    sessions = app.screen.query_one(SessionList)
    await until(pilot, lambda: sessions.option_count == count, f"{count} rows")
    return sessions


async def test_nothing_is_saved_before_something_is_said(workspace: Path) -> None:
    async with running(workspace) as (app, pilot):
        await press(pilot, "ctrl+up")
        assert store(workspace).list() == []
        await reply(pilot, app, "What is bread?")
        assert [info.title for info in store(workspace).list()] == ["What is bread?"]


async def test_a_session_has_the_mix_where_it_changed_and_is_resumed_with_it(workspace: Path) -> None:
    async with running(workspace, mix=Mix({"sage": 1.0}, 0.3)) as (app, pilot):
        await reply(pilot, app, "What is bread?")
        await press(pilot, "ctrl+up", "ctrl+up")
        await say(pilot, "/system You are brief.")
        await reply(pilot, app, "And soup?")
        texts = [block.source for block in app.main.chat.messages]
        session = app.chat.session_id
        assert session is not None
        app.chat.close()
    conversation, events = store(workspace).load(session)
    mixes = [event.fields["mix"]["strength"] for event in events if event.kind == "mix"]
    assert mixes == [0.35, 0.4]
    assert conversation.system == "You are brief."
    assert [node.text for node in conversation.path()] == texts

    async with running(workspace) as (app, pilot):
        await say(pilot, f"/resume {session}")
        await until(pilot, lambda: len(app.main.chat.messages) == 4, "it is on the screen")
        assert [block.source for block in app.main.chat.messages] == texts
        assert app.chat.mix.weights == {"sage": 1.0} and app.chat.mix.strength == 0.4
        assert app.chat.conversation.system == "You are brief."
        rulers = [block.text for block in app.main.chat.blocks if type(block).__name__ == "Ruler"]
        assert rulers == ["strength 0.30 → 0.40"]
        await reply(pilot, app, "And tea?")
        assert app.chat.session_id == session
        assert len(store(workspace).load(session)[0].path()) == 6


async def test_the_list_finds_renames_and_deletes(workspace: Path) -> None:
    async with running(workspace) as (app, pilot):
        await reply(pilot, app, "What is bread?")
        await say(pilot, "/new")
        await reply(pilot, app, "Tell me about the wind")
        await press(pilot, "f8")
        sessions = await listed(app, pilot, 2)
        await press(pilot, "slash", *"BREAD")
        await until(pilot, lambda: sessions.option_count == 1, "found")
        await press(pilot, "enter", "r")
        await until(pilot, lambda: isinstance(app.screen, AskScreen), "asked for a title")
        await press(pilot, *" and butter", "enter")
        await until(pilot, lambda: "butter" in str(sessions.get_option_at_index(0).prompt), "renamed")
        await press(pilot, "delete")
        await until(pilot, lambda: isinstance(app.screen, ConfirmScreen), "asked")
        assert app.focused is not None and app.focused.id == "no"
        await press(pilot, "right", "enter")
        await until(pilot, lambda: len(store(workspace).list()) == 1, "deleted")
        assert store(workspace).list()[0].title == "Tell me about the wind"


async def test_the_open_session_cannot_be_deleted_and_another_is_gone_on_with(workspace: Path) -> None:
    async with running(workspace) as (app, pilot):
        await reply(pilot, app, "What is bread?")
        await say(pilot, "/new")
        await reply(pilot, app, "Tell me about the wind")
        await press(pilot, "f8")
        await listed(app, pilot, 2)
        await press(pilot, "delete")
        assert "open" in str(app.screen.query_one("#session-note").render())
        await press(pilot, "down", "enter")
        await until(pilot, lambda: app.screen is app.main, "chosen")
        await until(pilot, lambda: app.main.chat.messages[0].source == "What is bread?", "resumed")
        assert "Resumed" in notes(app)[-1]


async def test_a_session_is_exported(workspace: Path, tmp_path: Path) -> None:
    async with running(workspace) as (app, pilot):
        await reply(pilot, app, "What is bread?")
        target = tmp_path / "talk.md"
        await say(pilot, f"/export {target}")
        await until(pilot, target.is_file, "written")
        assert "What is bread?" in target.read_text(encoding="utf-8")


async def test_prompts_are_remembered_by_the_next_run(workspace: Path) -> None:
    async with running(workspace) as (app, pilot):
        await say(pilot, "/strength 0.4")
        await say(pilot, "/strength 0.5")
        await press(pilot, "up", "up")
        assert app.main.prompt.text == "/strength 0.4"
    async with running(workspace) as (app, pilot):
        await press(pilot, "up")
        assert app.main.prompt.text == "/strength 0.5"
        await press(pilot, "down")
        assert app.main.prompt.text == ""


async def test_the_app_can_be_started_with_a_session(workspace: Path) -> None:
    async with running(workspace) as (app, pilot):
        await reply(pilot, app, "What is bread?")
        session = app.chat.session_id
        app.chat.close()
    async with running(workspace, resume=session) as (app, _):
        await until(_, lambda: len(app.main.chat.messages) == 2, "it is there")
    assert [info.id for info in store(workspace).list()] == [session]
