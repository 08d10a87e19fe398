"""Dialogs: sampling, system prompt, traces, layers, details, help, making a persona."""

from __future__ import annotations

from pathlib import Path

import pytest
from textual.pilot import Pilot
from textual.widgets import Input, Static

from persona_tui.core.mix import Mix
from persona_tui.tui.app import PersonaApp
from persona_tui.tui.screens.create import CreateScreen, split_prompts
from persona_tui.tui.screens.dialog import Dialog
from persona_tui.tui.screens.page import PageScreen
from persona_tui.tui.screens.sampling import SamplingScreen
from persona_tui.tui.screens.traces import TracesScreen
from persona_tui.tui.screens.write import WriteScreen

from .driving import notes, press, running, say, until

pytestmark = pytest.mark.slow

SIZES = [(80, 24), (120, 40), (200, 60)]


async def shows(app: PersonaApp, pilot: Pilot[None], screen: type[Dialog]) -> None:  # type: ignore[type-arg]
    """Wait until a dialog is open, and make sure that all of it is on the terminal."""
    await until(pilot, lambda: isinstance(app.screen, screen), screen.__name__)
    await pilot.pause()
    whole = app.screen.region
    for widget in app.screen.query("Button, Input, OptionList, TextArea"):
        assert whole.contains_region(widget.region), f"{widget} is cut off"
        assert widget.region.height > 0, f"{widget} is not shown"


@pytest.mark.parametrize("size", SIZES)
async def test_sampling_by_key(workspace: Path, size: tuple[int, int]) -> None:
    async with running(workspace, size) as (app, pilot):
        await press(pilot, "f9")
        await shows(app, pilot, SamplingScreen)
        app.screen.query_one("#temperature", Input).value = "900"
        await press(pilot, "enter")
        assert "temperature must be a number from 0" in str(app.screen.query_one("#advice", Static).render())
        app.screen.query_one("#temperature", Input).value = "0.5"
        app.screen.query_one("#seed", Input).value = ""
        await press(pilot, "enter")
        await until(pilot, lambda: app.screen is app.main, "taken")
        assert app.chat.sampling_changes == {"temperature": 0.5, "seed": None}
        assert "temperature 0.5" in notes(app)[-1] and "seed none" in notes(app)[-1]
        await say(pilot, "/sampling")
        await shows(app, pilot, SamplingScreen)
        app.screen.query_one("#reset").focus()
        await press(pilot, "enter")
        await until(pilot, lambda: app.chat.sampling_changes == {}, "as configured")


@pytest.mark.parametrize("size", SIZES)
async def test_the_system_prompt_is_written_and_taken_away(workspace: Path, size: tuple[int, int]) -> None:
    async with running(workspace, size) as (app, pilot):
        await press(pilot, "ctrl+s")
        await shows(app, pilot, WriteScreen)
        await press(pilot, *"One", "enter", *"Two", "ctrl+s")
        await until(pilot, lambda: app.chat.conversation.system == "One\nTwo", "taken")
        await press(pilot, "ctrl+s")
        await shows(app, pilot, WriteScreen)
        await press(pilot, *" more", "escape")
        assert app.chat.conversation.system == "One\nTwo"
        await say(pilot, "/system")
        await shows(app, pilot, WriteScreen)
        app.screen.query_one("#clear").focus()
        await press(pilot, "enter")
        await until(pilot, lambda: app.chat.conversation.system is None, "none")


async def test_what_is_traced_is_chosen(workspace: Path) -> None:
    async with running(workspace, mix=Mix({"sage": 1.0})) as (app, pilot):
        trace = app.main.trace
        await until(pilot, lambda: trace.names == ["assistant"], "at first")
        await say(pilot, "/trace")
        await shows(app, pilot, TracesScreen)
        await press(pilot, "space", "down", "down", "space", "enter")
        await until(pilot, lambda: trace.names == ["sage"], "sage alone")
        await press(pilot, "f2", "ctrl+o")  # creator, the first in the list
        await until(pilot, lambda: trace.names == ["sage", "creator"], "and another")
        await press(pilot, "escape")
        await say(pilot, "/trace off")
        assert not trace.display
        await say(pilot, "/trace nobody")
        assert "cannot be traced" in notes(app)[-1]


async def test_a_tall_terminal_traces_who_speaks_too(workspace: Path) -> None:
    async with running(workspace, (120, 40), Mix({"sage": 1.0})) as (app, pilot):
        await until(pilot, lambda: app.main.trace.names == ["assistant", "sage"], "both")
        await pilot.resize_terminal(120, 24)
        await until(pilot, lambda: app.main.trace.names == ["assistant"], "one")


