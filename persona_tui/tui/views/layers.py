"""How well each layer separates what a monitor was fitted on."""

from __future__ import annotations

from collections.abc import Sequence

from textual.app import ComposeResult
from textual.content import Content

from persona_tui.monitors.figures import Curve
from persona_tui.tui.views.plot import Plot, message
from persona_tui.tui.views.plots import bars, number, repeated, squeezed
from persona_tui.tui.views.view import View
from persona_tui.tui.widgets.chooser import Chooser

FIGURES = ("separation", "effect", "AUC")
_EXPLAINED = {
    "separation": "difference of the mean scores",
    "effect": "the same in standard deviations",
    "AUC": "area under the ROC curve; ½ = chance",
}


class LayersView(View):
    """One plot for each position, the layers in use marked."""

    TITLE = "layers"

    def compose(self) -> ComposeResult:
        """Return the parts."""
        chooser = Chooser("figure", FIGURES, id="figure")
        chooser.value = FIGURES[0]
        yield chooser
        yield Plot(id="layer-plots")

    def on_mount(self) -> None:
        """Begin without a monitor."""
        self._curves: list[Curve] = []
        self._used: tuple[str, Sequence[int]] = ("", ())

    def on_chooser_changed(self, message: Chooser.Changed) -> None:
        """Show another figure."""
        message.stop()
        message.chooser.value = message.value
        self._redraw()

    def show(self, found: list[Curve], position: str, layers: Sequence[int]) -> None:
        """Show some curves.

        Args:
            found: of one method, a curve for each position.
            position: the one that is used.
            layers: the ones that are used.
        """
        self._curves, self._used = found, (position, layers)
        self._redraw()

    def _redraw(self) -> None:
        figure = self.query_one(Chooser).value
        self.query_one(Plot).show(lambda width, height: self._drawn(figure, width, height))

    def _drawn(self, figure: str, width: int, height: int) -> Sequence[Content]:
        if not self._curves:
            return message("The words method has no layers to scan.")(width, height)
        each = max(3, (height - 1) // len(self._curves))
        rows = [Content.styled(f"{_EXPLAINED[figure]}, cross-validated", "dim")]
        for curve in self._curves:
            position, layers = self._used
            used = layers if curve.position == position else ()
            rows += curve_rows(curve, figure, used, width, each)
        return rows


def value_of(point: object, figure: str) -> float:
    """Return a figure of a layer's point."""
    return float(getattr(point, "auc" if figure == "AUC" else figure))


def curve_rows(curve: Curve, figure: str, used: Sequence[int], width: int, height: int) -> list[Content]:
    """Return a plot of one curve in so many rows: a title, the bars, the layers."""
    values = [value_of(point, figure) for point in curve.points]
    best = max(curve.points, key=lambda point: value_of(point, figure))
    area = f" · AUC {best.auc:.3f} [{best.low:.3f}, {best.high:.3f}]"
    title = Content.assemble(
        (f"{curve.method}, {curve.position.replace('_', ' ')}", "bold"),
        f" · best at layer {best.layer}: {number(value_of(best, figure))}",
        (area, "dim"),
    )
    return [title, *layer_bars(values, [point.layer for point in curve.points], used, width, height - 1)]


def layer_bars(
    values: Sequence[float], layers: Sequence[int], used: Sequence[int], width: int, height: int
) -> list[Content]:
    """Bars for layers, and below them their numbers, those in use marked; `height` rows in all."""
    top = max([abs(value) for value in values], default=1.0) or 1.0
    shown, each = repeated(squeezed(values, width), width)
    rows = bars(shown, max(height - 1, 1), top, "$text-primary")
    return [*rows, _numbers(layers, used, each)] if height > 1 else rows


def _numbers(layers: Sequence[int], used: Sequence[int], each: int) -> Content:
    """Return the layers' numbers below their bars, as far as there is room."""
    parts: list[tuple[str, str]] = []
    free = 0  # cells that a long number has taken from the next ones
    for layer in layers:
        text = f"▲{layer}" if layer in used else str(layer)
        room = each - free
        if room >= len(text) + 1 or (layer in used and room > 0):
            parts.append((text.ljust(room), "$text-warning" if layer in used else "dim"))
            free = max(0, len(text) - room)
        elif room > 0:
            parts.append((" " * room, ""))
            free = 0
        else:
            free -= each
    return Content.assemble(*parts)
