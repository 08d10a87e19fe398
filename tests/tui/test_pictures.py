"""The pictures in the app: the sweep, the map, drift, heat maps; at every size, with and without vectors."""

from __future__ import annotations

import re
import shutil
from dataclasses import replace
from pathlib import Path
from statistics import fmean

import pytest
import torch
from textual.pilot import Pilot
from textual.widgets import Static

from persona_tui.core.mix import Mix
from persona_tui.pictures.drift import ordinary_range
from persona_tui.project.project import Project
from persona_tui.traits.vector import weakness_of
from persona_tui.tui.app import PersonaApp
from persona_tui.tui.screens.drift import DriftScreen
from persona_tui.tui.screens.heat import HeatScreen
from persona_tui.tui.screens.map import MapScreen
from persona_tui.tui.screens.picture import PictureScreen
from persona_tui.tui.screens.sweep import SweepScreen
from persona_tui.tui.views.plot import Plot, Sheet
from persona_tui.vectors.files import RECIPE
from persona_tui.vectors.roles import ROLES_FILE, RoleMeans

from .driving import LONG, errors, never_ending, notes, press, reply, running, say, until

SAGE = Mix({"sage": 1.0}, 0.3)
SIZES = [(80, 24), (120, 40), (200, 60)]


def sheet(app: PersonaApp, which: str) -> str:
    return str(app.screen.query_one(which, Sheet).query_one(Static).render())


async def swept(app: PersonaApp, pilot: Pilot[None]) -> SweepScreen:
    await until(pilot, lambda: isinstance(app.screen, SweepScreen), "the screen")
    await until(pilot, lambda: bool(app.screen.query("#sweep Static")), "its parts")
    await until(pilot, lambda: "strength 0.80" in sheet(app, "#sweep"), "the replies")
    screen = app.screen
    assert isinstance(screen, SweepScreen)
    return screen


@pytest.mark.slow
@pytest.mark.parametrize("size", SIZES)
async def test_a_sweep_shows_what_every_strength_says(workspace: Path, size: tuple[int, int]) -> None:
    async with running(workspace, size, SAGE) as (app, pilot):
        await say(pilot, "/sweep Who are you?")
        await swept(app, pilot)
        latest = app.sweeps.latest
        assert latest is not None and [row.strength for row in latest.rows] == [0.0, 0.15, 0.3, 0.5, 0.8]
        shown = sheet(app, "#sweep")
        assert all(f"strength {row.strength:.2f}" in shown for row in latest.rows)
        assert shown.count("repetition") == 5 and shown.count("from plain") == 5 and shown.count("← now") == 1
        words = latest.rows[0].text.split()[0]
        assert words in shown
        side_by_side = "strength 0.00" in shown.splitlines()[0] and "strength 0.80" in shown.splitlines()[0]
        assert side_by_side == (size[0] >= 120)
        assert all(any(figure in line for line in shown.splitlines()) for figure in latest.rows[0].figures)
        assert len(re.findall(r"repetition \d+%", shown)) == 5
        assert all(len(line) <= size[0] for line in shown.splitlines())
        await press(pilot, "4")
        assert app.chat.mix.strength == 0.5
        await press(pilot, "escape")
        assert app.screen is app.main and len(app.chat.conversation) == 0


@pytest.mark.slow
async def test_a_sweep_without_a_prompt_answers_the_last_message_and_goes_on_behind_the_chat(
    workspace: Path,
) -> None:
    async with running(workspace, (120, 40), SAGE) as (app, pilot):
        await say(pilot, "/sweep")
        assert any("no message to answer" in note for note in notes(app))
        await reply(pilot, app, "Who are you?")
        await say(pilot, "/sweep")
        await until(pilot, lambda: isinstance(app.screen, SweepScreen), "the screen")
        await press(pilot, "escape")
        await until(pilot, lambda: bool(app.sweeps.latest and app.sweeps.latest.rows), "the replies")
        await reply(pilot, app, "And you?")
        app.action_sweep()
        await swept(app, pilot)
        assert "Who are you?" in str(app.screen.query_one("#sweep-head", Static).render())


async def test_a_sweep_needs_a_voice_and_can_be_cancelled(workspace: Path) -> None:
    async with running(workspace) as (app, pilot):
        await say(pilot, "/sweep Hello")
        assert any("nobody speaks" in note for note in notes(app)) and app.screen is app.main
        app.chat.change_mix(weights={"sage": 1.0})
        app.chat.sampling_changes = {"max_new_tokens": 1500}
        app.project.model._end_tokens = frozenset()
        await say(pilot, "/sweep Hello")
        await until(pilot, lambda: isinstance(app.screen, SweepScreen), "the screen")
        job = app.sweeps.latest.job if app.sweeps.latest else None
        await until(pilot, lambda: job is not None and job.state == "running", "it runs")
        await press(pilot, "delete")
        await until(pilot, lambda: bool(app.screen.query("#sweep Static")), "its parts")
        await until(pilot, lambda: "Cancelled" in sheet(app, "#sweep"), "cancelled")


