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


def painted(app: PersonaApp) -> list[str]:
    """Return the rows of the screen as a terminal has them."""
    return ["".join(part.text for part in row).rstrip() for row in app.screen._compositor.render_strips()]


@pytest.mark.parametrize("size", [(40, 10), (30, 8), (200, 8), (30, 60)])
async def test_a_small_terminal_has_room_for_chat_and_prompt(workspace: Path, size: tuple[int, int]) -> None:
    async with running(workspace, size) as (app, pilot):
        await press(pilot, *"hi", "slash", "f3", "f3")
        await until(pilot, lambda: any("hi/" in row for row in painted(app)), "the prompt is on the screen")
        await until(pilot, lambda: app.main.chat.size.height >= 2, "the panel has gone again")
        await press(pilot, "enter")
        await until(pilot, lambda: len(app.chat.conversation) == 2 and not app.busy, "a reply")
        assert app.main.prompt.region.bottom < size[1] and app.main.chat.size.height >= 2


async def test_where_nothing_fits_more_room_is_asked_for(workspace: Path) -> None:
    async with running(workspace, (20, 5)) as (app, pilot):
        for size in ((20, 5), (29, 24), (80, 7), (9, 3)):
            await pilot.resize_terminal(*size)
            await until(pilot, lambda size=size: len(painted(app)) == size[1], "another size")
            await until(pilot, lambda: "30×8" in painted(app)[0], "it asks for room")
            assert painted(app)[1:] == [""] * (size[1] - 1)
        await press(pilot, "f1", "escape", "h")
        await pilot.resize_terminal(1, 1)
        await pilot.resize_terminal(80, 24)
        await until(pilot, lambda: any("▌ h" in row for row in painted(app)), "everything is back")
        assert not any("30×8" in row for row in painted(app)) and focused(app) == "prompt"


async def test_every_action_is_in_the_palette_and_the_help(workspace: Path) -> None:
    async with running(workspace) as (app, pilot):
        titles = {command.title for command in app.get_system_commands(app.main)}
        assert {"Quit", "New persona", "Strength and blend", "Stop the reply"} <= titles
        await press(pilot, "f1")
        text = str(app.screen.query_one("Static").render())
        assert "f5" in text and "/strength" in text and "on a fader" in text
        await press(pilot, "escape")
        assert app.screen is app.main
