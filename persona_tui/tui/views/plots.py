"""Plots as rows of block characters, without a screen: they read as well without colours."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from textual.content import Content

_BLOCKS = " ▁▂▃▄▅▆▇█"
_EIGHTHS = 8
_HANGING = " ▔▀█"  # what hangs from above comes in fewer sizes
_MARK = "│"


def bars(
    values: Sequence[float],
    height: int,
    top: float,
    style: str,
    mark: int | None = None,
) -> list[Content]:
    """Columns from 0 up to `top`, one cell wide each; the rows from above to below.

    Args:
        values: one for each column; below 0 counts as 0. What is above 0 shows at least a little.
        height: rows.
        top: the value that fills a column.
        style: of the columns.
        mark: a column where a line runs through what is empty.
    """
    sizes = [_eighths(value, height, top) for value in values]
    rows = []
    for row in range(height - 1, -1, -1):
        cells = []
        for place, size in enumerate(sizes):
            block = _BLOCKS[max(0, min(_EIGHTHS, size - row * _EIGHTHS))]
            cells.append((_MARK, "$text-warning") if place == mark and block == " " else (block, style))
        rows.append(joined(cells))
    return rows


def _eighths(value: float, height: int, top: float) -> int:
    if value <= 0 or top <= 0:
        return 0
    return max(1, round(min(value / top, 1.0) * height * _EIGHTHS))


def hanging(values: Sequence[float], height: int, top: float, style: str) -> list[Content]:
    """Columns from 0 down to `-top`, for values below 0; the rows from above to below."""
    steps = len(_HANGING) - 1
    sizes = [
        0 if value >= 0 or top <= 0 else max(1, round(-value / top * height * steps)) for value in values
    ]
    return [
        joined([(_HANGING[max(0, min(steps, size - row * steps))], style) for size in sizes])
        for row in range(height)
    ]


def joined(cells: Sequence[tuple[str, str]]) -> Content:
    """Cells as one row; neighbours of one style become one span."""
    parts: list[tuple[str, str]] = []
    for text, style in cells:
        if parts and parts[-1][1] == style:
            parts[-1] = (parts[-1][0] + text, style)
        else:
            parts.append((text, style))
    return Content.assemble(*parts)


def repeated(values: Sequence[float], width: int) -> tuple[list[float], int]:
    """Values as columns that fill a width as far as whole cells go; and how many cells each has.

    Where there is room, a cell of each stays empty.
    """
    each = max(1, width // max(1, len(values)))
    gap = int(each > 2)
    return [cell for value in values for cell in [*([value] * (each - gap)), *([0.0] * gap)]], each


def squeezed(values: Sequence[float], width: int) -> list[float]:
    """As many values as there are cells: of those that share a cell, the one farthest from 0 stays."""
    count = len(values)
    if count <= width:
        return list(values)
    edges = [place * count // width for place in range(width + 1)]
    return [max(values[start:stop], key=abs) for start, stop in itertools.pairwise(edges)]


def ruler(low: str, high: str, width: int, mark: int | None = None, label: str = "") -> Content:
    """Return the row below a plot: what its ends are, and where something is."""
    row = list(low + high.rjust(max(width - len(low), len(high) + 1)))[:width]
    if mark is None:
        return Content.styled("".join(row), "dim")
    text = f"▲ {label}" if label else "▲"
    start = mark if mark + len(text) <= width else max(0, mark - len(text) + 1)
    if start < mark:
        text = f"{label} ▲"
    before, after = "".join(row[:start]), "".join(row[start + len(text) :])
    clear_before = before if start > len(low) else " " * start
    clear_after = after if len(after) >= len(high) else " " * len(after)
    return Content.assemble((clear_before, "dim"), (text, "$text-warning"), (clear_after, "dim"))


def number(value: float) -> str:
    """Return a number in few characters."""
    return f"{value:.4g}"


def percent(value: float | None) -> str:
    """Return a share, or a dash where there is none."""
    return "–" if value is None else f"{value:.1%}"
