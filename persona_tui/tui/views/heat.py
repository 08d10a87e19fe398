"""Layers by tokens as colours, and what a direction means in the model's own vocabulary."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from textual.app import ComposeResult
from textual.content import Content

from persona_tui.core.documents import printable
from persona_tui.tui.views.plot import Plot, Sheet, message
from persona_tui.tui.views.plots import joined
from persona_tui.tui.views.view import View

if TYPE_CHECKING:
    from persona_tui.pictures.heat import HeatMap
    from persona_tui.pictures.tokens import TokenShift

_LABEL = 4  # cells for a layer's number
_STRIP_LABEL = 10  # cells before a strip
_LEVELS = 6  # of colour, on either side
_SHADES = " ░▒▓██▉"  # of the same levels, where there are too few colours
_WIDEST, _TALLEST = 3, 3  # cells of a token, and of a layer


class HeatView(View):
    """One of the two tables."""

    def __init__(self, title: str, *, id: str) -> None:
        """
        Args:
            title: which of them.
            id: of the view.
        """
        super().__init__(id=id)
        self.TITLE = title

    def compose(self) -> ComposeResult:
        """Return the parts."""
        yield Plot()

    def empty(self, why: str) -> None:
        """There is nothing to show."""
        self.query_one(Plot).show(message(why))

    def show(self, found: HeatMap, table: NDArray[np.float64], cursor: int) -> None:
        """Show a table.

        Args:
            found: the map.
            table: which of its two.
            cursor: the token that is pointed at.
        """
        plain = self.app.current_theme.name.startswith("ansi")
        self.query_one(Plot).show(lambda width, height: heat_rows(found, table, cursor, width, height, plain))


class ShiftsView(View):
    """The tokens that a direction raises and lowers."""

    TITLE = "means"

    def compose(self) -> ComposeResult:
        """Return the parts."""
        yield Sheet(id="shifts")

    def empty(self, why: str) -> None:
        """There is nothing to show."""
        self.query_one(Sheet).show(message(why))

    def show(self, shifts: Sequence[TokenShift]) -> None:
        """Show them, layer by layer."""
        self.query_one(Sheet).show(lambda width, height: shift_rows(shifts))


def heat_rows(
    found: HeatMap, table: NDArray[np.float64], cursor: int, width: int, height: int, plain: bool = False
) -> list[Content]:
    """Return a table in so many cells: deep layers on top, the pointed-at token marked, its value below.

    Args:
        found: the map.
        table: which of its two.
        cursor: a token.
        width: of the picture.
        height: of the picture.
        plain: whether levels are shown by characters, since there are too few colours.
    """
    limit, depth = found.limit, max(height - 3, 1)
    layers = _grouped(len(found.layers), depth)
    tall = max(1, min(_TALLEST, depth // len(layers)))
    room = max(width - _LABEL, 1)
    cell = max(1, min(_WIDEST, room // max(len(found.tokens), 1)))
    shown = room // cell
    first = max(0, min(cursor - shown // 2, len(found.tokens) - shown))
    columns = range(first, min(first + shown, len(found.tokens)))
    rows = []
    for group in reversed(layers):
        values = [_farthest(table[list(group), column]) for column in columns]
        cells = [_cell(value / limit, cell, plain) for value in values]
        for number in (f"{found.layers[group[0]]:>{_LABEL - 1}} ", *[" " * _LABEL] * (tall - 1)):
            rows.append(joined([(number, "dim"), *cells]))
    mark = Content(" " * (_LABEL + (cursor - first) * cell)) + Content.styled("▲", "$text-warning")
    return [*rows, mark, *_told(found, table, cursor, limit, width)]


def strip_rows(found: HeatMap, token: int, width: int, plain: bool = False) -> list[Content]:
    """One token's layers as two strips of cells, the lowest layer first: as spoken, and read unsteered.

    Args:
        found: the map.
        token: its place.
        width: of the strips.
        plain: whether levels are shown by characters, since there are too few colours.
    """
    room = max(width - _STRIP_LABEL, 1)
    layers = _grouped(len(found.layers), room)
    cell = max(1, min(_WIDEST, room // len(layers)))
    first, last = str(found.layers[0]), str(found.layers[-1])
    at = int(np.abs(found.spoken[:, token]).argmax())
    ends = f"{first}{' ' * max(len(layers) * cell - len(first) - len(last), 1)}{last}"
    strips = [
        joined(
            [
                (f"{name:<{_STRIP_LABEL}}", "dim"),
                *(_cell(_farthest(table[list(group), token]) / found.limit, cell, plain) for group in layers),
            ]
        )
        for name, table in (("spoken", found.spoken), ("unsteered", found.plain))
    ]
    said = f"most {found.spoken[at, token]:+.0%} of the stream, at layer {found.layers[at]}"
    labelled = [Content.styled(f"{'layers':<{_STRIP_LABEL}}{ends}", "dim"), *strips]
    return [*labelled, Content.styled(said, "dim").truncate(max(width, 1), ellipsis=True)]


def _grouped(count: int, room: int) -> list[range]:
    """Layers in as many groups as there are rows, the lowest first."""
    groups = min(count, room)
    edges = [place * count // groups for place in range(groups + 1)]
    return [range(start, stop) for start, stop in pairwise(edges)]


def _farthest(values: NDArray[np.float64]) -> float:
    return float(values[np.abs(values).argmax()])


def _cell(share: float, width: int, plain: bool) -> tuple[str, str]:
    level = round(max(-1.0, min(1.0, share)) * _LEVELS)
    colour = "success" if level > 0 else "error"
    if plain:
        return _SHADES[abs(level)] * width, f"$text-{colour}" if level else ""
    return " " * width, f"on ${colour} {abs(level) * 14}%" if level else ""


def _told(found: HeatMap, table: NDArray[np.float64], cursor: int, limit: float, width: int) -> list[Content]:
    values = table[:, cursor]
    strongest = int(np.abs(values).argmax())
    word = printable(found.tokens[cursor]).replace("\n", "↵") or "(nothing)"
    first = Content.assemble(
        (f"{cursor + 1}/{len(found.tokens)} ", "dim"),
        (f"“{word}”", "bold"),
        f"  {values[strongest]:+.1%} of the stream at layer {found.layers[strongest]}",
    )
    scale = Content.assemble(
        (f" {-limit:.0%} ", f"on $error {_LEVELS * 14}%"),
        "  0  ",
        (f" {limit:+.0%} ", f"on $success {_LEVELS * 14}%"),
    )
    return [first.truncate(width, ellipsis=True), scale]


def shift_rows(shifts: Sequence[TokenShift]) -> list[Content]:
    """Two lines for each layer, the deepest first."""
    rows = [Content.styled("tokens that it makes likelier ↑ and less likely ↓", "dim")]
    for each in reversed(shifts):
        rows += [
            Content.assemble((f"{each.layer:>3} ", "dim"), ("↑ ", "$text-success"), _words(each.raised)),
            Content.assemble("    ", ("↓ ", "$text-error"), (_words(each.lowered), "dim")),
        ]
    return rows


def _words(side: Sequence[tuple[str, float]]) -> str:
    return " · ".join(printable(token).strip() or "␣" for token, _ in side)