def plot(app: PersonaApp, which: str) -> str:
    return str(app.screen.query_one(which, Plot).render())


async def drawn(app: PersonaApp, pilot: Pilot[None], kind: type[PictureScreen]) -> None:
    """Wait until a picture's figures are there."""
    await until(pilot, lambda: isinstance(app.screen, kind), "the screen")
    await until(pilot, lambda: app.screen.idle, "the figures")  # type: ignore[attr-defined]


def bare(workspace: Path) -> None:
    """Leave the model without vectors."""
    shutil.rmtree(workspace / "vectors")
    (workspace / "vectors").mkdir()


@pytest.mark.slow
@pytest.mark.parametrize("size", SIZES)
async def test_the_map_has_personas_the_voice_and_the_conversation(
    workspace: Path, size: tuple[int, int]
) -> None:
    async with running(workspace, size, SAGE) as (app, pilot):
        await reply(pilot, app, "Who are you?")
        await reply(pilot, app, "Tell me about bread.")
        await say(pilot, "/map")
        await drawn(app, pilot, MapScreen)
        shown = plot(app, "#map")
        assert "of the variance" in shown and "the conversation, reply by reply" in shown
        names = app.project.personas.list_available()
        assert sum(name in shown for name in names) >= len(names) - 1 and "★" in shown
        assert not re.search(r"\bnan\b", shown) and all(len(line) <= size[0] for line in shown.splitlines())
        await press(pilot, "alt+2")
        await until(pilot, lambda: "+1.0" in sheet(app, "#cosines"), "the grid")
        assert all(name in sheet(app, "#cosines") for name in names)
        await press(pilot, "q")
        assert app.screen is app.main


async def test_the_map_names_few_of_many_roles_and_a_bad_file_hides_no_persona(workspace: Path) -> None:
    """As many roles as the catalogue has, around one of the personas; another model's file beside them."""
    project = Project.open(workspace)
    personas = project.personas
    sage = personas.get("sage")
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(100, *sage.raw[RECIPE].shape, generator=generator)
    names = tuple(f"role_{number:03d}" for number in range(len(noise)))
    metadata = {key: sage.metadata[key] for key in ("model_name", "model_fingerprint", "hidden_size")}
    zero, prompts = torch.zeros_like(noise[0]), dict.fromkeys(names, "a hash")
    roles = RoleMeans(names, sage.layers, sage.raw[RECIPE] + 5 * noise, zero, prompts, metadata)
    roles.save(personas.vectors_dir / ROLES_FILE)
    (personas.personas_dir / "damaged.safetensors").write_bytes(b"nothing")
    async with running(workspace, (80, 24), SAGE) as (app, pilot):
        await say(pilot, "/map")
        await drawn(app, pilot, MapScreen)
        shown = plot(app, "#map")
        assert all(name in shown for name in personas.usable()) and "damaged" not in shown
        assert "sage is nearest to role_" in shown and 0 < len(set(re.findall(r"role_\d+", shown))) < 10
        await press(pilot, "right")
        assert "sage is nearest" not in plot(app, "#map") and "is nearest to" in plot(app, "#map")


async def test_a_model_without_vectors_gets_one_next_step(workspace: Path) -> None:
    bare(workspace)
    async with running(workspace) as (app, pilot):
        await say(pilot, "/map")
        await drawn(app, pilot, MapScreen)
        assert "Prepare this model (ctrl+r)" in plot(app, "#map").replace("\n", " ")


LOUD = Mix({"guardian": 1.0}, 1.0, capping=False)


