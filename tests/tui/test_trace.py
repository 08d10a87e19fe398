"""What the traces draw."""

from __future__ import annotations

import pytest
from textual.app import App, ComposeResult

from persona_tui.tui.widgets.trace import Line, TracePoint, TraceView


class Traces(App[None]):
    """Traces and nothing else."""

    def __init__(self) -> None:
        super().__init__()
        self.trace = TraceView()

    def compose(self) -> ComposeResult:
        yield self.trace


def rows(app: Traces) -> list[str]:
    return str(app.trace.render()).splitlines()


FLOOR = Line(-1.0, is_floor=True, unit="σ")


async def test_bars_rise_above_the_floor_and_lifted_tokens_are_marked() -> None:
    app = Traces()
    async with app.run_test(size=(60, 8)) as pilot:
        app.trace.show({"assistant": FLOOR})
        await pilot.pause()
        for value, lifted in ((1.0, 0.0), (-1.0, 0.4), (-3.0, 0.0), (0.0, 0.0)):
            app.trace.add(TracePoint({"assistant": value}, lifted))
        upper, lower = rows(app)
        assert upper.startswith("assistant  █▴▁▄▁▁") and "+0.00σ" in upper
        assert lower.startswith("           ██▁█ ") and "floor -1.00 · 1/4 ▴" in lower
        assert app.trace.capped == 1 and app.trace.size.height == 2


async def test_several_traces_and_none() -> None:
    app = Traces()
    async with app.run_test(size=(60, 8)) as pilot:
        app.trace.show({"assistant": FLOOR, "a_persona_with_a_long_name": Line()})
        app.trace.add(TracePoint({"assistant": 0.0, "a_persona_with_a_long_name": 0.7}))
        await pilot.pause()
        assert app.trace.size.height == 4
        assert "a_persona…" in rows(app)[2] and "+0.70" in rows(app)[2] and "ordinary" in rows(app)[3]
        app.trace.show({})
        assert not app.trace.display


async def test_what_was_not_measured_leaves_a_gap() -> None:
    app = Traces()
    async with app.run_test(size=(60, 8)):
        app.trace.show({"sage": Line()})
        app.trace.add(TracePoint({}))
        app.trace.add(TracePoint({"sage": 1.0}))
        assert rows(app)[1].startswith("            █ ")


@pytest.mark.parametrize("width", [30, 34, 60, 140])
async def test_rows_fit(width: int) -> None:
    app = Traces()
    async with app.run_test(size=(width, 8)):
        app.trace.show({"assistant": FLOOR})
        for _ in range(300):
            app.trace.add(TracePoint({"assistant": -9.25}, 1.0))
        assert max(len(row) for row in rows(app)) <= width
