"""Long names, many personas and narrow terminals: what matters more is cut last."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from rich.cells import cell_len
from textual.app import App, ComposeResult
from textual.widgets import OptionList, Static

from persona_tui.core.mix import Mix
from persona_tui.pictures.heat import HeatMap
from persona_tui.tui.blocks import ruler_line
from persona_tui.tui.help import help_here, help_text
from persona_tui.tui.screens.traces import TracesScreen
from persona_tui.tui.views.heat import heat_rows
from persona_tui.tui.widgets.jobs_panel import JobLog, JobRow
from persona_tui.tui.widgets.personas import PersonaList, PersonaRow

from .driving import picture, press, running, say, until

pytestmark = pytest.mark.slow

LONG = "captain_of_a_very_old_and_leaky_ship_on_the_northern_sea"


@pytest.fixture
def crowded(workspace: Path) -> Path:
    """A workspace of twelve personas, one of them with a long name."""
    people = workspace / "vectors" / "builtin" / "personas"
    for name in (LONG, "cook", "doctor", "gardener", "judge", "poet", "weaver"):
        shutil.copy(people / "sage.safetensors", people / f"{name}.safetensors")
    return workspace


@pytest.mark.parametrize("size", [(80, 24), (120, 40), (200, 60)])
async def test_a_blend_of_long_names_leaves_room_for_the_other_facts(
    crowded: Path, size: tuple[int, int]
) -> None:
    blend = Mix({"sage": 0.5, "trickster": 0.3, LONG: 0.4, "guardian": -0.2}, 0.3)
    async with running(crowded, size, blend) as (app, _):
        status = app.main.status.render().plain
        assert status.startswith("builtin · sage 36% + ") and status.endswith("capping on")
        assert cell_len(status) <= size[0] and ("…" in status) == (size[0] < 200)


async def test_what_stands_below_a_long_list_of_personas_stays_on_the_screen(crowded: Path) -> None:
    async with running(crowded, (80, 24)) as (app, pilot):
        await press(pilot, "f2")
        people = app.main.query_one(PersonaList)
        await until(pilot, lambda: "● speaking  ◐ loaded" in picture(app), "the signs")
        assert "○ on disk   ~ traced" in picture(app) and people.max_scroll_y > 0
        await until(
            pilot, lambda: re.search(r"○ cook +archetype", picture(app)) is not None, "rows of one line"
        )
        await press(pilot, "end")
        await until(pilot, lambda: "harmful_validation" in picture(app), "the last one, scrolled to")
        await pilot.resize_terminal(80, 20)
        await pilot.pause()
        await until(pilot, lambda: "harmful_validation" in picture(app), "the last one, in a shorter list")


def test_a_kind_never_cuts_a_name() -> None:
    assert PersonaRow("sage", False, kind="archetype").content(22).plain == "○ sage       archetype"
    row = PersonaRow("grumpy_old_wizard", True, kind="described")
    assert row.content(22).plain.rstrip() == "◐ grumpy_old_wizard"
    assert PersonaRow("grumpy_old_wizard", True, 0.4).content(22).plain.endswith("… 40%")


def test_of_a_change_what_was_before_is_cut_first() -> None:
    line = ruler_line(f"sage 36% + {LONG} −29% → trickster · strength 0.30 → 0.45", 60).plain
    assert cell_len(line) == 60 and "… → trickster · strength 0.30 → 0.45" in line and "── sage" in line
    assert " sage → trickster " in ruler_line("sage → trickster", 60).plain
    assert cell_len(ruler_line(f"sage → {LONG}", 30).plain) == 30


@pytest.mark.parametrize("size", [(80, 24), (200, 60)])
async def test_bars_of_cosines_stand_below_each_other(crowded: Path, size: tuple[int, int]) -> None:
    async with running(crowded, size) as (app, pilot):
        await say(pilot, "/info sage")
        await until(pilot, lambda: bool(app.screen.query("PageScreen Static")), "the page")
        lines = str(app.screen.query_one("PageScreen Static", Static).render()).splitlines()
        start = lines.index("cosine to the other personas") + 1
        bars = [line.index("│") for line in lines[start : start + 11]]
        assert len(set(bars)) == 1 and any(line.startswith(f"{LONG[:31]}…") for line in lines)
        assert any(line.startswith("trickster") for line in lines)


async def test_what_a_long_name_of_an_action_does_stands_below_it(crowded: Path) -> None:
    async with running(crowded, (120, 40)) as (app, _):
        lines = help_text(app, 100, help_here(app), app.slash.all()).plain.splitlines()
        place = lines.index("  Stop speaking as a persona".ljust(21))
        assert lines[place + 1].strip() == "No persona: the plain model"


async def test_traces_have_one_row_each(crowded: Path) -> None:
    async with running(crowded, (80, 24), Mix({LONG: 1.0}, 0.3)) as (app, pilot):
        app.action_traces()
        await until(
            pilot, lambda: isinstance(app.screen, TracesScreen) and bool(app.screen.query(OptionList)), ""
        )
        await until(pilot, lambda: LONG[:20] in picture(app), "the list")
        (row,) = (line for line in picture(app).splitlines() if LONG[:20] in line)
        assert "[✓]" in row or "[ ]" in row
        assert "a loaded persona" in row


async def test_the_log_is_wrapped_again_for_another_width() -> None:
    class Logs(App[None]):
        def compose(self) -> ComposeResult:
            yield JobLog()

    async with Logs().run_test(size=(100, 20)) as pilot:
        log = pilot.app.query_one(JobLog)
        said = "error: there is no command of this name, nor one that is anything like it as far as I can see"
        log.add(said)
        await pilot.pause()
        assert list(log.lines)[:1] == [said]
        await pilot.resize_terminal(60, 20)
        await pilot.pause()
        assert max(map(len, log.lines)) < 60 and " ".join(" ".join(log.lines).split()) == said
        await pilot.resize_terminal(100, 20)
        await pilot.pause()
        assert list(log.lines)[:1] == [said]


def test_a_fast_job_is_told_in_plain_digits() -> None:
    row = JobRow("k", "create", "running", 0.5, note="calibration", rate=1434.2)
    assert "1,434/s" in row.content().plain and "e+" not in row.content().plain


def test_few_layers_are_drawn_taller_where_there_is_room() -> None:
    table = np.linspace(-1, 1, 15).reshape(5, 3)
    found = HeatMap("assistant", (2, 3, 4, 5, 6), ("a", "b", "c"), table, table)
    low, high = heat_rows(found, table, 0, 40, 9), heat_rows(found, table, 0, 40, 40)
    assert len(high) == len(low) + 10 == 18
    assert [row.plain[:4] for row in high[:4]] == ["  6 ", "    ", "    ", "  5 "]
