"""The map of persona space, and the cosines between the personas."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING

from rich.cells import cell_len
from textual.app import ComposeResult
from textual.content import Content

from persona_tui.core.documents import printable
from persona_tui.pictures.labels import place_labels
from persona_tui.tui.views.canvas import ACROSS, DOWN, Canvas
from persona_tui.tui.views.plot import Plot, Sheet, message
from persona_tui.tui.views.view import View

if TYPE_CHECKING:
    from persona_tui.pictures.cosines import CosineGrid
    from persona_tui.pictures.space import PersonaMap, Place

_SIGNS = {
    "mix": ("★", "bold $text-warning", "now"),
    "turn": ("•", "$text-warning", "the conversation, reply by reply"),
    "persona": ("●", "bold $text-primary", "persona"),
    "assistant": ("■", "bold", "ordinary replies"),
    "axis": ("◆", "$text-accent", "axis, at 1σ"),
    "trait": ("▲", "$text-secondary", "end of a trait"),
    "role": ("·", "dim", "role"),
}
_LONGEST = 20  # cells of a name, or a third of the picture
_MARGIN = 0.06  # of the plane, around everything
_LEVELS = 6  # of colour, on either side
_PER_ROLE = 300  # cells of the picture for the name of one role: there may be a hundred of them


class MapView(View):
    """Points in the plane of the first two principal components.

    One of the personas is marked. Roles are dots, but for those nearest to it, which have their names.
    """

    TITLE = "map"
    _found: PersonaMap | None = None
    _marked = ""

    def compose(self) -> ComposeResult:
        """Return the parts."""
        yield Plot(id="map")

    def empty(self, why: str) -> None:
        """There is nothing to show."""
        self._found = None
        self.query_one(Plot).show(message(why))

    def show(self, found: PersonaMap, speaking: str = "") -> None:
        """Show a map, with a persona marked: the one that was before, else the one that speaks."""
        self._found = found
        names = [each.name for each in found.of("persona")]
        if self._marked not in names:
            self._marked = speaking if speaking in names else next(iter(names), "")
        self.query_one(Plot).show(lambda width, height: map_rows(found, width, height, self._marked))

    def step(self, by: int) -> None:
        """Mark another persona."""
        names = [each.name for each in self._found.of("persona")] if self._found is not None else []
        if names:
            self._marked = names[(names.index(self._marked) + by) % len(names)]
            self.query_one(Plot).refresh()


def map_rows(found: PersonaMap, width: int, height: int, marked: str = "") -> list[Content]:
    """Return the map in so many cells: what its directions are, the plane, what the signs mean.

    Args:
        found: the map.
        width: cells of a row.
        height: rows.
        marked: a persona; the roles nearest to it have names, too, and are told in the second row.
    """
    first, second = found.shares
    near = found.nearest(marked, max(width * height // _PER_ROLE, 4))
    head = Content.assemble(
        (f"layer {found.layer}", "bold"),
        (f" · → {first:.0%} of the variance · ↑ {second:.0%}", "dim"),
    )
    heads, legend = [head, *([_nearest(marked, near, width)] if near else [])], _legend(found, width)
    room = max(height - len(heads) - len(legend), 3)
    return [*heads, *_plane(found, width, room, marked, near), *legend]


def _nearest(marked: str, near: Sequence[Place], width: int) -> Content:
    """Return the row that says what lies nearest to the marked persona, as far as there is room."""
    row = Content.assemble((printable(marked), "bold reverse"), (" is nearest to", "dim"))
    for number, each in enumerate(near):
        more = Content(("" if number == 0 else ",") + " " + printable(each.name))
        if row.cell_length + more.cell_length > width:
            break
        row += more
    return row


def _plane(found: PersonaMap, width: int, height: int, marked: str, near: Sequence[Place]) -> list[Content]:
    canvas, order = (
        Canvas(width, height),
        [each for kind in _SIGNS for each in found.places if each.kind == kind],
    )
    far = [each for each in found.of("role") if each not in near]
    across, up = _range([each.x for each in order]), _range([each.y for each in order])

    def dots(x: float, y: float) -> tuple[float, float]:
        right, down = (x - across[0]) / (across[1] - across[0]), (up[1] - y) / (up[1] - up[0])
        return right * (width * ACROSS - 1), down * (height * DOWN - 1)

    def cell(place: Place) -> tuple[int, int]:
        x, y = dots(place.x, place.y)
        return int(x) // ACROSS, int(y) // DOWN

    turns = [dots(each.x, each.y) for each in found.places if each.kind == "turn"]
    for start, end in pairwise(turns):
        canvas.line(start, end, _SIGNS["turn"][1])
    for each in far:  # under everything: a name may cover such a dot
        canvas.put(*cell(each), *_SIGNS["role"][:2])
    order = [each for each in order if each not in far]
    cells = [cell(each) for each in order]
    names = [_name(each, len(turns), max(_LONGEST, width // 3)) for each in order]
    named = [at for at, name in enumerate(names) if name]
    labels = place_labels(
        [cells[at] for at in [*named, *(at for at, name in enumerate(names) if not name)]],
        [(cell_len(names[at]), 1) for at in named] + [(width + 1, 1)] * (len(names) - len(named)),
        (width, height),
        rings=2,
    )
    for at, spot in zip(named, labels, strict=False):
        if spot is not None:
            chosen = order[at].kind == "persona" and order[at].name == marked
            style = f"{_SIGNS[order[at].kind][1]}{' reverse' if chosen else ''}"
            canvas.put(round(spot[0]), round(spot[1]), names[at], style)
    for place, (column, row) in reversed(list(zip(order, cells, strict=True))):  # the first ones on top
        canvas.put(column, row, *_SIGNS[place.kind][:2])
    origin = dots(0.0, 0.0)
    canvas.rule(int(origin[1]) // DOWN, "┈", "dim")
    canvas.pole(int(origin[0]) // ACROSS, "┊", "dim")
    return canvas.rows()


def _name(place: Place, turns: int, longest: int) -> str:
    """Return what stands beside a point: of the path, only the first and the last reply have a number."""
    if place.kind in ("mix", "assistant") or (place.kind == "turn" and place.name not in ("1", str(turns))):
        return ""
    name = printable(place.name).replace("\n", " ")
    if cell_len(name) <= longest:
        return name
    end = name[-2:] if place.kind == "trait" else ""  # which of its two ends it is
    return f"{name[: longest - 1 - len(end)]}…{end}"


def _range(values: Sequence[float]) -> tuple[float, float]:
    low, high = min([*values, 0.0]), max([*values, 0.0])
    margin = (high - low) * _MARGIN or 1.0
    return low - margin, high + margin


def _legend(found: PersonaMap, width: int) -> list[Content]:
    """Return what the signs mean, in as many rows as that takes."""
    there, rows = {each.kind for each in found.places}, list[Content]()
    for kind, (sign, style, word) in _SIGNS.items():
        if kind not in there:
            continue
        part = Content.assemble((sign, style), f" {word}")
        if rows and rows[-1].cell_length + 3 + part.cell_length <= width:
            rows[-1] += Content("   ") + part
        else:
            rows.append(part)
    return rows


class CosineView(View):
    """A coloured grid, in an order in which those that are alike stand together."""

    TITLE = "cosines"

    def compose(self) -> ComposeResult:
        """Return the parts."""
        yield Sheet(id="cosines")

    def empty(self, why: str) -> None:
        """There is nothing to show."""
        self.query_one(Sheet).show(message(why))

    def show(self, grid: CosineGrid) -> None:
        """Show a grid."""
        self.query_one(Sheet).show(lambda width, height: grid_rows(grid, width))


def grid_rows(grid: CosineGrid, width: int) -> list[Content]:
    """Return the grid in so many cells: with numbers where they fit, else as colours alone."""
    names = [printable(name).replace("\n", " ") for name in grid.names]
    label = min(max(map(cell_len, names)), _LONGEST, max(width // 3, 6))
    count = len(names)
    cell = next((each for each in (7, 6, 5, 3, 2) if each * count <= width - label - 5), 1)
    heads = Content.styled("".join(f"{number} ".rjust(cell) for number in range(1, count + 1)), "dim")
    rows = [Content.assemble(" " * (label + 5), heads if cell > 4 or count < 10 else "")]
    for number, (name, values) in enumerate(zip(names, grid.cosines, strict=True), 1):
        shown = Content(name).truncate(label, ellipsis=True)
        front = Content.assemble((f"{number:>3} ", "dim"), shown.pad_right(label + 1 - shown.cell_length))
        rows.append(Content.assemble(front, *(_cosine(float(value), cell) for value in values)))
    return [*rows, Content(""), _key(width)]


def _cosine(value: float, cell: int) -> tuple[str, str]:
    if value != value:
        return "–".rjust(cell), "dim"
    level = round(abs(value) * _LEVELS)
    colour = "$success" if value > 0 else "$error"
    text = f"{value:+.2f} " if cell > 5 else f"{value:+.1f}" if cell > 3 else ""
    return text.rjust(cell)[:cell], f"on {colour} {level * 10}%" if level else ""


def _key(width: int) -> Content:
    parts = [(" −1 ", "on $error 60%"), (" … ", ""), (" 0 ", ""), (" … ", ""), (" +1 ", "on $success 60%")]
    return Content.assemble(*parts, ("  cosines of the safe vectors", "dim")).truncate(width)