@pytest.mark.slow
@pytest.mark.parametrize("size", [(80, 24), (200, 60)])
async def test_a_reply_that_leaves_the_ordinary_range_is_told_and_one_key_caps(
    workspace: Path, size: tuple[int, int]
) -> None:
    async with running(workspace, size, LOUD) as (app, pilot):
        await reply(pilot, app, "Who are you?")
        await until(pilot, lambda: bool(app.drift_watch._below), "the reply is read")
        await reply(pilot, app, "Tell me about bread.")
        await until(pilot, lambda: len(app.drift_watch._below) == 2, "the reply is read")
        below = list(app.drift_watch._below.values())
        told = [note for note in notes(app) if "ordinary replies lie" in note]
        assert below == [True, True] and len(told) == 1 and "σ on the assistant axis, below" in told[0]
        assert "alt+c caps from here on" in told[0]
        await press(pilot, "alt+c")
        assert app.chat.mix.capping and any("Capping from here on" in note for note in notes(app))
        assert app.chat.conversation.mix is not None and app.chat.conversation.mix["capping"]
        await say(pilot, "/drift")
        await drawn(app, pilot, DriftScreen)
        shown = plot(app, "#drift-line")
        assert "95% of ordinary replies" in shown and "floor" in shown and "as it was spoken" in shown
        assert shown.count("◇") >= 2 and "nan" not in shown.casefold()
        if size[0] > 80:
            rows = sheet(app, "#drift-table").splitlines()
            assert "as spoken" in rows[0] and all(row.count("σ") == 2 for row in rows[1:])
        await press(pilot, "right", "right")
        await drawn(app, pilot, DriftScreen)
        assert "how far they spread along it is not known" in plot(app, "#drift-line").replace("\n", " ")


async def test_an_ordinary_conversation_is_left_in_peace(workspace: Path) -> None:
    async with running(workspace) as (app, pilot):
        await reply(pilot, app, "What is bread made of?")
        await until(pilot, lambda: bool(app.drift_watch._below), "the reply is read")
        assert not any(app.drift_watch._below.values())
        assert not any("ordinary replies lie" in note for note in notes(app))


@pytest.mark.slow
async def test_a_reply_above_the_ordinary_range_is_no_sign_of_anything(workspace: Path) -> None:
    async with running(workspace, mix=replace(LOUD, strength=-1.0)) as (app, pilot):
        await reply(pilot, app, "Who are you?")
        node = app.chat.conversation.last_reply()
        ordinary = ordinary_range(app.project.engine, "assistant")
        assert node is not None and ordinary is not None
        readings = [each.projections["assistant"] for each in app.inspection.read(node.id)]
        assert fmean(readings) > ordinary[1] and app.drift_watch._below == {node.id: False}
        assert not any("ordinary replies lie" in note for note in notes(app))


@pytest.mark.slow
async def test_the_drift_watch_costs_no_pass_but_where_a_reply_was_begun_elsewhere(workspace: Path) -> None:
    passes: list[int] = []
    async with running(workspace) as (app, pilot):
        app.project.model.model.register_forward_hook(lambda *_: passes.append(1))
        app.chat.sampling_changes = {"max_new_tokens": 12}
        await reply(pilot, app, "What is bread made of?")
        node = app.chat.conversation.last_reply()
        assert node is not None and app.drift_watch._below == {node.id: False}
        assert len(passes) == len(node.token_ids) == 12
        session = app.chat.session_id
    async with running(workspace, resume=session) as (app, pilot):
        await until(pilot, lambda: app.chat.session_id == session, "the session")
        app.chat.sampling_changes = {"max_new_tokens": 12}
        app.action_continue()
        await until(pilot, lambda: bool(app.drift_watch._below), "the reply is read, its beginning included")
        assert set(app.drift_watch._below) == {node.id}


@pytest.mark.slow
@pytest.mark.parametrize("size", SIZES)
async def test_a_reply_as_layers_by_tokens(workspace: Path, size: tuple[int, int]) -> None:
    async with running(workspace, size, SAGE) as (app, pilot):
        await say(pilot, "/heat")
        await until(pilot, lambda: bool(app.screen.query("#heat-spoken Plot")), "the screen")
        assert "no reply yet" in plot(app, "#heat-spoken Plot")
        await press(pilot, "escape")
        await reply(pilot, app, "Who are you?")
        node = app.chat.conversation.last_reply()
        await say(pilot, "/heat")
        await drawn(app, pilot, HeatScreen)
        screen = app.screen
        assert isinstance(screen, HeatScreen) and screen._found is not None and node is not None
        found = screen._found
        assert list(found.tokens) == node.token_texts and abs(found.spoken - found.plain).max() > 0
        await press(pilot, "right", "right")
        assert f"3/{len(found.tokens)} " in plot(app, "#heat-spoken Plot")
        await press(pilot, "alt+2")
        await until(
            pilot, lambda: "of the stream at layer" in plot(app, "#heat-plain Plot"), "read unsteered"
        )
        await press(pilot, "d")
        await drawn(app, pilot, HeatScreen)
        assert screen._found.name != found.name
        await press(pilot, "alt+3")
        await until(pilot, lambda: "↑" in sheet(app, "#shifts"), "the tokens that it raises")


