"""How good a score is: areas under curves, rates, thresholds, and how sure one can be of them.

Everywhere a high score means safe, and a *positive* is a query that is called dangerous. Queries that were
made from one template are alike; where templates are known, they are what is resampled and counted.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from persona_tui.core import statistics
from persona_tui.core.statistics import Estimate

Floats: TypeAlias = NDArray[np.float64]
Flags: TypeAlias = NDArray[np.bool_]

RESAMPLES = 1000
_NOTHING = Estimate(math.nan, math.nan, math.nan)
_Z95 = 1.959964  # two-sided 95% of a normal distribution


def auc(scores: Floats, safe: Flags) -> float:
    """How often a safe query scores higher than a dangerous one; ties count half. NaN of one kind only."""
    return statistics.roc_auc(scores[safe], scores[~safe]) if safe.any() and not safe.all() else math.nan


def auc_estimate(scores: Floats, safe: Flags, groups: Sequence[str] | None = None, seed: int = 0) -> Estimate:
    """`auc` with a 95% interval: percentiles of a bootstrap within each kind.

    Args:
        scores: `[n]`.
        safe: `[n]`.
        groups: what is drawn together, such as templates; None = every query is drawn alone.
        seed: the same seed gives the same interval.
    """
    if not safe.any() or safe.all():
        return _NOTHING
    names = np.asarray([str(place) for place in range(len(scores))] if groups is None else list(groups))
    random = np.random.default_rng(seed)
    high, low = _drawn(names[safe], random), _drawn(names[~safe], random)
    above, below = scores[safe][:, None], scores[~safe][None]
    wins = (above > below).astype(np.float64) + 0.5 * (above == below)
    again = ((high @ wins) * low).sum(1) / (high.sum(1) * low.sum(1))
    ends = np.percentile(again, [2.5, 97.5])
    return Estimate(auc(scores, safe), float(ends[0]), float(ends[1]))


def _drawn(groups: NDArray[np.str_], random: np.random.Generator) -> Floats:
    """`[resamples, n]`: how often each query is drawn when whole groups are."""
    _, member = np.unique(groups, return_inverse=True)
    count = int(member.max()) + 1
    times = random.multinomial(count, np.full(count, 1 / count), size=RESAMPLES)
    return times[:, member].astype(np.float64)


def share(flags: Flags, groups: Sequence[str] | None = None) -> Estimate:
    """The share of true ones, with Wilson's 95% interval, which a share of 0 or 1 has, too.

    Args:
        flags: `[n]`; of none, the share is NaN.
        groups: `[n]`; a group counts as one trial, however many flags are its.
    """
    if not len(flags):
        return _NOTHING
    n = len(flags) if groups is None else len(set(groups))
    value = float(flags.mean())
    middle = value + _Z95**2 / (2 * n)
    spread = _Z95 * math.sqrt(value * (1 - value) / n + _Z95**2 / (4 * n * n))
    scale = 1 + _Z95**2 / n
    return Estimate(value, max(0.0, (middle - spread) / scale), min(1.0, (middle + spread) / scale))


def best_threshold(scores: Floats, safe: Flags) -> float:
    """The threshold with the highest balanced accuracy; of several, the middle of the widest gap."""
    return statistics.best_threshold(scores[safe], scores[~safe])


def balanced_accuracy(scores: Floats, safe: Flags, threshold: float) -> float:
    """The mean of the shares that are labelled rightly among the safe and among the dangerous ones."""
    called = scores > threshold
    return float((called[safe].mean() + (~called[~safe]).mean()) / 2)


def separation(scores: Floats, safe: Flags) -> tuple[float, float]:
    """The difference of the two kinds' mean scores; and the same in standard deviations (Cohen's d)."""
    difference = float(scores[safe].mean() - scores[~safe].mean())
    return difference, statistics.separation(scores[safe], scores[~safe])


@dataclass(frozen=True)
class Performance:
    """How a score with a threshold does on labelled queries. All but `n` with 95% intervals.

    Attributes:
        n: queries.
        accuracy: the share that was labelled rightly.
        false_positives: the share of the safe ones that was called dangerous; NaN if there are none.
        false_negatives: the share of the dangerous ones that was called safe; NaN if there are none.
        area: see `auc`.
    """

    n: int
    accuracy: Estimate
    false_positives: Estimate
    false_negatives: Estimate
    area: Estimate

    def as_dict(self) -> dict[str, Any]:
        """For JSON, which has no NaN: what there is nothing of is null."""
        figures = {name: getattr(self, name) for name in FIGURES}
        return {
            "n": self.n,
            **{name: None if math.isnan(each.value) else each.as_dict() for name, each in figures.items()},
        }


FIGURES = ("accuracy", "false_positives", "false_negatives", "area")


def performance(
    scores: Floats, safe: Flags, threshold: float, groups: Sequence[str], *, area: bool = True
) -> Performance:
    """Measure a score with a threshold.

    Args:
        scores: `[n]`.
        safe: `[n]`.
        threshold: above it, a query is called safe.
        groups: `[n]`, the template of each query, or something of its own.
        area: whether to measure the area, which takes longest and is the same at any threshold.
    """
    called, names = scores > threshold, np.asarray(list(groups))
    return Performance(
        n=len(scores),
        accuracy=share(called == safe, list(names)),
        false_positives=share(~called[safe], list(names[safe])),
        false_negatives=share(called[~safe], list(names[~safe])),
        area=auc_estimate(scores, safe, list(names)) if area else _NOTHING,
    )


def confusion(scores: Floats, safe: Flags, threshold: float) -> dict[str, int]:
    """How many dangerous ones are caught and missed, and how many safe ones are passed and flagged."""
    called = scores > threshold
    return {
        "caught": int((~called & ~safe).sum()),
        "missed": int((called & ~safe).sum()),
        "passed": int((called & safe).sum()),
        "flagged": int((~called & safe).sum()),
    }
