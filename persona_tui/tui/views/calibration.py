"""A trait's threshold among labelled scores."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from textual.app import ComposeResult
from textual.content import Content
from textual.widgets import Static

from persona_tui.monitors.figures import Histogram, counts_in
from persona_tui.traits.thresholds import ThresholdFit, balanced_accuracy, counts_at
from persona_tui.tui.views.plot import Plot, message
from persona_tui.tui.views.plots import number, percent
from persona_tui.tui.views.scores import histograms
from persona_tui.tui.views.threshold import ThresholdSlider
from persona_tui.tui.views.view import View


@dataclass(frozen=True)
class Labelled:
    """Scores of labelled replies, and what fitting a threshold to them has found.

    Attributes:
        trait: whose scores.
        source: where the labels come from, in words.
        high, low: the scores.
        fit: the best threshold.
        unused: lines that could not be used.
    """

    trait: str
    source: str
    high: Sequence[float]
    low: Sequence[float]
    fit: ThresholdFit
    unused: int = 0

    def ends(self, *thresholds: float) -> tuple[float, float]:
        """Return the range that all of it, and some thresholds, lie in."""
        values = [*self.high, *self.low, *thresholds]
        margin = (max(values) - min(values)) * 0.02 or 0.5
        return min(values) - margin, max(values) + margin


class CalibrationView(View):
    """Histograms of both labels, the slider, and what the threshold comes to."""

    TITLE = "threshold"
    DEFAULT_CSS = """
    CalibrationView #trait-rates { height: auto; }
    CalibrationView Plot { min-height: 3; }
    """

    def compose(self) -> ComposeResult:
        """Return the parts."""
        yield Plot(id="labelled")
        yield ThresholdSlider(id="trait-threshold")
        yield Static("", id="trait-rates", markup=False)

    def empty(self, why: str, about: str = "") -> None:
        """There are no labelled scores."""
        self.query_one(Plot).show(message(why))
        self.query_one("#trait-rates", Static).update(about)

    def show(self, labelled: Labelled, threshold: float, saved: float, source: str) -> None:
        """Show labelled scores at a threshold.

        Args:
            labelled: the scores.
            threshold: where the slider stands.
            saved: what the trait has.
            source: where that comes from.
        """
        low, high = labelled.ends(threshold)
        sides = {"high": labelled.high, "low": labelled.low}

        def counted(bins: int) -> Histogram:
            counts = {side: counts_in(values, low, high, bins) for side, values in sides.items()}
            return Histogram(low, high, counts)

        self.query_one(Plot).show(histograms(counted, threshold))
        rows = _rates(labelled, threshold, saved, source)
        self.query_one("#trait-rates", Static).update(Content("\n").join(rows))


def _rates(labelled: Labelled, threshold: float, saved: float, source: str) -> list[Content]:
    counts = counts_at(labelled.high, labelled.low, threshold)
    fit, right = labelled.fit, balanced_accuracy(labelled.high, labelled.low, threshold)
    unused = f" · {labelled.unused} lines not used" if labelled.unused else ""
    return [
        Content.styled(f"{'labelled':<11}{'called high':>13}{'called low':>15}", "dim"),
        Content.assemble(
            f"{'high':<11}",
            (f"{counts['true_high']:>7} right", "$text-success"),
            (f"{counts['false_low']:>9} wrong", "$text-warning"),
            f"   missed {percent(counts['false_low'] / max(len(labelled.high), 1)):>6}",
        ),
        Content.assemble(
            f"{'low':<11}",
            (f"{counts['false_high']:>7} wrong", "$text-warning"),
            (f"{counts['true_low']:>9} right", "$text-success"),
            f"   alarms {percent(counts['false_high'] / max(len(labelled.low), 1)):>6}",
        ),
        Content.assemble(
            (f"balanced accuracy {percent(right)}", "bold"),
            (f" · AUC {fit.auc.value:.3f} [{fit.auc.low:.3f}, {fit.auc.high:.3f}]", "dim"),
        ),
        Content.styled(
            f"best {number(fit.threshold)} (on unseen ones {percent(fit.accuracy_unseen)}) · in use "
            f"{number(saved)}, from {source}{unused}",
            "dim",
        ),
    ]
