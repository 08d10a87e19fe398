"""Where typed text goes: to the prompt, whatever has the focus; and nothing that is pressed ends the app."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path

import pytest
from textual import events
from textual.widgets import OptionList, TextArea

from persona_tui.core.errors import PersonaTuiError
from persona_tui.core.mix import Mix
from persona_tui.project.project import Project
from persona_tui.tui.app import PersonaApp
from persona_tui.tui.screens.confirm import ConfirmScreen
from persona_tui.tui.screens.write import WriteScreen
from persona_tui.tui.widgets.slider import FloatSlider

from .driving import TIMEOUT, notes, press, reply, running, until

pytestmark = pytest.mark.slow

LONG = "\n".join(f"line {number}" for number in range(40))
BESIDE = ("#persona-list", "#master", "#capping", "#capping-axis", "#floor", "#layers", "#job-list")


def there(workspace: Path) -> set[str]:
    return {path.name for path in workspace.rglob("vectors/*/*/*.safetensors")}


@pytest.mark.parametrize("size", [(80, 24), (120, 40)])
async def test_after_speak_as_the_keys_go_to_the_prompt(workspace: Path, size: tuple[int, int]) -> None:
    before = there(workspace)
    async with running(workspace, size) as (app, pilot):
        await press(pilot, "f2", "enter")
        assert app.focused is app.main.prompt and len(app.chat.mix.weights) == 1
        await press(pilot, *"daily")
        assert app.main.prompt.text == "daily"
        assert app.screen is app.main and there(workspace) == before


async def test_beside_the_chat_no_letter_does_anything(workspace: Path) -> None:
    async with running(workspace, (120, 40)) as (app, pilot):
        await press(pilot, "f4")  # the list of jobs, too
        before, mix = there(workspace), app.chat.mix
        for place in BESIDE:
            app.main.prompt.replace_text("")
            app.main.set_focus(app.main.query_one(place))
            await press(pilot, *"dycnis0-5/")
            assert app.main.prompt.text == "dycnis0-5/", place
            assert app.focused is app.main.prompt and app.screen is app.main, place
        assert app.chat.mix == mix and there(workspace) == before


async def test_keys_that_come_all_at_once_keep_their_order(workspace: Path) -> None:
    text = "they must not overtake each other"
    async with running(workspace, (120, 40)) as (app, pilot):
        app.main.set_focus(app.main.query_one("#persona-list"))
        for letter in text:
            app.post_message(events.Key("space" if letter == " " else letter, letter))
        await until(pilot, lambda: len(app.main.prompt.text) == len(text), "all has arrived")
        assert app.main.prompt.text == text


async def test_keys_behind_one_that_moves_the_focus_wait_for_it(workspace: Path) -> None:
    async with running(workspace) as (app, pilot):
        for key in ("f2", "enter", *"daily"):
            app.post_message(events.Key(key, key if len(key) == 1 else None))
        await until(pilot, lambda: app.main.prompt.text == "daily", "typed, and not sent")
        assert len(app.chat.mix.weights) == 1 and not app.main.chat.messages


async def test_space_acts_only_where_a_panel_was_entered_by_its_key(workspace: Path) -> None:
    async with running(workspace, (120, 40)) as (app, pilot):
        app.main.set_focus(app.main.query_one("#persona-list"))
        await press(pilot, "space")
        assert app.main.prompt.text == " " and app.project.personas.list_loaded() == []
        await press(pilot, "f2", "space")
        assert len(app.project.personas.list_loaded()) == 1 and app.main.prompt.text == " "


async def test_a_click_and_a_switch_give_the_keys_back(workspace: Path) -> None:
    async with running(workspace, (120, 40)) as (app, pilot):
        await press(pilot, "f2")
        assert app.focused is app.main.query_one("#persona-list")
        await pilot.click("#persona-list", offset=(3, 0))
        await until(pilot, lambda: bool(app.chat.mix.weights), "somebody speaks")
        assert app.focused is app.main.prompt
        capping = app.chat.mix.capping
        app.main.set_focus(app.main.query_one("#capping"))
        await press(pilot, "enter")
        assert app.chat.mix.capping is not capping and app.focused is app.main.prompt
        await pilot.click("#master", offset=(14, 0))
        assert app.focused is app.main.prompt


async def test_a_value_is_typed_on_a_fader_after_enter(workspace: Path) -> None:
    async with running(workspace, (120, 40)) as (app, pilot):
        await press(pilot, "f3", "enter", *"-0.45", "enter")
        await until(pilot, lambda: app.chat.mix.strength == -0.45, "taken")
        assert app.main.prompt.text == "" and isinstance(app.focused, FloatSlider)
        await press(pilot, "enter", "7", "escape", "home")
        await until(pilot, lambda: app.chat.mix.strength == 0, "zero")


async def test_a_marked_message_is_copied_by_a_letter_and_the_rest_is_typed(workspace: Path) -> None:
    async with running(workspace) as (app, pilot):
        await reply(pilot, app, "Hello")
        await press(pilot, "alt+up", "r")
        assert app.focused is app.main.prompt and app.main.prompt.text == "r" and not app.busy
        await press(pilot, "alt+up", "y")
        assert app.main.chat.has_focus and app.main.prompt.text == "r"


async def test_a_deleted_persona_comes_back_with_its_voice(workspace: Path) -> None:
    before = there(workspace)
    async with running(workspace, (120, 40), mix=Mix({"sage": 1.0}, 0.25)) as (app, pilot):
        names = app.project.personas.list_available()
        await press(pilot, "f2", *["down"] * names.index("sage"), "delete")
        assert isinstance(app.screen, ConfirmScreen)
        await press(pilot, "y", "enter")  # no letter means yes, and "no" has the focus
        assert there(workspace) == before and app.screen is app.main
        await press(pilot, "delete", "right", "enter")
        await until(pilot, lambda: "sage" not in app.project.personas.list_available(), "deleted")
        assert app.chat.mix.weights == {}
        assert [path.name for path in (workspace / "trash").rglob("*.safetensors")] == ["sage.safetensors"]
        await press(pilot, "ctrl+t")
        assert there(workspace) == before and app.chat.mix.weights == {"sage": 1.0}
        assert not list((workspace / "trash").rglob("*.safetensors"))
        await press(pilot, "ctrl+t")  # there is nothing more
        assert app.is_running


async def test_a_deleted_session_comes_back(workspace: Path) -> None:
    async with running(workspace) as (app, pilot):
        await reply(pilot, app, "What is bread?")
        app.action_new_chat()
        await press(pilot, "f8")
        rows = app.screen.query_one(OptionList)
        await until(pilot, lambda: rows.option_count == 1, "listed")
        await press(pilot, "delete", "right", "enter")
        await until(pilot, lambda: rows.option_count == 0, "deleted")
        await press(pilot, "ctrl+t")
        await until(pilot, lambda: rows.option_count == 1, "back")


@pytest.mark.parametrize("keys", [("ctrl+z",), ("ctrl+z", "ctrl+y"), ("f7", "delete", "ctrl+z", "ctrl+y")])
async def test_undoing_a_long_paste_in_the_prompt(workspace: Path, keys: tuple[str, ...]) -> None:
    async with running(workspace) as (app, pilot):
        app.post_message(events.Paste(LONG))
        await until(pilot, lambda: app.main.prompt.text == LONG, "pasted")
        await press(pilot, *keys)
        assert app.main.prompt.text in ("", LONG)


async def test_undoing_a_long_paste_in_the_system_prompt(workspace: Path) -> None:
    async with running(workspace) as (app, pilot):
        await press(pilot, "ctrl+s")
        await until(pilot, lambda: isinstance(app.screen, WriteScreen), "open")
        area = app.screen.query_one(TextArea)
        app.post_message(events.Paste(LONG))
        await until(pilot, lambda: area.text == LONG, "pasted")
        await press(pilot, "ctrl+z", "ctrl+y", "ctrl+z")
        assert area.text == ""


async def test_keys_before_the_first_paint_are_taken(workspace: Path) -> None:
    app = PersonaApp(Project.open(workspace))

    async def at_once() -> None:
        while not app._running:  # there is a queue, and not yet a screen
            await asyncio.sleep(0)
        for key in ("f2", "f3", "f4", "alt+up", "escape", "H", "i", "left", "o"):
            app.post_message(events.Key(key, key if len(key) == 1 else None))
        app.post_message(events.Paste("!"))

    typing = asyncio.create_task(at_once())
    try:
        async with app.run_test() as pilot:
            await until(pilot, lambda: app.main.prompt.text == "Ho!i", "all of it")
            await typing
            assert app.failures == []
            await until(pilot, lambda: app.model_ready, "loaded")
    finally:
        assert app.worker.close(timeout=TIMEOUT)
        app.chat.close()


async def test_an_action_that_fails_is_one_line_and_an_entry_in_the_log(workspace: Path) -> None:
    async with running(workspace) as (app, pilot):

        def fails() -> None:
            raise RuntimeError("out of\ncheese")

        app.action_show_help = fails
        app.main.prompt.on_text_area_changed = fails
        await press(pilot, "f1")
        assert [str(error) for error in app.failures] == ["out of\ncheese"]
        app.failures.clear()
        shown = [notice.message for notice in app._notifications]
        assert any("out of cheese" in line and "\n" not in line for line in shown)
        logged = next((workspace / "logs").iterdir()).read_text(encoding="utf-8")
        assert "RuntimeError: out of cheese" in logged and "Traceback" in logged
        app.attempt(lambda: (_ for _ in ()).throw(PersonaTuiError("yours")))
        assert app.failures == [] and app.is_running


async def test_a_session_resumed_while_the_model_loads_keeps_its_persona(workspace: Path) -> None:
    async with running(workspace, mix=Mix({"sage": 1.0}, 0.25)) as (app, pilot):
        await reply(pilot, app, "What is bread?")
        session = app.chat.session_id
    assert session is not None
    app, loads = PersonaApp(Project.open(workspace)), threading.Event()
    app.worker.submit_turn(lambda: loads.wait(TIMEOUT))  # the model is not loaded before that
    try:
        async with app.run_test() as pilot:
            app.resume(session)
            assert "resumed as soon as" in notes(app)[-1]
            app.main.prompt.replace_text("And salt?")
            await press(pilot, "enter")  # too early: it must not go to another conversation, nor get lost
            assert app.main.prompt.text == "And salt?"
            loads.set()
            await until(pilot, lambda: app.model_ready, "loaded")
            await until(pilot, lambda: app.chat.session_id == session, "resumed")
            assert app.chat.mix.weights == {"sage": 1.0} and app.chat.mix.strength == 0.25
            assert app.main.prompt.text == "And salt?"
    finally:
        assert app.worker.close(timeout=TIMEOUT)
        app.chat.close()


async def test_an_empty_prompt_without_any_room_is_painted_as_nothing(workspace: Path) -> None:
    async with running(workspace, (120, 40)) as (app, pilot):
        app.main.prompt.styles.width = 0
        await until(pilot, lambda: app.main.prompt.content_size.width == 0, "there is no room")
        assert app.main.prompt.render_line(0).cell_length == 0 and not app.failures


async def test_a_letter_with_alt_is_no_text(workspace: Path) -> None:
    async with running(workspace, (120, 40)) as (app, pilot):
        await press(pilot, "h", "alt+t", "alt+c", "i")
        assert app.main.prompt.text == "hi" and app.tints.mode == "surprise"
