"""The numbers of a monitor's vector: all of them, how they are distributed, the largest ones."""

from __future__ import annotations

from collections.abc import Sequence

from textual.app import ComposeResult
from textual.content import Content
from textual.message import Message

from persona_tui.monitors.figures import Dimensions, counts_in
from persona_tui.tui.views.plot import Sheet, message
from persona_tui.tui.views.plots import bars, hanging, number, repeated, ruler, squeezed
from persona_tui.tui.views.view import View
from persona_tui.tui.widgets.chooser import Chooser

_CELL = 18  # cells for one of the largest


class DimensionsView(View):
    """Values, distribution and the top 20, of a layer that can be chosen."""

    TITLE = "vector"

    class LayerChosen(Message):
        """The user wants another layer's vector."""

        def __init__(self, layer: int) -> None:
            super().__init__()
            self.layer = layer

    def compose(self) -> ComposeResult:
        """Return the parts."""
        yield Chooser("layer", id="vector-layer")
        yield Sheet(id="dimensions")

    def on_chooser_changed(self, message: Chooser.Changed) -> None:
        """Ask for another layer."""
        message.stop()
        self.post_message(self.LayerChosen(int(message.value)))

    def empty(self, why: str) -> None:
        """There is nothing to show."""
        chooser = self.query_one(Chooser)
        chooser.values, chooser.value = (), ""
        chooser.refresh()
        self.query_one(Sheet).show(message(why))

    def show(self, found: Dimensions, layers: Sequence[int]) -> None:
        """Show a vector, and which layers there are."""
        chooser = self.query_one(Chooser)
        chooser.values, chooser.value = [str(layer) for layer in layers], str(found.layer)
        chooser.refresh()
        self.query_one(Sheet).show(lambda width, height: _rows(found, width, height))


def _rows(found: Dimensions, width: int, height: int) -> list[Content]:
    columns = max(1, width // _CELL)
    listed = -(-len(found.top) // columns)
    room = max(height - listed - 6, 6)
    above = max(1, room // 4)
    return [
        Content.styled(
            f"{found.method}, {found.position.replace('_', ' ')}: {len(found.values)} dimensions, "
            f"length {number(found.norm)}",
            "bold",
        ),
        *_values(found, width, above),
        Content.styled("distribution of the values", "dim"),
        *_distribution(found, width, max(room - 2 * above, 2)),
        Content.styled(f"the {len(found.top)} largest: {found.share(found.top):.0%} of the square", "dim"),
        *_largest(found, columns),
    ]


def _values(found: Dimensions, width: int, height: int) -> list[Content]:
    shown, _ = repeated(squeezed(found.values.tolist(), width), width)
    top = max(map(abs, shown), default=1.0) or 1.0
    return [
        *bars(shown, height, top, "$text-success"),
        *hanging(shown, height, top, "$text-error"),
        ruler("0", f"{len(found.values) - 1}", len(shown)),
    ]


def _distribution(found: Dimensions, width: int, height: int) -> list[Content]:
    end = float(abs(found.values).max()) or 1.0
    counts = counts_in(found.values, -end, end, width)
    rows = bars(counts, height, max(counts), "$text-primary")
    return [*rows, ruler(number(-end), number(end), width)]


def _largest(found: Dimensions, columns: int) -> list[Content]:
    cells = [
        Content.assemble(
            (f"{place:>5} ", "dim"),
            (f"{found.values[place]:<+12.4g}", "$text-success" if found.values[place] > 0 else "$text-error"),
        )
        for place in found.top
    ]
    rows = [cells[start : start + columns] for start in range(0, len(cells), columns)]
    return [Content.assemble(*row) for row in rows]
