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


FLOOR = Line(-1.5, unit="σ")


async def test_a_line_with_its_zero_and_its_floor_and_lifted_tokens_are_marked() -> None:
    app = Traces()
    async with app.run_test(size=(60, 32)) as pilot:
        app.trace.show({"assistant": FLOOR})
        await pilot.pause()
        for value, lifted in ((1.0, 0.0), (-1.0, 0.4), (-3.0, 0.0), (0.0, 0.0)):
            app.trace.add(TracePoint({"assistant": value}, lifted))
        first, zero, floor, last = rows(app)
        assert first.startswith("assistant  ") and first.endswith("+0.00σ") and "⠁" <= first[11] <= "⣿"
        assert "┈┈┈" in zero and zero.endswith("0 ordinary")
        assert "───" in floor and floor.endswith("floor -1.50σ · 1/4 ▴")
        assert "▴" in floor[11:15] and last.strip() and app.trace.capped == 1 and app.trace.size.height == 4


async def test_there_are_three_to_six_rows_as_the_terminal_has_room() -> None:
    for height, expected in ((24, 3), (40, 5), (60, 6)):
        app = Traces()
        async with app.run_test(size=(80, height)) as pilot:
            app.trace.show({"assistant": FLOOR})
            await pilot.pause()
            assert app.trace.size.height == expected


async def test_several_traces_and_none() -> None:
    app = Traces()
    async with app.run_test(size=(60, 8)) as pilot:
        app.trace.show({"assistant": FLOOR, "a_persona_with_a_long_name": Line(unit=" of its own")})
        app.trace.add(TracePoint({"assistant": 0.0, "a_persona_with_a_long_name": 0.7}))
        await pilot.pause()
        assert app.trace.size.height == 6
        assert "a_persona…" in rows(app)[3] and "+0.70 of its own" in rows(app)[3]
        assert any("0 ordinary" in row for row in rows(app)[3:])
        app.trace.show({})
        assert not app.trace.display


async def test_what_was_not_measured_leaves_a_gap() -> None:
    app = Traces()
    async with app.run_test(size=(60, 8)):
        app.trace.show({"sage": Line()})
        app.trace.add(TracePoint({}))
        app.trace.add(TracePoint({"sage": 1.0}))
        columns = [{row[at] for row in rows(app)} for at in (11, 12)]
        assert columns[0] <= {" ", "┈"} and any("⠀" < each <= "⣿" for each in columns[1])


@pytest.mark.parametrize("width", [30, 34, 60, 140])
async def test_rows_fit(width: int) -> None:
    app = Traces()
    async with app.run_test(size=(width, 8)):
        app.trace.show({"assistant": FLOOR})
        for _ in range(300):
            app.trace.add(TracePoint({"assistant": -9.25}, 1.0))
        assert max(len(row) for row in rows(app)) <= width


async def test_an_axis_that_is_made_of_too_little_says_so() -> None:
    app = Traces()
    async with app.run_test(size=(60, 24)) as pilot:
        app.trace.show({"safety": Line(-1.0, "σ", weak=True), "assistant": FLOOR})
        app.trace.add(TracePoint({"assistant": 0.0, "safety": 0.7}))
        await pilot.pause()
        assert rows(app)[1].startswith("weak") and sum("weak" in row for row in rows(app)) == 1
