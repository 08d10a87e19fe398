"""The mixer's panel beyond the faders, rulers, and the context."""

from __future__ import annotations

from pathlib import Path

import pytest

from persona_tui.chat.voice import difference, ordinal
from persona_tui.core.mix import Mix
from persona_tui.tui.app import PersonaApp
from persona_tui.tui.blocks import Ruler
from persona_tui.tui.widgets.chooser import Chooser
from persona_tui.tui.widgets.gauges import Gauges, Likeness

from .driving import never_ending, notes, press, reply, running, say, until

pytestmark = pytest.mark.slow

SAGE = Mix({"sage": 1.0}, 0.3)


def rulers(app: PersonaApp) -> list[str]:
    return [block.text for block in app.main.chat.blocks if isinstance(block, Ruler)]


def gauges(app: PersonaApp) -> str:
    return str(app.main.mixer.query_one(Gauges).render())


async def test_axis_floor_and_layers_reach_the_engine(workspace: Path) -> None:
    async with running(workspace, (120, 40), SAGE) as (app, pilot):
        engine = app.project.engine
        before = engine.capping_axis()
        app.main.mixer.query_one("#capping-axis", Chooser).focus()
        await press(pilot, "right")
        await until(pilot, lambda: engine.capping_axis() != before, "the other axis")
        app.main.mixer.query_one("#floor").focus()
        await press(pilot, "shift+right")
        await until(pilot, lambda: engine.mix.percentile == 35, "the floor")
        app.main.mixer.query_one("#layers").focus()
        await press(pilot, "enter")
        await until(pilot, lambda: app.screen is not app.main, "asked")
        await press(pilot, "end", *"xyz", "enter")
        assert "layers look like" in str(app.screen.query_one("#advice").render())
        await press(pilot, *["backspace"] * 9, *"3-4", "enter")
        await until(pilot, lambda: engine.mix.layers == (3, 4), "the layers")
        assert set(engine._live.steering) == {3, 4}
        await press(pilot, "escape")
        await say(pilot, "/layers auto")
        assert engine.mix.layers is None


async def test_the_panel_marks_a_floor_on_a_weak_axis(workspace: Path) -> None:
    async with running(workspace, (120, 40), SAGE) as (app, pilot):
        axes, chooser = app.project.personas.axes, app.main.mixer.query_one("#capping-axis", Chooser)
        assert axes is not None
        axes.metadata["refusals"] = {
            "unsafe": {"refused": 2, "asked": 60},
            "safe": {"answered": 60, "asked": 60},
        }
        await say(pilot, "/axis assistant")
        assert "weak" not in str(chooser.render())
        await say(pilot, "/axis safety")
        assert "‹ safety › weak" in str(chooser.render())
        await reply(pilot, app, "Who are you?")
        told = next(each for each in notes(app) if each.startswith("The safety axis is weak"))
        assert "made of 2 refusals of 60 unsafe prompts" in told and "--refusals given" in told


async def test_the_panel_tells_size_and_likeness(workspace: Path) -> None:
    async with running(workspace, (120, 40), SAGE) as (app, pilot):
        await until(pilot, lambda: "%" in gauges(app), "the size")
        loudness = app.project.engine.loudness()
        assert f"{max(loudness.values()):.0%}" in gauges(app)
        app.people.load("trickster")
        likeness = app.main.mixer.query_one(Likeness)
        await until(pilot, lambda: "sage · trickster" in str(likeness.render()), "a cosine")
        await say(pilot, "/none")
        assert "─ nothing" in gauges(app)


async def test_far_too_loud_turns_the_gauge_amber(workspace: Path) -> None:
    async with running(workspace, (120, 40), SAGE) as (app, pilot):
        assert not app.main.mixer.query_one(Gauges).fluency.broken
        await say(pilot, "/strength 1")
        await until(pilot, lambda: app.main.mixer.query_one(Gauges).fluency.word == "too loud", "said so")
        await say(pilot, "/strength 0.1")
        await until(pilot, lambda: not app.main.mixer.query_one(Gauges).fluency.broken, "and taken back")


