"""The traits of a model with their figures, and the layers of the one that is looked at."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from textual.app import ComposeResult
from textual.content import Content

from persona_tui.traits.vector import TraitReading
from persona_tui.tui.views.layers import layer_bars
from persona_tui.tui.views.plot import Plot, Sheet, message
from persona_tui.tui.views.plots import number
from persona_tui.tui.views.view import View

_WIDE = 88  # cells from which on intervals have their place


class TraitTable(View):
    """One row for each trait; below, how well each layer separates the two sides of one."""

    TITLE = "traits"
    DEFAULT_CSS = """
    TraitTable Sheet { height: auto; max-height: 60%; }
    TraitTable Plot { min-height: 5; max-height: 18; }
    """

    def compose(self) -> ComposeResult:
        """Return the parts."""
        yield Sheet(id="trait-table")
        yield Plot(id="trait-layers")

    def show(self, entries: Sequence[Mapping[str, Any]], name: str, reading: TraitReading | None) -> None:
        """Show these traits, and the layers of one."""
        self.query_one(Sheet).show(lambda width, height: _table(entries, name, width))
        plot = self.query_one(Plot)
        if reading is None:
            plot.show(message("f5 extracts a trait, as a job."))
        else:
            plot.show(lambda width, height: _layers(name, reading, width, height))


def _table(entries: Sequence[Mapping[str, Any]], name: str, width: int) -> list[Content]:
    if not entries:
        return [Content.styled("No traits are described yet.", "dim")]
    area = 21 if width >= _WIDE else 6
    longest = max(len(str(entry["name"])) for entry in entries) + 2
    room = max(min(longest, width - 2 * area - 20), 8)
    head = f"{'':<{room}}{'at':>3}{'strength':>9} {'AUC':<{area}}{'test':<{area}}{'above':>6}"
    rows = [Content.styled(head, "dim")]
    for entry in entries:
        chosen = entry["name"] == name
        label = Content(f"{'> ' if chosen else '  '}{entry['name']}").truncate(room, ellipsis=True)
        row = Content.assemble(label.pad_right(room - label.cell_length), _figures(entry, area))
        rows.append(row.stylize("bold") if chosen else row)
        if entry.get("weak"):
            rows.append(Content.styled(f"    weak: {entry['weak']}", "$text-warning"))
    return [*rows, Content.styled("at: layer; test: AUC on held-out replies; above: threshold", "dim")]


def _figures(entry: Mapping[str, Any], area: int) -> str:
    if "error" in entry:
        return f" {entry['error']}"
    if not entry["extracted"]:
        return " not extracted yet"
    held_out = entry["held_out"]["auc"] if entry["held_out"] else None
    return (
        f"{entry['layer']:>3}{number(entry['strength']):>9} {_area(entry['auc'], area)}"
        f"{_area(held_out, area)}{entry['threshold']:>+6.2f}"
    )


def _area(area: Mapping[str, float] | None, width: int) -> str:
    if area is None:
        return "–".ljust(width)
    between = f" [{area['low']:.2f}, {area['high']:.2f}]" if width > 12 else ""
    return f"{area['value']:.3f}{between}".ljust(width)


def _layers(name: str, reading: TraitReading, width: int, height: int) -> list[Content]:
    layers = sorted(reading.layers, key=lambda each: each.layer)
    title = Content.assemble(
        (f"{name}: separation by layer", "bold"), (" · standard deviations, cross-validated", "dim")
    )
    if not layers:
        return [title, Content.styled("The file does not say.", "dim")]
    values = [each.separation for each in layers]
    numbers = [each.layer for each in layers]
    about = [f"high: {reading.high}", f"low: {reading.low}"] if height > 9 else []
    rows = layer_bars(values, numbers, [reading.layer], width, height - 1 - len(about))
    return [title, *rows, *(Content.styled(line, "dim") for line in about if line)]
