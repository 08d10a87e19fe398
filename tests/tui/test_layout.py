"""Panels beside the chat or over it, and what the focus does."""

from __future__ import annotations

from pathlib import Path

import pytest

from persona_tui.tui.app import PersonaApp
from persona_tui.tui.screens.chat import PANELS

from .driving import press, running, until

pytestmark = pytest.mark.slow


def shown(app: PersonaApp) -> set[str]:
    """Return the panels on the screen."""
    return {panel for panel in PANELS if app.main.query_one(f"#{panel}").display}


def focused(app: PersonaApp) -> str | None:
    """Return the id of what has the focus."""
    return app.focused.id if app.focused is not None else None


async def test_panels_lie_over_a_narrow_chat_one_at_a_time(workspace: Path) -> None:
    async with running(workspace, (80, 24)) as (app, pilot):
        width = app.main.chat.size.width
        assert shown(app) == set() and focused(app) == "prompt"
        await press(pilot, "f2")
        assert shown(app) == {"personas"} and focused(app) == "persona-list"
        assert app.main.chat.size.width == width
        await press(pilot, "f3")
        assert shown(app) == {"mixer"} and focused(app) == "master"
        await press(pilot, "f3")
        assert shown(app) == set() and focused(app) == "prompt"
        await press(pilot, "f4", "escape")
        assert shown(app) == set() and focused(app) == "prompt"


async def test_panels_stand_beside_a_wide_chat(workspace: Path) -> None:
    async with running(workspace, (120, 40)) as (app, pilot):
        assert shown(app) == {"personas", "mixer"} and focused(app) == "prompt"
        await press(pilot, "f2")
        assert focused(app) == "persona-list"
        await press(pilot, "escape")
        assert shown(app) == {"personas", "mixer"} and focused(app) == "prompt"
        await press(pilot, "f2", "f2")
        assert shown(app) == {"mixer"} and focused(app) == "prompt"


async def test_the_layout_follows_the_size(workspace: Path) -> None:
    async with running(workspace, (120, 40)) as (app, pilot):
        await press(pilot, "f3")
        await pilot.resize_terminal(80, 24)
        await until(pilot, lambda: shown(app) == set(), "no panel covers the chat")
        assert focused(app) == "prompt"
        await pilot.resize_terminal(130, 40)
        await until(pilot, lambda: shown(app) == {"personas", "mixer"}, "they are back")


async def test_every_action_is_in_the_palette_and_the_help(workspace: Path) -> None:
    async with running(workspace) as (app, pilot):
        titles = {command.title for command in app.get_system_commands(app.main)}
        assert {"Quit", "New persona", "Strength and blend", "Stop the reply"} <= titles
        await press(pilot, "f1")
        text = str(app.screen.query_one("Static").render())
        assert "f5" in text and "/strength" in text and "on a fader" in text
        await press(pilot, "escape")
        assert app.screen is app.main
