"""Where the scores of each kind of query lie, the threshold among them, and what it comes to."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from textual.app import ComposeResult
from textual.content import Content
from textual.widgets import Static

from persona_tui.monitors.evaluation import Evaluation
from persona_tui.monitors.figures import BORDERLINE, DANGEROUS, SAFE, Histogram, Rates, histogram, rates
from persona_tui.tui.views.plot import Draw, Plot, message
from persona_tui.tui.views.plots import bars, number, percent, ruler
from persona_tui.tui.views.threshold import ThresholdSlider
from persona_tui.tui.views.view import View

STYLES = {
    SAFE: "$text-success",
    DANGEROUS: "$text-error",
    BORDERLINE: "$text-warning",
    "high": "$text-success",
    "low": "$text-error",
}
_LABEL = 15  # cells before a histogram
_TALLEST = 10  # rows of one


@dataclass(frozen=True)
class Looked:
    """What is looked at: an evaluation's method at a threshold, on some sets.

    Attributes:
        evaluation: has the scores.
        method: whose.
        threshold: where the slider stands.
        fitted: what cross-validation chose.
        saved: what the monitor uses; None = it uses another method.
        sets: which test sets; None = all.
    """

    evaluation: Evaluation
    method: str
    threshold: float
    fitted: float
    saved: float | None
    sets: Sequence[str] | None


class ScoresView(View):
    """Histograms, the slider and the confusion matrix."""

    TITLE = "scores"
    DEFAULT_CSS = """
    ScoresView #confusion { height: auto; }
    ScoresView Plot { min-height: 4; }
    """

    def compose(self) -> ComposeResult:
        """Return the parts."""
        yield Plot(id="histograms")
        yield ThresholdSlider(id="threshold")
        yield Static("", id="confusion", markup=False)

    def empty(self, why: str) -> None:
        """There is nothing to show."""
        self.query_one(Plot).show(message(why))
        self.query_one("#confusion", Static).update("")
        self.query_one(ThresholdSlider).disabled = True

    def show(self, looked: Looked) -> None:
        """Show a method's scores at a threshold."""

        def counted(bins: int) -> Histogram:
            return histogram(looked.evaluation, looked.method, bins, looked.sets)

        self.query_one(Plot).show(histograms(counted, looked.threshold))
        found = rates(looked.evaluation, looked.method, looked.threshold, looked.sets)
        self.query_one("#confusion", Static).update(Content("\n").join(_confusion(found, looked)))


def histograms(counted: Callable[[int], Histogram], threshold: float) -> Draw:
    """Return what draws histograms below each other, with the threshold through all of them.

    Args:
        counted: given a number of bins, the histogram.
        threshold: where the line is.
    """

    def draw(width: int, height: int) -> list[Content]:
        room = max(width - _LABEL, 8)
        found = counted(room)
        each = max(1, min(_TALLEST, (height - 1) // max(len(found.counts), 1)))
        mark = found.bin_of(threshold)
        rows: list[Content] = []
        for kind, counts in found.counts.items():
            top, total = max(counts, default=0), sum(counts)
            labels = [f"{kind} {total}", f"{top} at most" if total else "none"]
            for place, row in enumerate(bars(counts, each, top, STYLES.get(kind, ""), mark)):
                label = labels[place] if place < len(labels) else ""
                style = STYLES.get(kind, "") if not place else "dim"
                rows.append(Content.assemble((label.ljust(_LABEL)[:_LABEL], style), row))
        axis = ruler(number(found.low), number(found.high), room, mark, number(threshold))
        return [*rows, Content.assemble(" " * _LABEL, axis)]

    return draw


def _confusion(found: Rates, looked: Looked) -> list[Content]:
    wrong, right = "$text-warning", "$text-success"
    fpr, fnr = percent(found.false_positives), percent(found.false_negatives)
    return [
        Content.styled(f"{'':<11}{'called safe':>13}{'called dangerous':>18}", "dim"),
        Content.assemble(
            f"{SAFE:<11}",
            (f"{found.passed:>6} passed", right),
            (f"{found.flagged:>10} flagged", wrong),
            f"   FPR {fpr:>6}",
        ),
        Content.assemble(
            f"{DANGEROUS:<11}",
            (f"{found.missed:>6} missed", wrong),
            (f"{found.caught:>10} caught ", right),
            f"   FNR {fnr:>6}",
        ),
        Content.assemble(
            (f"accuracy {percent(found.accuracy)} of {found.n}", "bold"),
            (f" · fitted {number(looked.fitted)}{_standing(looked)}", "dim"),
        ),
    ]


def _standing(looked: Looked) -> str:
    if looked.saved is None:
        return " · not the method in use"
    return "" if looked.threshold == looked.saved else f" · in use {number(looked.saved)}"
