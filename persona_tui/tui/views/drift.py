"""A conversation along a direction, reply by reply, against what is ordinary for the model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING

from textual.app import ComposeResult
from textual.content import Content

from persona_tui.core.documents import printable
from persona_tui.tui.views.canvas import ACROSS, DOWN, Canvas
from persona_tui.tui.views.plot import Plot, Sheet, message
from persona_tui.tui.views.view import View

if TYPE_CHECKING:
    from persona_tui.pictures.drift import Drift

_SCALE = 8  # cells for the numbers on the left
_APART = 12  # cells between two replies, at most
_LEAST_SPAN = 2.0  # so that a calm conversation does not look like a storm
_ORDINARY = "on $success 15%"
_SPOKEN = "◇"
_READINGS = 18  # cells of the first two columns
AsSpoken = Sequence[float | None]  # by reply; None = that was not measured


class DriftView(View):
    """The way as a line."""

    TITLE = "drift"

    def compose(self) -> ComposeResult:
        """Return the parts."""
        yield Plot(id="drift-line")

    def empty(self, why: str) -> None:
        """There is nothing to show."""
        self.query_one(Plot).show(message(why))

    def show(self, found: Drift, unit: str, spoken: AsSpoken) -> None:
        """Show a conversation's way.

        Args:
            found: the way.
            unit: of its readings.
            spoken: where each reply was as it was spoken.
        """
        self.query_one(Plot).show(lambda width, height: drift_rows(found, unit, width, height, spoken))


class RepliesView(View):
    """Every reply with its reading."""

    TITLE = "replies"

    def compose(self) -> ComposeResult:
        """Return the parts."""
        yield Sheet(id="drift-table")

    def show(self, found: Drift, unit: str, texts: Sequence[str], spoken: AsSpoken) -> None:
        """Show the readings with the replies' first words."""
        self.query_one(Sheet).show(lambda width, height: reading_rows(found, unit, texts, spoken))


def drift_rows(found: Drift, unit: str, width: int, height: int, spoken: AsSpoken = ()) -> list[Content]:
    """Return the way in so many cells: the line, the replies' numbers, what the lines and colours are."""
    said = [weak_in_words(found.weak), _range_in_words(found, unit), _floor_in_words(found, unit)]
    if any(each is not None for each in spoken):
        said.append(Content.assemble((_SPOKEN, "$text-accent"), (" as it was spoken", "dim")))
    words = [line for part in said if part is not None for line in part.wrap(width)]
    rows = max(height - 1 - len(words), 3)
    return [*_line(found, max(width - _SCALE, 4), rows, spoken), *words]


def _ends(found: Drift, spoken: AsSpoken) -> tuple[float, float]:
    """Between which readings the picture lies."""
    values = [
        *found.readings,
        *(each for each in spoken if each is not None),
        0.0,
        *(found.ordinary or ()),
        *([found.floor] if found.floor is not None else []),
    ]
    missing = max(_LEAST_SPAN - (max(values) - min(values)), 0.0) / 2
    return float(min(values) - missing), float(max(values) + missing)


def _line(found: Drift, width: int, height: int, spoken: AsSpoken) -> list[Content]:
    low, high = _ends(found, spoken)
    canvas, apart = Canvas(width, height), min(_APART, max(width - 4, 1) / max(len(found.readings), 1))

    def down(value: float) -> float:
        return (high - value) / (high - low) * (height * DOWN - 1)

    def row(value: float) -> int:
        return int(down(value)) // DOWN

    def column(turn: int) -> int:
        return min(int(apart / 2 + turn * apart), width - 1)

    if found.ordinary is not None:
        for each in range(row(found.ordinary[1]), row(found.ordinary[0]) + 1):
            canvas.ground(each, _ORDINARY)
    points = [(column(turn) * ACROSS, down(value)) for turn, value in enumerate(found.readings)]
    for start, end in pairwise(points):
        canvas.line(start, end, "$text-primary")
    for turn, value in enumerate(found.readings):
        outside = found.is_outside(value)
        canvas.put(
            column(turn), row(value), "◆" if outside else "●", "bold $text-error" if outside else "bold"
        )
    for turn, spoke in enumerate(spoken):
        if spoke is not None and row(spoke) != row(found.readings[turn]):
            canvas.put(column(turn), row(spoke), _SPOKEN, "bold $text-accent")
    if found.floor is not None:
        canvas.rule(row(found.floor), "─", "$text-warning")
    canvas.rule(row(0.0), "┈", "dim")
    ticks = {row(0.0): "0", row(high): f"{high:+.1f}", row(low): f"{low:+.1f}"}
    drawn = [
        Content.assemble((f"{ticks.get(number, ''):>{_SCALE - 1}} ", "dim"), line)
        for number, line in enumerate(canvas.rows())
    ]
    return [*drawn, _numbers(len(found.readings), width, column)]


def _numbers(count: int, width: int, column: Callable[[int], int]) -> Content:
    """Return the replies' numbers below the line, as many as there is room for."""
    cells = [" "] * width
    free = 0
    for turn in range(count):
        text, start = str(turn + 1), column(turn)
        if start >= free and start + len(text) <= width:
            cells[start : start + len(text)] = text
            free = start + len(text) + 1
    return Content.assemble(" " * _SCALE, ("".join(cells), "dim"))


def weak_in_words(why: str | None) -> Content | None:
    """Return that a direction is weak, and why; None if it is not."""
    return Content.styled(f"a weak direction: {why}", "$text-warning") if why else None


def _range_in_words(found: Drift, unit: str) -> Content | None:
    if found.ordinary is None:
        return Content.styled("0 = ordinary replies; how far they spread along it is not known.", "dim")
    low, high = found.ordinary
    left = found.left_at
    end = (f" Reply {left} left it.", "$text-error") if left is not None else (" Every reply is in it.", "")
    shaded = (" shaded ", _ORDINARY)
    return Content.assemble(shaded, f" 95% of ordinary replies, {low:+.2f} to {high:+.2f}{unit}.", end)


def _floor_in_words(found: Drift, unit: str) -> Content | None:
    if found.floor is None:
        return None
    text = f" floor {found.floor:+.2f}{unit}; ● is how the unsteered model reads a reply: it may lie below."
    return Content.assemble(("──", "$text-warning"), (text, "dim"))


def reading_rows(found: Drift, unit: str, texts: Sequence[str], spoken: AsSpoken = ()) -> list[Content]:
    """Return a line for every reply: its number, its reading, where it was when spoken, how it begins."""
    known = any(each is not None for each in spoken)
    head = f"{'reply':<7}{found.name}"
    rows = [Content.styled(f"{head:<{_READINGS}}as spoken" if known else head, "dim")]
    for turn, (value, text) in enumerate(zip(found.readings, texts, strict=True), 1):
        measured = spoken[turn - 1] if known else None
        spoke = "" if measured is None else f"{measured:+.2f}{unit}"
        mark = (" ◆", "bold $text-error") if found.is_outside(value) else ("  ", "")
        said = " ".join(printable(text).split())
        rows.append(
            Content.assemble(
                f"{turn:<7}",
                (f"{value:+.2f}{unit}".ljust(_READINGS - 9 if known else 0), "bold"),
                mark,
                (spoke.ljust(9) if known else "", "$text-accent"),
                (f" {said}", "dim"),
            )
        )
    return rows