async def test_changes_between_replies_share_a_ruler(workspace: Path) -> None:
    async with running(workspace, mix=SAGE) as (app, pilot):
        await press(pilot, "ctrl+up")
        assert rulers(app) == [], "nothing was said yet"
        await reply(pilot, app, "What is bread?")
        await press(pilot, "ctrl+up", "ctrl+up")
        assert rulers(app) == ["strength 0.35 → 0.45"]
        await press(pilot, "ctrl+down", "ctrl+down")
        assert rulers(app) == [], "back to where it was"
        await say(pilot, "/persona trickster")
        assert rulers(app) == ["sage → trickster"]
        await say(pilot, "/safety off")
        assert rulers(app) == ["sage → trickster · capping off"], "where the first of them happened"


async def test_a_change_in_mid_reply_is_ruled_and_recorded_where_it_happened(workspace: Path) -> None:
    async with running(workspace, mix=SAGE) as (app, pilot):
        never_ending(app)
        await say(pilot, "Tell me a long story")
        await until(pilot, lambda: app.replies.last is not None and app.replies.last.count > 8, "tokens")
        await press(pilot, "ctrl+up")
        block = app.main.chat.messages[-1]

        def ruled() -> int | None:
            lines = [line.plain for line in block.lines(60)]
            return next((at for at, line in enumerate(lines) if "strength 0.30 → 0.35" in line), None)

        await until(pilot, lambda: ruled() is not None, "a ruler in the reply")
        turn = app.replies.last
        assert turn is not None
        count = turn.count
        await until(pilot, lambda: turn.count > count + 3, "and it goes on")
        await press(pilot, "escape")
        await until(pilot, lambda: not app.busy, "stopped")
        node = app.chat.conversation.last_reply()
        assert node is not None
        [(place, mix)] = node.rulers()
        assert 0 < place < len(node.text) and mix["strength"] == pytest.approx(0.35)
        assert ruled() is not None and block.source == node.text


async def test_a_full_context_is_announced_before_it_overflows(workspace: Path) -> None:
    async with running(workspace) as (app, pilot):
        app.project.model.context_length = app.replies.context.size = 200
        app.chat.sampling_changes = {"max_new_tokens": 20}
        for number in range(12):
            await reply(pilot, app, f"Question number {number}: what is bread made of, and who makes it?")
            if any("nearly full" in note for note in notes(app)):
                break
        assert not any("no longer sees" in note for note in notes(app))
        assert "nearly full" in str(app.main.status.render())
        for _ in range(4):
            await reply(pilot, app, "And what about soup, which is made of water and of many other things?")
        assert any("no longer sees the oldest" in note for note in notes(app))
        assert sum("nearly full" in note for note in notes(app)) == 1


def test_differences_are_said_in_a_few_words() -> None:
    before = Mix({"sage": 1.0}, 0.3)
    assert difference(before, before) == ""
    after = Mix({"sage": 0.5, "trickster": 0.5}, 0.45, False, True, "safety", 40, (3, 4))
    assert difference(before, after) == (
        "sage → sage 50% + trickster 50% · strength 0.30 → 0.45 · capping off · floor on the safety axis"
        " · floor at the 40th percentile · layers 3, 4"
    )
    assert difference(after, before).endswith("floor as configured · layers as calibrated")


@pytest.mark.parametrize(
    ("number", "text"), [(1, "1st"), (2, "2nd"), (11, "11th"), (23, "23rd"), (2.5, "2.5th")]
)
def test_ordinals(number: float, text: str) -> None:
    assert ordinal(number) == text


def test_faders_survive_a_transcript() -> None:
    faders = Mix({"sage": 0.5}, 0.4, False, True, "safety", 40, (3, 4))
    record = {"weights": {"sage": 0.5}, "strength": 0.4, "capping": False, "safe": True}
    record |= {"capping_axis": "safety", "percentile": 40, "layers": [3, 4], "vectors": {}, "floor": None}
    assert Mix.from_record(record) == faders
