"""Who speaks and how loud: list, faders, and what the engine makes of them while a reply is written."""

from __future__ import annotations

from pathlib import Path

import pytest

from persona_tui.core.mix import Mix
from persona_tui.project.project import Project
from persona_tui.tui.app import PersonaApp
from persona_tui.tui.screens.confirm import ConfirmScreen
from persona_tui.tui.widgets.personas import PersonaList
from persona_tui.tui.widgets.slider import FloatSlider

from .driving import errors, never_ending, notes, press, running, say, until

pytestmark = pytest.mark.slow

SIZES = [(80, 24), (120, 40)]


def state(app: PersonaApp, name: str) -> str:
    """Return the list's row of a persona."""
    return str(app.main.query_one(PersonaList).get_option(name).prompt)


@pytest.mark.parametrize("size", SIZES)
async def test_strength_changes_in_mid_reply(workspace: Path, size: tuple[int, int]) -> None:
    async with running(workspace, size, Mix({"sage": 1.0}, strength=0.3)) as (app, pilot):
        never_ending(app)
        engine = app.project.engine
        await say(pilot, "Hello")
        await until(pilot, lambda: app.replies.last is not None and app.replies.last.count > 0, "a token")
        before = engine._live.steering
        await press(pilot, "ctrl+up")
        assert engine.mix.strength == pytest.approx(0.35)
        layer = next(iter(before))
        assert float(engine._live.steering[layer].norm() / before[layer].norm()) == pytest.approx(0.35 / 0.3)
        await press(pilot, "f3", "left", "left")
        await until(pilot, lambda: engine.mix.strength == pytest.approx(0.25), "the fader acts")
        assert app.busy
        await press(pilot, "escape")
        assert app.busy, "the first escape leaves the panel"
        await press(pilot, "escape")
        await until(pilot, lambda: not app.busy, "the second stops the reply")


@pytest.mark.parametrize("size", SIZES)
async def test_load_speak_and_unload(workspace: Path, size: tuple[int, int]) -> None:
    async with running(workspace, size) as (app, pilot):
        await press(pilot, "f2", "space")
        await until(pilot, lambda: "creator" in app.project.personas.list_loaded(), "loaded")
        assert state(app, "creator").startswith("◐")
        await press(pilot, "down", "enter")
        await until(pilot, lambda: app.project.engine.mix.weights == {"explorer": 1.0}, "speaks")
        assert state(app, "explorer").startswith("●")
        await until(pilot, lambda: len(app.main.query("#faders FloatSlider")) == 2, "a fader each")
        await press(pilot, "f2", "space")
        await until(pilot, lambda: app.project.engine.mix.weights == {}, "unloaded, so nobody speaks")


async def test_a_blend_is_made_with_faders(workspace: Path) -> None:
    async with running(workspace, (120, 40), Mix({"sage": 0.5, "trickster": 0.5})) as (app, pilot):
        faders = {fader.label: fader for fader in app.main.query("#faders FloatSlider").results(FloatSlider)}
        faders["trickster"].focus()
        await pilot.pause()
        await press(pilot, "enter", *"-0.25", "enter")
        await until(
            pilot, lambda: app.project.engine.mix.weights == {"sage": 0.5, "trickster": -0.25}, "typed"
        )
        await press(pilot, "ctrl+o")
        await until(pilot, lambda: app.project.engine.mix.weights == {"trickster": 1.0}, "alone")


async def test_capping_is_switched(workspace: Path) -> None:
    async with running(workspace, (120, 40)) as (app, pilot):
        assert app.project.engine._live.capping or not app.project.engine.mix.capping
        await press(pilot, "f3", "down", "space")
        await until(pilot, lambda: not app.project.engine.mix.capping, "off")
        assert "capping off" in str(app.main.status.render())


async def test_deleting_asks_and_no_has_the_focus(workspace: Path) -> None:
    async with running(workspace) as (app, pilot):
        await press(pilot, "f2", "delete")
        await until(pilot, lambda: isinstance(app.screen, ConfirmScreen), "asked")
        assert app.focused is not None and app.focused.id == "no"
        await press(pilot, "enter")
        await until(pilot, lambda: app.screen is app.main, "answered")
        assert "creator" in app.project.personas.list_available()
        await press(pilot, "delete")
        await until(pilot, lambda: isinstance(app.screen, ConfirmScreen), "asked again")
        await press(pilot, "right", "enter")
        await until(pilot, lambda: "creator" not in app.project.personas.list_available(), "deleted")
        personas = app.main.query_one(PersonaList)
        assert "creator" not in personas.rows and "sage" in personas.rows


async def test_an_unknown_persona_is_named_and_left_out(workspace: Path) -> None:
    async with running(workspace, mix=Mix({"sagee": 1.0})) as (app, pilot):
        await pilot.pause()
        assert app.chat.mix.weights == {}
        assert 'Did you mean "sage"?' in " ".join(notes(app))


async def test_axes_that_cannot_be_used_are_an_error_and_no_crash(workspace: Path) -> None:
    (workspace / "vectors" / "builtin" / "axes.safetensors").write_bytes(b"not a vector file")
    async with running(workspace) as (app, pilot):
        await until(pilot, lambda: bool(errors(app)), "the error is shown")
        await say(pilot, "Hello")
        await until(pilot, lambda: len(errors(app)) == 2, "and again instead of a reply")
        await press(pilot, "f3", "right")
        assert app.is_running


async def test_traits_stand_with_the_personas(workspace: Path) -> None:
    traits = Project.open(workspace).personas.list_traits()
    assert len(traits) == 4
    async with running(workspace, (120, 40)) as (app, pilot):
        personas = app.main.query_one(PersonaList)
        assert personas.rows[traits[0]].kind == "trait"
        titles = [str(option.prompt) for option in personas.options if option.disabled]
        assert [title.strip() for title in titles] == ["traits"]
        app.people.trace(traits[0])
        assert traits[0] in app.main.trace.names
        app.people.info(traits[0])
        await until(pilot, lambda: app.screen is not app.main, "its details")
