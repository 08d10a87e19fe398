"""How well two sides are separated, how often a threshold is right, and how sure that is.

Where a resampling is needed it is seeded: the same values give the same intervals. Texts that were made from
one template are alike; where groups are known, a group counts as one observation.

scikit-learn and scipy take a second to load, so they load where they are called.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

RESAMPLES = 2000
FLIPS = 10_000
CONFIDENCE = 0.95
_NEXT = 1e-9  # as near to an observed area as its interval's ends are looked for
_EXACT_PAIRS = 12  # up to 4096 sign patterns are all tried
_MOST_RESAMPLED = 4_000_000  # numbers drawn at once

_Z95 = 1.959964  # two-sided 95% of a normal distribution

Numbers: TypeAlias = NDArray[np.float64]
Flags: TypeAlias = NDArray[np.bool_]


@dataclass(frozen=True)
class Estimate:
    """A figure with its 95% interval."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.2f} [{self.low:.2f}, {self.high:.2f}]"

    def as_dict(self) -> dict[str, float]:
        """For JSON, rounded to four digits."""
        return {"value": round(self.value, 4), "low": round(self.low, 4), "high": round(self.high, 4)}


NOTHING = Estimate(math.nan, math.nan, math.nan)  # what is known of an empty set


def roc_auc(high: ArrayLike, low: ArrayLike) -> float:
    """Return the chance that a high value is above a low one; a tie counts half. 0.5 = no difference.

    Raises:
        ValueError: a side is empty.
    """
    from sklearn.metrics import roc_auc_score

    above, below = _numbers(high), _numbers(low)
    sides = np.repeat([1, 0], [len(above), len(below)])
    return float(roc_auc_score(sides, np.concatenate([above, below])))


def auc_estimate(
    high: ArrayLike,
    low: ArrayLike,
    high_groups: Sequence[str] | None = None,
    low_groups: Sequence[str] | None = None,
) -> Estimate:
    """Return the ROC AUC with a 95% interval that knows how many values there are, also at 0 and at 1.

    The interval holds every area from which the observed one is less than 1.96 standard errors away, with
    Hanley and McNeil's standard error at that area (R. G. Newcombe, Statistics in Medicine 25:559, 2006,
    method 5). A bootstrap, or DeLong's variance, would say [1, 1] of two values that lie right.

    Args:
        high, low: the values of both sides.
        high_groups, low_groups: of each value; a group counts as one value in the standard error.

    Raises:
        ValueError: a side is empty.
    """
    from scipy.optimize import brentq

    area = roc_auc(high, low)
    m = _count(high, high_groups)
    n = _count(low, low_groups)

    def beyond(at: float) -> float:
        more = (m + n) / 2 - 1
        variance = at * (1 - at) / (m * n) * (1 + more * (1 - at) / (2 - at) + more * at / (1 + at))
        return (at - area) ** 2 - _Z95**2 * variance

    # At the observed area itself the function is below 0, but for 0 and 1, where it is 0.
    lower = brentq(beyond, 0.0, area - _NEXT) if area > _NEXT else 0.0
    upper = brentq(beyond, area + _NEXT, 1.0) if area < 1 - _NEXT else 1.0
    return Estimate(area, max(0.0, float(lower)), min(1.0, float(upper)))


def _count(values: ArrayLike, groups: Sequence[str] | None) -> int:
    return len(_numbers(values)) if groups is None else len(set(groups))


def share(flags: Flags, groups: Sequence[str] | None = None) -> Estimate:
    """Return the share of true ones with Wilson's 95% interval, which a share of 0 or 1 has, too.

    Args:
        flags: `[n]`; of none, the share is NaN.
        groups: `[n]`; a group counts as one trial, however many flags are its. So the trials that succeed
            need not be a whole number, which scipy's Wilson interval asks for.
    """
    if not len(flags):
        return NOTHING
    n = len(flags) if groups is None else len(set(groups))
    value = float(flags.mean())
    middle = value + _Z95**2 / (2 * n)
    spread = _Z95 * math.sqrt(value * (1 - value) / n + _Z95**2 / (4 * n * n))
    scale = 1 + _Z95**2 / n
    return Estimate(value, max(0.0, (middle - spread) / scale), min(1.0, (middle + spread) / scale))


