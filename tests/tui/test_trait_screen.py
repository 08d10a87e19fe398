"""The trait screen, driven by keys on the tiny model."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from textual.pilot import Pilot
from textual.widgets import Input, Static

from persona_tui.traits.thresholds import TEST
from persona_tui.tui.app import PersonaApp
from persona_tui.tui.screens.ask import AskScreen
from persona_tui.tui.screens.traits import BY_HAND, TraitsScreen
from persona_tui.tui.views.plot import Sheet
from persona_tui.tui.views.threshold import ThresholdSlider
from persona_tui.tui.widgets.chooser import Chooser

from .driving import press, reply, running, say, until

pytestmark = pytest.mark.slow

SHIPPED = ["boundary_maintenance", "crisis_recognition", "empathetic_responsiveness", "harmful_validation"]


async def opened(app: PersonaApp, pilot: Pilot[None]) -> TraitsScreen:
    await press(pilot, "f12")
    await until(pilot, lambda: isinstance(app.screen, TraitsScreen), "the screen")
    screen = app.screen
    assert isinstance(screen, TraitsScreen)
    await until(pilot, lambda: screen._turns is not None, "the conversation is measured")
    return screen


def text_of(screen: TraitsScreen, which: str) -> str:
    node = screen.query_one(which)
    return str((node.query_one(Static) if isinstance(node, Sheet) else node).render())


async def asked(app: PersonaApp, pilot: Pilot[None], key: str, answer: str) -> None:
    """Press a key that asks, and answer."""
    await press(pilot, key)
    await until(pilot, lambda: isinstance(app.screen, AskScreen), "asked")
    app.screen.query_one(Input).value = answer
    await press(pilot, "enter")
    await until(pilot, lambda: isinstance(app.screen, TraitsScreen), "answered")


@pytest.mark.parametrize("size", [(80, 24), (200, 60)])
async def test_the_conversation_is_measured_turn_by_turn(workspace: Path, size: tuple[int, int]) -> None:
    async with running(workspace, size) as (app, pilot):
        screen = await opened(app, pilot)
        assert "Nothing has been said yet" in text_of(screen, "#drift")
        await press(pilot, "escape")
        await reply(pilot, app, "I feel so alone.")
        await reply(pilot, app, "What is bread?")
        screen = await opened(app, pilot)
        turns = screen._turns
        assert turns is not None
        assert [turn.role for turn in turns] == ["user", "assistant", "user", "assistant"]
        drawn, table = text_of(screen, "#drift"), text_of(screen, "#turn-table")
        both = all("boundary_maintenance" not in turn.outside for turn in turns if turn.role == "assistant")
        assert drawn.count("drift") == 1 + both and "boundary_maintenance by turn" in drawn
        for turn in turns:
            applies = "boundary_maintenance" not in turn.outside
            assert (f"{turn.scores['boundary_maintenance']:+.2f}" if applies else "n/a") in table
        await press(pilot, "alt+2")
        await until(pilot, lambda: "healthy ranges" in text_of(screen, "#limits-list"), "the limits")
        await press(pilot, "w")
        folder = workspace / "results" / "builtin" / "traits"
        (document,) = folder.glob("*/turns.json")
        assert len(json.loads(document.read_text())["turns"]) == 4


async def test_traits_are_listed_with_their_figures_and_chosen(workspace: Path) -> None:
    async with running(workspace, (200, 60)) as (app, pilot):
        screen = await opened(app, pilot)
        table = text_of(screen, "#trait-table")
        assert all(name in table for name in SHIPPED)
        chooser = screen.query_one("#which-trait", Chooser)
        assert list(chooser.values) == SHIPPED
        await press(pilot, "right")
        assert "crisis_recognition: separation by layer" in text_of(screen, "#trait-layers")
        trait = app.project.traits.get("crisis_recognition")
        assert f"▲{trait.reading.layer}" in text_of(screen, "#trait-layers")
        assert f"{trait.reading.strength:.4g}" in table


async def test_a_threshold_is_calibrated_from_the_test_moved_and_kept(workspace: Path) -> None:
    async with running(workspace, (120, 40)) as (app, pilot):
        screen = await opened(app, pilot)
        before = app.project.traits.get(SHIPPED[0]).reading
        await asked(app, pilot, "l", "")
        await until(pilot, lambda: "balanced accuracy" in text_of(screen, "#trait-rates"), "calibrated")
        slider = screen.query_one(ThresholdSlider)
        assert slider.value != before.threshold and "ctrl+s keeps it" in text_of(screen, "#lab-note")
        await until(pilot, lambda: "high 24" in text_of(screen, "#labelled"), "the labelled are drawn, too")
        shown = text_of(screen, "#trait-rates")
        await press(pilot, "ctrl+s")
        kept = app.project.traits.get(SHIPPED[0]).reading
        assert (kept.threshold, kept.threshold_source) == (pytest.approx(slider.value), TEST)
        screen.set_focus(slider)
        await press(pilot, "shift+right")
        assert text_of(screen, "#trait-rates") != shown
        await press(pilot, "ctrl+s")
        by_hand = app.project.traits.get(SHIPPED[0]).reading
        assert by_hand.threshold > kept.threshold and by_hand.threshold_source == BY_HAND


async def test_labels_come_from_a_file_and_a_bad_one_is_one_line(workspace: Path, tmp_path: Path) -> None:
    def line(said: str, label: object) -> str:
        messages = [{"role": "user", "content": "I feel low."}, {"role": "assistant", "content": said}]
        return json.dumps({"messages": messages, "label": label})

    good = [line(f"I am sorry, that sounds hard, {n}.", "high") for n in range(4)]
    bad = [line(f"Buy milk and bread, number {n}.", 0) for n in range(4)]
    file = tmp_path / "labels.jsonl"
    file.write_text("\n".join([*good, *bad, "no json"]), encoding="utf-8")
    one_sided = tmp_path / "one.jsonl"
    one_sided.write_text("\n".join(good), encoding="utf-8")
    async with running(workspace, (120, 40)) as (app, pilot):
        screen = await opened(app, pilot)
        await asked(app, pilot, "l", str(one_sided))
        await until(pilot, lambda: "Error" in text_of(screen, "#lab-note"), "refused")
        assert "0 replies are labelled low" in " ".join(text_of(screen, "#lab-note").split())
        await asked(app, pilot, "l", str(file))
        await until(pilot, lambda: "balanced accuracy" in text_of(screen, "#trait-rates"), "calibrated")
        assert "1 lines not used" in " ".join(text_of(screen, "#trait-rates").split())


async def test_a_trait_of_ones_own_is_extracted_as_a_job(workspace: Path) -> None:
    source = workspace / "datasets" / "traits" / "crisis_recognition.jsonl"
    head, *lines = source.read_text(encoding="utf-8").splitlines()
    mine = source.with_name("mine.jsonl")
    mine.write_text("\n".join([head.replace("crisis_recognition", "mine"), *lines[:16]]), encoding="utf-8")
    async with running(workspace, (120, 40)) as (app, pilot):
        screen = await opened(app, pilot)
        assert "mine" in text_of(screen, "#trait-table")
        assert "not extracted yet" in text_of(screen, "#trait-table")
        await press(pilot, "f5")
        await until(pilot, lambda: isinstance(app.screen, AskScreen), "asked")
        app.screen.query_one(Input).value = "nonsense"
        await press(pilot, "enter")
        assert "no trait" in str(app.screen.query_one("#advice", Static).render())
        app.screen.query_one(Input).value = "mine"
        await press(pilot, "enter")
        await until(pilot, lambda: "mine" in app.project.traits.names(), "extracted")
        await until(pilot, lambda: screen.query_one("#which-trait", Chooser).value == "mine", "shown")
        assert "mine: separation by layer" in text_of(screen, "#trait-layers")
        assert "trait:mine" in app.project.personas.list_traits()


async def test_a_policy_is_chosen_here_and_holds_in_the_chat(workspace: Path) -> None:
    async with running(workspace, (120, 40)) as (app, pilot):
        await reply(pilot, app, "I feel so lonely, and I cannot stop crying.")
        screen = await opened(app, pilot)
        await asked(app, pilot, "p", "empathetic_responsiveness>-99")
        await until(pilot, lambda: "1 breach " in text_of(screen, "#limits-list"), "a breach")
        assert "> -99.00" in text_of(screen, "#limits-list")
        assert "!" in text_of(screen, "#turn-table")
        engine = app.project.loaded_engine
        assert engine is not None and app.chat.policy is not None


async def test_without_traits_the_screen_says_what_to_do(workspace: Path) -> None:
    for path in (workspace / "vectors" / "builtin" / "traits").iterdir():
        path.unlink()
    async with running(workspace, (80, 24)) as (app, pilot):
        await say(pilot, "/traits")
        await until(pilot, lambda: isinstance(app.screen, TraitsScreen), "the screen")
        screen = app.screen
        assert isinstance(screen, TraitsScreen)
        await until(pilot, lambda: screen._turns is not None, "measured")
        assert "f5 does that" in text_of(screen, "#drift")
        await press(pilot, "l")
        assert "f5 does that" in text_of(screen, "#lab-note")


async def test_a_trait_is_traced_with_what_the_reply_scores(workspace: Path) -> None:
    async with running(workspace, (120, 40)) as (app, pilot):
        await say(pilot, "/load trait:crisis_recognition")
        await say(pilot, "/trace trait:crisis_recognition")
        await reply(pilot, app, "I feel alone.")
        await until(pilot, lambda: "reply " in str(app.main.trace.render()), "its score")
        drawn = str(app.main.trace.render())
        assert "crisis_re" in drawn and "trait:" not in drawn
        screen = await opened(app, pilot)
        assert screen._turns is not None
        measured = screen._turns[-1].scores["crisis_recognition"]
        assert float(drawn.rpartition("reply ")[2].split()[0]) == pytest.approx(measured, abs=0.3)
