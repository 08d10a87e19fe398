"""Expression and loss over strength, as calibration measured them, and where the strength is now."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import TYPE_CHECKING

from textual.content import Content

from persona_tui.pictures.curve import curve_of
from persona_tui.tui.views.canvas import ACROSS, DOWN, Canvas

if TYPE_CHECKING:  # it imports torch
    from persona_tui.vectors.persona import Calibration

_LOWEST, _HIGHEST = -0.2, 1.5  # of both figures; a broken text's loss may be ten times that
_EXPRESSION, _LOSS = "$text-success", "$text-error"


def curve_rows(calibration: Calibration, now: float | None, width: int, height: int) -> list[Content]:
    """Return the curve in so many cells: a key, the lines, the strengths; nothing if none was measured.

    Args:
        calibration: what was measured.
        now: the strength that is spoken with; None = it is not shown.
        width: of the picture.
        height: of the picture.
    """
    points = curve_of(calibration)
    if not points:
        return []
    rows = max(height - 2, 2)
    canvas, most = (
        Canvas(width, rows),
        max([point.strength for point in points] + [abs(now or 0.0), 0.5]) * 1.05,
    )
    values = [value for point in points for value in (point.expression, point.loss)]
    low, high = max(min(0.0, *values), _LOWEST), min(max(1.0, *values), _HIGHEST)

    def across(strength: float) -> float:
        return strength / most * (width * ACROSS - 1)

    def down(value: float) -> float:
        return (high - min(max(value, low), high)) / (high - low) * (rows * DOWN - 1)

    lines = (
        ([(point.strength, point.expression) for point in points], "●", _EXPRESSION),
        ([(point.strength, point.loss) for point in points], "×", _LOSS),
    )
    for line, mark, style in lines:
        dots = [(across(strength), down(value)) for strength, value in line]
        for start, end in pairwise(dots):
            canvas.line(start, end, style)
        for x, y in dots:
            canvas.put(int(x) // ACROSS, int(y) // DOWN, mark, style)
    canvas.pole(int(across(calibration.default_strength)) // ACROSS, "┊", "dim")
    canvas.rule(int(down(0.0)) // DOWN, "┈", "dim")
    key = Content.assemble(("● expression ", _EXPRESSION), ("× loss ", _LOSS), ("┊ chosen", "dim"))
    return [key.truncate(width), *canvas.rows(), _strengths(now, most, width, across)]


def _strengths(now: float | None, most: float, width: int, across: Callable[[float], float]) -> Content:
    """Return the row below: 0, the end, and an arrow at the strength of now."""
    cells = list("0".ljust(width))
    end = f"{most:.1f}"
    cells[width - len(end) :] = end
    if now is None:
        return Content.styled("".join(cells), "dim")
    text, at = f"▲ {now:.2f}", int(across(abs(now))) // ACROSS
    start = max(0, min(at, width - len(text)))
    if start + len(text) >= width - len(end):  # no room for both
        cells[width - len(end) :] = " " * len(end)
    return Content.assemble(
        ("".join(cells[:start]), "dim"), (text, "$text-accent"), ("".join(cells[start + len(text) :]), "dim")
    )
