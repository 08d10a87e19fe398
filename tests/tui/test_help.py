"""The help page, the command palette, completion: everything that can be done is found there."""

from __future__ import annotations

from pathlib import Path

import pytest
from textual.command import CommandPalette
from textual.widgets import Static

from persona_tui.chat import commands
from persona_tui.core.mix import Mix
from persona_tui.project.project import Project
from persona_tui.tui.app import PersonaApp
from persona_tui.tui.bindings import widget_bindings
from persona_tui.tui.help import help_here, help_text
from persona_tui.tui.keys import ACTIONS, key_name
from persona_tui.tui.screens.page import PageScreen

from .driving import errors, notes, press, running, say, until

pytestmark = pytest.mark.slow

OPENS_ITSELF = {"palette"}  # it is where one is then
ONLY_BY_KEY = {"back", "mark_after"}  # what they do depends on where one is


def first_section(app: PersonaApp) -> str:
    """Return what the help says first: about where one is."""
    return help_text(app, 80, help_here(app), app.slash.all()).plain.partition("\n\n")[0]


async def test_every_action_is_in_the_palette(workspace: Path) -> None:
    async with running(workspace) as (app, pilot):
        offered = {command.title for command in app.get_system_commands(app.screen)}
        wanted = {each.title for each in ACTIONS if each.id not in OPENS_ITSELF | ONLY_BY_KEY}
        assert wanted <= offered
        assert {"Speak as sage", "Load sage", "Delete sage", "Details of sage", "Trace sage"} <= offered
        await press(pilot, "ctrl+p")
        await until(pilot, lambda: isinstance(app.screen, CommandPalette), "the palette")


async def test_every_key_is_in_the_help(workspace: Path) -> None:
    async with running(workspace) as (app, _):
        page = help_text(app, 200, help_here(app), app.slash.all()).plain
        for action in ACTIONS:
            assert action.title in page
            for key in action.keys.split(","):
                assert key_name(key) in page
        for binding in widget_bindings():
            if binding.show:
                assert binding.description in page, binding.id
        for command in commands.COMMANDS:
            assert f"/{command} " in page


@pytest.mark.parametrize(
    ("keys", "first"),
    [
        ((), "send the message"),
        (("f2",), "speak as"),
        (("f3",), "negate"),
        (("f4",), "resume/again"),
    ],
)
async def test_what_has_the_focus_comes_first(workspace: Path, keys: tuple[str, ...], first: str) -> None:
    async with running(workspace, (120, 40)) as (app, pilot):
        await press(pilot, *keys)
        assert first in first_section(app)
        await press(pilot, "f1")
        await until(pilot, lambda: isinstance(app.screen, PageScreen), "the help")
        await press(pilot, "escape")
        await until(pilot, lambda: app.screen is app.main, "the chat")


async def test_every_command_is_completed(workspace: Path) -> None:
    async with running(workspace) as (app, _):
        offered = {text.strip() for text, _ in app.slash.complete("/")}
        assert {f"/{name}" for name in commands.COMMANDS} < offered
        for name in offered:
            assert any(text.strip() == name for text, _ in app.slash.complete(name[:-1]))
        for line, wanted in {
            "/persona s": "/persona sage",
            "/blend sage:0.5,t": "/blend sage:0.5,trickster",
            "/info g": "/info guardian",
            "/trace as": "/trace assistant",
            "/copy ": "/copy code",
            "/keep ": "/keep A",
            "/strength 0.1": "/strength 0.15",
            "/help tr": "/help trace",
        }.items():
            assert wanted in [text for text, _ in app.slash.complete(line)], line


async def test_help_explains_a_command(workspace: Path) -> None:
    async with running(workspace) as (app, pilot):
        await say(pilot, "/help strength")
        await say(pilot, "/help trace")
        assert any(note.startswith("/strength NUMBER") for note in notes(app))
        assert any(note.startswith("/trace [A,B|off]") for note in notes(app))


async def test_any_key_can_be_another_one(workspace: Path) -> None:
    with (workspace / "config.yaml").open("a", encoding="utf-8") as config:
        config.write(
            "interface: {keys: {help: f20, slider_zero: f19, personas_speak: f18, louder: ctrl+l}}\n"
        )
    async with running(workspace, (120, 40)) as (app, pilot):
        await press(pilot, "f2", "f18")
        assert app.chat.mix.weights
        await press(pilot, "f2")
        assert "f18 " in first_section(app) and "speak as" in first_section(app)
        await press(pilot, "ctrl+l")
        assert app.chat.mix.strength == pytest.approx(0.35)
        await press(pilot, "f3", "f19")
        assert app.chat.mix.strength == 0
        await press(pilot, "f1")
        assert app.screen is app.main
        await press(pilot, "f20")
        await until(pilot, lambda: isinstance(app.screen, PageScreen), "the help")


async def test_a_command_waits_for_the_model(workspace: Path) -> None:
    app = PersonaApp(Project.open(workspace), Mix())
    try:
        async with app.run_test() as pilot:
            await until(pilot, lambda: bool(app.main.chat.notes), "the welcome")
            asked = not app.model_ready  # it may be quick
            if asked:
                app.slash.run("/persona sage")
            await until(pilot, lambda: app.model_ready, "the model")
            app.slash.run("/strength 0.2")
            await until(pilot, lambda: app.chat.mix.strength == 0.2, "the strength")
            assert app.chat.mix.weights == ({"sage": 1.0} if asked else {})
            assert not errors(app)
    finally:
        assert app.worker.close(timeout=60)
        app.chat.close()


@pytest.mark.parametrize("keys", [("f1",), ("f1", "f1")])
async def test_the_page_is_wrapped_again_for_another_size(workspace: Path, keys: tuple[str, ...]) -> None:
    def rows() -> list[str]:
        return str(app.screen.query_one("PageScreen Static", Static).render()).splitlines()

    async with running(workspace, (120, 40)) as (app, pilot):
        await press(pilot, *keys)
        await until(pilot, lambda: bool(app.screen.query("PageScreen Static")), "the page")
        await pilot.pause()
        wide = rows()
        await pilot.resize_terminal(60, 30)
        await until(pilot, lambda: len(rows()) > len(wide), "more and shorter lines")
        await pilot.resize_terminal(120, 40)
        await until(pilot, lambda: rows() == wide, "as before")
