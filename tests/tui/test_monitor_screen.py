"""The monitor screen, driven by keys on the tiny model."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from textual.pilot import Pilot
from textual.widgets import Input, Static

from persona_tui.project.project import Project
from persona_tui.tui.app import PersonaApp
from persona_tui.tui.screens.fit_monitor import FitScreen
from persona_tui.tui.screens.monitors import MonitorsScreen
from persona_tui.tui.views.plot import Plot, Sheet
from persona_tui.tui.views.threshold import ThresholdSlider
from persona_tui.tui.widgets.chooser import Chooser

from .driving import LONG, press, running, say, until

pytestmark = pytest.mark.slow


async def opened(app: PersonaApp, pilot: Pilot[None]) -> MonitorsScreen:
    await press(pilot, "f11")
    await until(pilot, lambda: isinstance(app.screen, MonitorsScreen) and app.screen.is_mounted, "the screen")
    await until(pilot, lambda: bool(app.screen.query(ThresholdSlider)), "its parts")
    screen = app.screen
    assert isinstance(screen, MonitorsScreen)
    return screen


def text_of(screen: MonitorsScreen, which: str) -> str:
    """What a plot, a sheet or a line says."""
    node = screen.query_one(which)
    if isinstance(node, Sheet):
        node = node.query_one(Static)
    return str(node.render())


def confusion(screen: MonitorsScreen) -> str:
    return text_of(screen, "#confusion")


@pytest.mark.parametrize(("size", "shown"), [((80, 24), 1), ((120, 40), 3), ((200, 60), 6)])
async def test_as_many_views_as_have_their_place_and_numbers_choose_one(
    workspace: Path, size: tuple[int, int], shown: int
) -> None:
    async with running(workspace, size) as (app, pilot):
        screen = await opened(app, pilot)

        def visible() -> list[str]:
            return [str(view.id) for view in screen._views if view.display]

        assert len(visible()) == shown and "scores" in visible()
        await press(pilot, "tab", "alt+left")  # from the first view round to the last one
        assert "most-wrong" in visible() and len(visible()) == shown
        await press(pilot, "alt+3")
        assert "layers" in visible()
        await until(pilot, lambda: "best at layer" in text_of(screen, "#layer-plots"), "the plot")
        await press(pilot, "escape")
        await until(pilot, lambda: app.screen is app.main, "closed")


async def test_the_threshold_moves_the_confusion_matrix_and_the_wrong_examples(workspace: Path) -> None:
    async with running(workspace, (120, 40)) as (app, pilot):
        screen = await opened(app, pilot)
        slider = screen.query_one(ThresholdSlider)
        before, wrong = confusion(screen), text_of(screen, "#wrong")
        assert "passed" in before and "caught" in before and "fitted" in before
        await press(pilot, "right", "right")
        assert confusion(screen) != before
        assert text_of(screen, "#wrong") != wrong or "in use" in confusion(screen)
        await press(pilot, *"-9999", "enter")  # typed, and kept within the scores
        assert slider.value == pytest.approx(slider.low)
        assert "FPR   0.0%" in confusion(screen) and "FNR 100.0%" in confusion(screen)
        await press(pilot, "r")
        assert confusion(screen) == before


async def test_a_threshold_is_saved_for_the_chat_and_taken_back(workspace: Path) -> None:
    async with running(workspace, (120, 40)) as (app, pilot):
        screen = await opened(app, pilot)
        store = Project.open(workspace).monitors
        fitted = store.load("default").detector().threshold
        await press(pilot, "right", "ctrl+s")
        saved = store.load("default").detector()
        assert saved.threshold != fitted and saved.fit["fitted_threshold"] == fitted
        assert app.chat.guard.monitor.detector().threshold == saved.threshold
        await press(pilot, "r")
        assert store.load("default").detector().threshold == fitted
        evaluation = json.loads(store.evaluation_path("default").read_text())
        assert evaluation["thresholds"][store.load("default").method] == fitted
        assert "now uses" in text_of(screen, "#lab-note")


async def test_methods_sets_and_layers_are_chosen(workspace: Path) -> None:
    async with running(workspace, (200, 60)) as (app, pilot):
        screen = await opened(app, pilot)
        screen.set_focus(screen.query_one("#which-method"))
        methods = screen.query_one("#which-method", Chooser)
        assert list(methods.values)[-1] == "words"
        seen = set()
        for _ in methods.values:
            await press(pilot, "right")
            seen.add(methods.value)
            assert f"{methods.value}," in text_of(screen, "#layer-plots") or methods.value in (
                "words",
                "consensus",
            )
        assert seen == set(methods.values)
        screen.set_focus(screen.query_one("#which-sets"))
        await press(pilot, "right", "right")
        assert screen.query_one("#which-sets", Chooser).value == "borderline"
        assert "of 20" in confusion(screen) and "FNR      –" in confusion(screen)
        for name in ("standard", "borderline", "adversarial", "large"):
            assert name in text_of(screen, "#comparison")


async def test_a_text_is_judged_by_all_methods_at_the_threshold_of_the_slider(workspace: Path) -> None:
    async with running(workspace, (200, 60)) as (app, pilot):
        screen = await opened(app, pilot)
        slider = screen.query_one(ThresholdSlider)
        await press(pilot, "right")
        screen.set_focus(screen.query_one("#check-text"))
        await press(pilot, *"bread?", "enter")
        await until(pilot, lambda: "consensus" in text_of(screen, "#checked"), "judged")
        said = text_of(screen, "#checked")
        assert "bread?" in said and f"{slider.value:.4g}" in said
        assert screen.query_one("#check-text", Input).value == ""
        await press(pilot, " ", "enter")
        await until(pilot, lambda: "Error: an empty text" in text_of(screen, "#checked"), "refused")


async def test_results_are_written_where_it_says(workspace: Path) -> None:
    async with running(workspace, (80, 24)) as (app, pilot):
        screen = await opened(app, pilot)
        await press(pilot, "w")
        folder = workspace / "results" / "builtin" / "monitors" / "default"
        assert (folder / "results.json").is_file() and (folder / "scores.csv").is_file()
        assert str(folder) in str(screen.query_one("#lab-note").render()).replace("\n", "")


async def test_without_a_monitor_one_is_fitted_and_measured_as_a_job(workspace: Path) -> None:
    for path in (workspace / "vectors" / "builtin" / "monitors").iterdir():
        path.unlink()
    async with running(workspace, (120, 40)) as (app, pilot):
        await say(pilot, "/monitors")
        await until(pilot, lambda: bool(app.screen.query(ThresholdSlider)), "the screen")
        screen = app.screen
        assert isinstance(screen, MonitorsScreen)
        assert "no monitor yet" in text_of(screen, "#histograms")
        await press(pilot, "f5")
        assert "no monitor yet" in text_of(screen, "#lab-note")
        await press(pilot, "f")
        await until(pilot, lambda: isinstance(app.screen, FitScreen), "asked")
        await press(pilot, "down", "right", "enter", "up", "enter")  # the small training set
        await until(pilot, lambda: app.screen is screen, "answered")
        await until(pilot, lambda: "passed" in confusion(screen), "fitted and measured", LONG)
        assert "done" in text_of(screen, "#lab-note")
        assert app.project.monitors.evaluation_path("default").is_file()


async def test_an_evaluation_that_is_missing_is_made_and_a_damaged_file_is_one_line(workspace: Path) -> None:
    folder = workspace / "vectors" / "builtin" / "monitors"
    (folder / "default.evaluation.json").unlink()
    (folder / "broken.safetensors").write_bytes(b"no tensors")
    async with running(workspace, (120, 40)) as (app, pilot):
        screen = await opened(app, pilot)
        assert "not been measured" in text_of(screen, "#histograms")
        assert "best at layer" in text_of(screen, "#layer-plots")
        await press(pilot, "f5")
        await until(pilot, lambda: "passed" in confusion(screen), "measured")
        screen.set_focus(screen.query_one("#which-monitor"))
        await press(pilot, "right")
        note = text_of(screen, "#lab-note")
        assert note.startswith("Error: ") and "broken.safetensors" in note
        assert screen.query_one("#histograms", Plot).is_mounted