async def test_details_have_curve_and_cosines(workspace: Path) -> None:
    async with running(workspace) as (app, pilot):
        await say(pilot, "/info sage")
        await until(pilot, lambda: isinstance(app.screen, PageScreen), "details")
        text = str(app.screen.query_one(Static).render())
        for part in ("calibration", "strength", "← chosen", "cosine to the axes", "assistant", "trickster"):
            assert part in text


async def test_help_begins_with_what_has_the_focus(workspace: Path) -> None:
    async with running(workspace) as (app, pilot):
        for keys, first in ((["f1"], "send"), (["f2", "f1"], "load/unload"), (["f3", "f1"], "negate")):
            await press(pilot, *keys)
            await until(pilot, lambda: isinstance(app.screen, PageScreen), "help")
            text = str(app.screen.query_one(Static).render())
            here = text.partition("anywhere")[0]
            assert first in here and "ctrl+q" in text
            await press(pilot, "escape", "escape")
        await press(pilot, "f9", "f1")
        await until(pilot, lambda: isinstance(app.screen, PageScreen), "help of a dialog")


async def test_every_action_has_its_place_in_the_palette(workspace: Path) -> None:
    async with running(workspace, mix=Mix({"sage": 1.0})) as (app, _):
        titles = {command.title for command in app.get_system_commands(app.main)}
        assert {"Go on", "Copy the reply", "Copy code", "Sessions", "Sampling", "System prompt"} <= titles
        assert {"Own editor", "Trace", "Steering layers", "Messages", "Speak as trickster"} <= titles
        assert {"Unload sage", "Load trickster", "Details of sage", "Delete sage", "Trace sage"} <= titles


# --- making a persona


async def open_create(app: PersonaApp, pilot: Pilot[None]) -> CreateScreen:
    await press(pilot, "f2", "ctrl+n")
    await shows(app, pilot, CreateScreen)
    assert isinstance(app.screen, CreateScreen)
    return app.screen


@pytest.mark.parametrize("size", SIZES)
async def test_drafted_prompts_are_shown_changed_and_used(workspace: Path, size: tuple[int, int]) -> None:
    async with running(workspace, size) as (app, pilot):
        screen = await open_create(app, pilot)
        await until(pilot, lambda: app.people._pace is not None, "the pace is measured")
        assert "on this machine" in str(screen.query_one("#advice", Static).render())
        await press(pilot, *"a grumpy old wizard", "enter", "enter")
        await shows(app, pilot, WriteScreen)
        writing = app.screen
        assert isinstance(writing, WriteScreen)
        assert len(split_prompts(writing.text)) == 5
        writing.replace_text("")
        await press(pilot, "ctrl+s")
        assert app.screen is writing, "no prompt is not enough"
        writing.replace_text("You are a wizard.\n\nYou are grumpy.\n")
        await press(pilot, "ctrl+s")
        await until(pilot, lambda: app.screen is app.main and app.jobs.running is not None, "it is made")
        job = app.jobs.running
        assert job is not None and job.name == "create grumpy_old_wizard"
        await say(pilot, "/cancel")
        await until(pilot, lambda: job.ended, "enough")


async def test_leaving_the_prompts_leads_back_to_the_form(workspace: Path, tmp_path: Path) -> None:
    prompts = tmp_path / "cook.txt"
    prompts.write_text("You are a cook.\n\nYou are a baker.\n", encoding="utf-8")
    async with running(workspace) as (app, pilot):
        screen = await open_create(app, pilot)
        await press(pilot, "up", "left")
        assert "file" in str(screen.query_one("#who-label", Static).render())
        screen.query_one("#who", Input).value = str(tmp_path / "nowhere.txt")
        await press(pilot, "down", "enter", "enter")
        assert "cannot be read" in str(screen.query_one("#advice", Static).render())
        screen.query_one("#who", Input).value = str(prompts)
        screen.query_one("#name", Input).focus()
        await press(pilot, "enter")
        await shows(app, pilot, WriteScreen)
        await press(pilot, "escape")
        assert app.screen is screen
        await press(pilot, "escape")
        assert app.screen is app.main and app.jobs.running is None


async def test_what_is_missing_is_said(workspace: Path) -> None:
    async with running(workspace) as (app, pilot):
        screen = await open_create(app, pilot)
        advice = screen.query_one("#advice", Static)
        await press(pilot, "enter", "enter")
        assert "Describe it" in str(advice.render())
        screen.query_one("#who", Input).value = "a wise man"
        await pilot.pause()
        screen.query_one("#name", Input).value = "sage"
        await press(pilot, "enter")
        assert 'There is a persona "sage" already' in str(advice.render())