PICTURES = ("/map", "/drift", "/heat", "/sweep Hello", "/info sage", "/tint")


async def looked_at(app: PersonaApp, pilot: Pilot[None]) -> list[str]:
    """Open every picture, press keys there, and close it; the names of the screens."""
    seen = []
    for command in PICTURES:
        await say(pilot, command)
        seen.append(type(app.screen).__name__)
        for key in ("right", "down", "alt+2", "j"):
            if app.screen is not app.main:
                await press(pilot, key)
        while app.screen is not app.main:
            await press(pilot, "escape")
    return seen


@pytest.mark.slow
@pytest.mark.parametrize("size", [(80, 24), (200, 60)])
async def test_pictures_opened_while_a_reply_streams_and_a_job_runs(
    workspace: Path, size: tuple[int, int]
) -> None:
    async with running(workspace, size, SAGE) as (app, pilot):
        await reply(pilot, app, "Who are you?")
        never_ending(app)
        await say(pilot, "/create wizard a grumpy old wizard")
        await until(pilot, lambda: app.jobs.running is not None, "the job")
        await say(pilot, "Tell me about bread.")
        await until(pilot, lambda: bool(app.replies.last and app.replies.last.count), "the first word")
        seen = await looked_at(app, pilot)
        assert {"MapScreen", "DriftScreen", "HeatScreen", "SweepScreen"} <= set(seen) and app.busy
        before = app.replies.last.count if app.replies.last else 0
        await until(
            pilot, lambda: app.replies.last is not None and app.replies.last.count > before, "it goes on"
        )
        await press(pilot, "escape")
        await until(pilot, lambda: not app.busy, "it stops")
        assert app.chat.conversation.last_reply() is not None and not errors(app)


@pytest.mark.slow
async def test_pictures_opened_while_the_model_is_switched(workspace: Path, tiny: Path) -> None:
    async with running(workspace, (120, 40), SAGE) as (app, pilot):
        await reply(pilot, app, "Who are you?")
        before = app.chat.project
        await say(pilot, f"/model {tiny}")
        await looked_at(app, pilot)
        await until(pilot, lambda: app.chat.project is not before, "the other model", LONG)
        await looked_at(app, pilot)  # of a model without vectors
        await reply(pilot, app, "And you?")
        assert len(app.chat.conversation.path()) == 4 and app.failures == []


async def test_a_weak_direction_says_so_wherever_it_is_drawn(workspace: Path, tmp_path: Path) -> None:
    async with running(workspace, (120, 40), SAGE) as (app, pilot):
        axes = app.project.personas.axes
        assert axes is not None
        refusals = {"unsafe": {"refused": 2, "asked": 60}, "safe": {"answered": 60, "asked": 60}}
        axes.metadata["refusals"] = refusals
        await reply(pilot, app, "Who are you?")
        why = "made of 2 refusals of 60 unsafe prompts"
        await say(pilot, "/drift")
        await drawn(app, pilot, DriftScreen)
        assert "weak" not in plot(app, "#drift-line")
        await press(pilot, "right")
        await drawn(app, pilot, DriftScreen)
        assert f"a weak direction: {why}" in plot(app, "#drift-line").replace("\n", " ")
        await press(pilot, "escape")
        await say(pilot, "/heat")
        await drawn(app, pilot, HeatScreen)
        head = app.screen.query_one("#heat-head", Static)
        assert "weak" not in str(head.render())
        await press(pilot, "d")
        await drawn(app, pilot, HeatScreen)
        assert "safety" in str(head.render()) and why in str(head.render())
        await press(pilot, "escape")
        app.inspection.turned("direction", 1)
        await say(pilot, "/tint direction")
        (told,) = (each.message for each in app._notifications if each.title == "Tint")
        assert "above 0 on safety" in told and told.endswith(f"It is weak: {why}")


async def test_a_weak_trait_is_marked_where_it_is_traced_and_a_persona_never(workspace: Path) -> None:
    """The tiny model's traits tell their sides apart hardly better than chance."""
    async with running(workspace, (120, 40), SAGE) as (app, _):
        personas = app.project.personas
        why = {name: weakness_of(personas, name) for name in [*personas.list_traits(), "sage", "assistant"]}
        assert [name for name, reason in why.items() if reason is None] == ["sage", "assistant"]
        assert all(
            "held-out replies are told apart with an AUC of 0." in each for each in why.values() if each
        )
        for name in personas.list_traits():
            personas.load(name)
        app.mixer.trace(list(why))
        marked = {name: line.weak for name, line in app.main.trace.lines.items()}
        assert marked == {name: reason is not None for name, reason in why.items()}
