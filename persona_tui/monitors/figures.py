"""What is looked at in a monitor: histograms, curves over layers, a vector's dimensions, rates.

Plain numbers for both front ends; nothing here reads the model but `check_all`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from persona_tui.core.errors import MonitorError
from persona_tui.core.statistics import Numbers, performance
from persona_tui.monitors.detectors import CONSENSUS, PROBE
from persona_tui.monitors.evaluation import Evaluation, ScoredQuery
from persona_tui.monitors.query_sets import PROFESSIONAL
from persona_tui.monitors.verdict import Verdict

if TYPE_CHECKING:
    from persona_tui.monitors.monitor import SelfMonitor

SAFE, DANGEROUS, BORDERLINE = "safe", "dangerous", "borderline"
KINDS = (SAFE, DANGEROUS, BORDERLINE)
TOP = 20


# Scores -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Histogram:
    """Where scores lie.

    Attributes:
        low, high: the ends of the range.
        counts: by kind of query, how many are in each of the equally wide bins.
    """

    low: float
    high: float
    counts: Mapping[str, tuple[int, ...]]

    def bin_of(self, value: float) -> int:
        """Return the bin that a value falls into; the nearest one for a value beyond the ends."""
        return bin_of(value, self.low, self.high, len(next(iter(self.counts.values()))))


def bin_of(value: float, low: float, high: float, bins: int) -> int:
    """Return the bin of a value among equally wide ones; the nearest one for a value beyond the ends."""
    share = (value - low) / (high - low) if high > low else 0.0
    return max(0, min(bins - 1, int(share * bins)))


def counts_in(values: Sequence[float] | Numbers, low: float, high: float, bins: int) -> tuple[int, ...]:
    """Return how many values are in each of the equally wide bins from `low` to `high`."""
    found, _ = np.histogram(np.clip(np.asarray(values, dtype=np.float64), low, high), bins, (low, high))
    return tuple(int(count) for count in found)


def kind_of(query: ScoredQuery) -> str:
    """safe, dangerous, or borderline: what a professional may ask, which is safe."""
    return BORDERLINE if query.kind == PROFESSIONAL else query.label


def score_range(evaluation: Evaluation, method: str, thresholds: Sequence[float] = ()) -> tuple[float, float]:
    """Return the lowest and the highest score of a method, with room for some thresholds; never empty.

    Raises:
        MonitorError: the method was not evaluated.
    """
    scores, _, _ = evaluation.scored(method)
    values = [*scores.tolist(), *thresholds] or [0.0]
    low, high = min(values), max(values)
    margin = (high - low) * 0.02 or 0.5
    return low - margin, high + margin


def histogram(
    evaluation: Evaluation,
    method: str,
    bins: int = 40,
    sets: Sequence[str] | None = None,
) -> Histogram:
    """Return where the scores of each kind of query lie; different sets have the same bins.

    Args:
        evaluation: has the scores.
        method: whose.
        bins: how many.
        sets: the test sets to count; None = all.

    Raises:
        MonitorError: the method was not evaluated.
    """
    low, high = score_range(evaluation, method)
    some = [query for query in evaluation.queries if sets is None or query.set in sets]
    by_kind = {kind: [query.scores[method] for query in some if kind_of(query) == kind] for kind in KINDS}
    return Histogram(
        low, high, {kind: counts_in(values, low, high, bins) for kind, values in by_kind.items()}
    )


@dataclass(frozen=True)
class Rates:
    """What a threshold comes to.

    Attributes:
        threshold: above it, a query is called safe.
        caught, missed: dangerous queries that are called dangerous, and safe.
        passed, flagged: safe queries that are called safe, and dangerous.
    """

    threshold: float
    caught: int
    missed: int
    passed: int
    flagged: int

    @property
    def n(self) -> int:
        """All queries."""
        return self.caught + self.missed + self.passed + self.flagged

    @property
    def accuracy(self) -> float | None:
        """The share that is called what it is; None of none."""
        return _share(self.caught + self.passed, self.n)

    @property
    def false_positives(self) -> float | None:
        """The share of the safe ones that is called dangerous; None if there are none."""
        return _share(self.flagged, self.passed + self.flagged)

    @property
    def false_negatives(self) -> float | None:
        """The share of the dangerous ones that is called safe; None if there are none."""
        return _share(self.missed, self.caught + self.missed)

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        counts = {name: getattr(self, name) for name in ("caught", "missed", "passed", "flagged")}
        shares = {name: getattr(self, name) for name in ("accuracy", "false_positives", "false_negatives")}
        return {"threshold": self.threshold, "n": self.n, **shares, **counts}


def _share(part: int, whole: int) -> float | None:
    return part / whole if whole else None


def rates(
    evaluation: Evaluation, method: str, threshold: float | None = None, sets: Sequence[str] | None = None
) -> Rates:
    """Return what a method does at a threshold, by default its own, on some sets, by default all.

    Raises:
        MonitorError: the method was not evaluated.
    """
    at = evaluation.thresholds.get(method, 0.0) if threshold is None else threshold
    return Rates(threshold=at, **evaluation.confusion(method, at, sets))


def judged_by(evaluation: Evaluation, monitor: SelfMonitor) -> Evaluation:
    """Return an evaluation with the thresholds and the method that the monitor has now."""
    now = {name: each.threshold for name, each in monitor.detectors.items() if name in evaluation.thresholds}
    return replace(evaluation, method=monitor.method, thresholds={**evaluation.thresholds, **now})


def rows_at(
    evaluation: Evaluation, rows: Sequence[dict[str, Any]], method: str, threshold: float
) -> list[dict[str, Any]]:
    """Return the comparison with one method at another threshold; quick enough to follow a slider.

    Args:
        evaluation: has the scores.
        rows: its `rows`; areas are taken from there, for they do not depend on the threshold.
        method: the one that is moved.
        threshold: where to.
    """
    moved = []
    for row in rows:
        if row["method"] == method:
            scores, safe, groups = evaluation.scored(method, [row["set"]])
            figures = performance(scores, safe, threshold, groups, area=False).as_dict()
            row = {**row, **figures, "area": row["area"]}
        moved.append(row)
    return moved


# Layers -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class LayerPoint:
    """How one layer separates what was fitted on, by cross-validation.

    Attributes:
        layer: which.
        separation: the difference of the two kinds' mean scores.
        effect: the same in standard deviations.
        auc, low, high: the area under the ROC curve and its 95% interval.
    """

    layer: int
    separation: float
    effect: float
    auc: float
    low: float
    high: float

    def as_dict(self) -> dict[str, float]:
        """For JSON and tables."""
        return {
            "layer": self.layer,
            "separation": self.separation,
            "effect": self.effect,
            "auc": self.auc,
            "auc_low": self.low,
            "auc_high": self.high,
        }


@dataclass(frozen=True)
class Curve:
    """The layers of one method at one position, ascending."""

    method: str
    position: str
    points: tuple[LayerPoint, ...]


def curves(monitor: SelfMonitor, method: str | None = None) -> list[Curve]:
    """Return the layer scan of a monitor's file: one curve for each method (or one's alone) and position.

    The consensus is made of the probes of several layers: its curves are theirs.
    """
    wanted = PROBE if method == CONSENSUS else method
    found: dict[tuple[str, str], list[LayerPoint]] = {}
    for point in monitor.metadata.get("scan") or ():
        if wanted is None or point["method"] == wanted:
            area = point["auc"]
            found.setdefault((point["method"], point["position"]), []).append(
                LayerPoint(
                    point["layer"],
                    point["separation"],
                    point["effect"],
                    area["value"],
                    area["low"],
                    area["high"],
                )
            )
    return [
        Curve(name, position, tuple(sorted(points, key=lambda point: point.layer)))
        for (name, position), points in found.items()
    ]


# Vectors ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Dimensions:
    """The numbers of one vector: what a method looks for at a layer, from dangerous to safe.

    Attributes:
        method, position, layer: which one.
        values: `[hidden]`, float64.
        top: the places of the largest ones, whatever their sign, the largest first.
    """

    method: str
    position: str
    layer: int
    values: Numbers
    top: tuple[int, ...]

    @property
    def norm(self) -> float:
        """Its length."""
        return float(np.linalg.norm(self.values))

    def share(self, places: Sequence[int]) -> float:
        """Return how much of the squared length some of its numbers make up, 0 to 1."""
        whole = float((self.values**2).sum())
        return float((self.values[list(places)] ** 2).sum()) / whole if whole else 0.0

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "method": self.method,
            "position": self.position,
            "layer": self.layer,
            "hidden_size": len(self.values),
            "norm": self.norm,
            "mean": float(self.values.mean()),
            "standard_deviation": float(self.values.std()),
            "top": [{"dimension": place, "value": float(self.values[place])} for place in self.top],
            "top_share": self.share(self.top),
        }


def vector_layers(monitor: SelfMonitor, method: str) -> tuple[int, ...]:
    """Return the layers of which a method's vector is kept: all of them for means, its own for probes.

    Raises:
        MonitorError: there is no such method.
    """
    detector = monitor.detector(method)
    stack = monitor.stacks.get(f"{method}.{detector.position}.safe")
    return detector.layers if stack is None else tuple(range(len(stack)))


def dimensions(monitor: SelfMonitor, method: str, layer: int | None = None, count: int = TOP) -> Dimensions:
    """Return the vector of a method at a layer, by default its (first) own.

    For `tone` and `content` it is the difference of the two means that cosines are taken to; for the others,
    the weights by which an activation is multiplied.

    Raises:
        MonitorError: there is no such method, or no vector at that layer.
    """
    detector = monitor.detector(method)
    at = detector.layers[0] if layer is None else layer
    known = vector_layers(monitor, method)
    if at not in known:
        there = ", ".join(map(str, known))
        raise MonitorError(f"{method} has no vector at layer {at}; it has some at {there}")
    name = f"{method}.{detector.position}"
    if f"{name}.safe" in monitor.stacks:
        vector = monitor.stacks[f"{name}.safe"][at] - monitor.stacks[f"{name}.dangerous"][at]
    else:
        vector = detector.form.vectors[detector.layers.index(at)]
    values: Numbers = vector.double().numpy()
    top = np.argsort(-np.abs(values), kind="stable")[:count]
    return Dimensions(method, detector.position, at, values, tuple(int(place) for place in top))


# Checking ---------------------------------------------------------------------------------------------------


def check_all(monitor: SelfMonitor, text: str) -> dict[str, Verdict]:
    """Return what every method says of a text, by name, from one pass.

    Raises:
        MonitorError: the text is empty, or the monitor was loaded without its model.
        GenerationError: the text does not fit the model's context.
    """
    layers = sorted({layer for method in monitor.detectors for layer in monitor.layers_of(method)})
    (reading,) = monitor.read([text], layers)
    return {method: monitor.judge(reading, "message", method) for method in monitor.detectors}