def separation(high: ArrayLike, low: ArrayLike) -> float:
    """Return how many standard deviations lie between the two means (Cohen's d with the mean of both
    variances).
    """
    above, below = _numbers(high), _numbers(low)
    spread = float(np.sqrt((_variance(above) + _variance(below)) / 2))
    gap = float(above.mean() - below.mean())
    return gap / spread if spread > 0 else 0.0


def mean_estimate(values: ArrayLike) -> Estimate:
    """Return a mean with its bootstrap interval."""
    return _bootstrap([_numbers(values)])


def difference_estimate(a: ArrayLike, b: ArrayLike, paired: bool) -> Estimate:
    """Return the mean of b − a with its bootstrap interval; pairs are drawn together."""
    first, second = _numbers(a), _numbers(b)
    return _bootstrap([second - first] if paired else [second, first])


def _bootstrap(samples: Sequence[Numbers]) -> Estimate:
    """Return the mean of one sample, or the difference of two, with the percentiles of redrawn ones."""
    from scipy.stats import bootstrap

    def statistic(*drawn: Numbers, axis: int = -1) -> Any:
        means = [each.mean(axis=axis) for each in drawn]
        return means[0] if len(means) == 1 else means[0] - means[1]

    value = float(statistic(*samples))
    if min(map(len, samples)) < 2:  # a single value says nothing about others
        return Estimate(value, value, value)
    numbers = sum(map(len, samples))
    interval = bootstrap(
        samples,
        statistic,
        n_resamples=max(200, min(RESAMPLES, _MOST_RESAMPLED // numbers)),
        vectorized=True,
        confidence_level=CONFIDENCE,
        method="percentile",
        random_state=np.random.default_rng(0),
    ).confidence_interval
    return Estimate(value, float(interval.low), float(interval.high))


def effect_size(a: ArrayLike, b: ArrayLike, paired: bool) -> float:
    """Return the mean of b − a in standard deviations: of the differences if paired, else of the values."""
    first, second = _numbers(a), _numbers(b)
    if not paired:
        return separation(second, first)
    differences = second - first
    spread = float(np.sqrt(_variance(differences)))
    return float(differences.mean()) / spread if spread > 0 else 0.0


def sign_flip_test(differences: ArrayLike) -> float:
    """Two-sided p-value of paired differences: how often random signs give as large a mean.

    All patterns of signs are tried for up to 12 pairs, else 10,000 random ones. No shape of distribution is
    assumed (Fisher's randomisation test).
    """
    numbers = _numbers(differences)
    observed = abs(numbers.sum()) - 1e-12
    if len(numbers) <= _EXACT_PAIRS:
        patterns = np.array(list(itertools.product((1.0, -1.0), repeat=len(numbers))))
        return float(np.mean(np.abs(patterns @ numbers) >= observed))
    rng = np.random.default_rng(0)
    hits = sum(
        int(abs(numbers @ (rng.integers(0, 2, len(numbers)) * 2.0 - 1)) >= observed) for _ in range(FLIPS)
    )
    return (1 + hits) / (1 + FLIPS)


def shuffle_test(a: ArrayLike, b: ArrayLike) -> float:
    """Two-sided p-value of two unpaired sides: how often random sides differ as much in their means."""
    first, second = _numbers(a), _numbers(b)
    pooled = np.concatenate([first, second])
    observed = abs(first.mean() - second.mean()) - 1e-12
    rng = np.random.default_rng(0)
    hits = 0
    for _ in range(FLIPS):
        mixed = rng.permutation(pooled)
        hits += int(abs(mixed[: len(first)].mean() - mixed[len(first) :].mean()) >= observed)
    return (1 + hits) / (1 + FLIPS)


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's correction: what the p-values are worth when so many were looked at."""
    order = np.argsort(p_values)
    corrected, worst = [0.0] * len(p_values), 0.0
    for rank, place in enumerate(order):
        worst = max(worst, min(1.0, p_values[place] * (len(p_values) - rank)))
        corrected[place] = worst
    return corrected


def best_threshold(high: ArrayLike, low: ArrayLike, most_false_alarms: float = 1.0) -> float:
    """Return the score from which on a reply counts as high.

    It maximises the sum of the shares that are right on each side (Youden's J), among the thresholds at which
    no more than `most_false_alarms` of the low side lies above. Among equals it is the one in the widest gap.

    Raises:
        ValueError: a side is empty.
    """
    above, below = _numbers(high), _numbers(low)
    values = np.unique(np.concatenate([above, below]))
    margin = max(1.0, float(np.ptp(values)))
    edges = np.concatenate([[values[0] - margin], values, [values[-1] + margin]])
    cuts, widths = (edges[:-1] + edges[1:]) / 2, np.diff(edges)
    found = (above[:, None] >= cuts).mean(0) if len(above) * len(cuts) < 1e7 else _share_from(above, cuts)
    alarms = (below[:, None] >= cuts).mean(0) if len(below) * len(cuts) < 1e7 else _share_from(below, cuts)
    gained = np.where(alarms <= most_false_alarms + 1e-12, found - alarms, -np.inf)
    best = np.flatnonzero(gained >= gained.max() - 1e-12)
    return float(cuts[best[np.argmax(widths[best])]])


def _share_from(values: Numbers, cuts: Numbers) -> Numbers:
    """Return the share of values at or above each cut."""
    shares: Numbers = 1 - np.searchsorted(np.sort(values), cuts, "left") / len(values)
    return shares


def _numbers(values: ArrayLike) -> Numbers:
    numbers = np.asarray(values, dtype=np.float64).ravel()
    if not len(numbers):
        raise ValueError("there are no values to compare")
    return numbers


def _variance(values: Numbers) -> float:
    return float(values.var(ddof=1)) if len(values) > 1 else 0.0


# A score with a threshold, above which a query is called safe -----------------------------------------------


def balanced_accuracy(scores: Numbers, safe: Flags, threshold: float) -> float:
    """Return the mean of the shares that are labelled rightly among the safe and among the dangerous ones."""
    called = scores > threshold
    return float((called[safe].mean() + (~called[~safe]).mean()) / 2)


@dataclass(frozen=True)
class Performance:
    """How a score with a threshold does on labelled queries. All but `n` with 95% intervals.

    Attributes:
        n: queries.
        accuracy: the share that was labelled rightly.
        false_positives: the share of the safe ones that was called dangerous; NaN if there are none.
        false_negatives: the share of the dangerous ones that was called safe; NaN if there are none.
        area: the chance that a safe one scores higher than a dangerous one; NaN of one kind only.
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
    scores: Numbers, safe: Flags, threshold: float, groups: Sequence[str], *, area: bool = True
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
        area=labelled_auc(scores, safe, list(names)) if area else NOTHING,
    )


def labelled_auc(scores: Numbers, safe: Flags, groups: Sequence[str] | None = None) -> Estimate:
    """Return `auc_estimate` of the safe ones above the dangerous ones; NaN of one kind only."""
    if not safe.any() or safe.all():
        return NOTHING
    names = None if groups is None else np.asarray(list(groups))
    of = [None, None] if names is None else [list(names[safe]), list(names[~safe])]
    return auc_estimate(scores[safe], scores[~safe], *of)


def confusion(scores: Numbers, safe: Flags, threshold: float) -> dict[str, int]:
    """Count how many dangerous ones are caught and missed, and how many safe ones are passed and flagged."""
    called = scores > threshold
    return {
        "caught": int((~called & ~safe).sum()),
        "missed": int((called & ~safe).sum()),
        "passed": int((called & safe).sum()),
        "flagged": int((~called & safe).sum()),
    }
