"""The numbers behind traits: how well two sides are separated, and how sure that is.

Plain numpy, and seeded: the same values give the same intervals.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

RESAMPLES = 2000
FLIPS = 10_000
CONFIDENCE = 0.95
_EXACT_PAIRS = 12  # up to 4096 sign patterns are all tried
_MOST_RESAMPLED = 4_000_000  # numbers drawn at once

Numbers = NDArray[np.float64]


@dataclass(frozen=True)
class Estimate:
    """A figure with its 95% bootstrap interval."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.2f} [{self.low:.2f}, {self.high:.2f}]"

    def as_dict(self) -> dict[str, float]:
        """For JSON, rounded to four digits."""
        return {"value": round(self.value, 4), "low": round(self.low, 4), "high": round(self.high, 4)}


def roc_auc(high: ArrayLike, low: ArrayLike) -> float:
    """The chance that a high value is above a low one; a tie counts half. 0.5 = no difference.

    Raises:
        ValueError: a side is empty.
    """
    above, below = _numbers(high), np.sort(_numbers(low))
    wins = np.searchsorted(below, above, "left") + np.searchsorted(below, above, "right")
    return float(wins.mean() / 2 / len(below))


def auc_estimate(high: ArrayLike, low: ArrayLike, seed: int = 0) -> Estimate:
    """ROC AUC with an interval: both sides are drawn again, each from itself."""
    above, below = _numbers(high), _numbers(low)
    rng = np.random.default_rng(seed)
    rounds = _rounds(len(above) + len(below))
    again = [roc_auc(rng.choice(above, len(above)), rng.choice(below, len(below))) for _ in range(rounds)]
    return _interval(roc_auc(above, below), again)


def separation(high: ArrayLike, low: ArrayLike) -> float:
    """How many standard deviations lie between the two means (Cohen's d with the mean of both variances)."""
    above, below = _numbers(high), _numbers(low)
    spread = float(np.sqrt((_variance(above) + _variance(below)) / 2))
    gap = float(above.mean() - below.mean())
    return gap / spread if spread > 0 else 0.0


def mean_estimate(values: ArrayLike, seed: int = 0) -> Estimate:
    """A mean with its interval."""
    numbers = _numbers(values)
    rng = np.random.default_rng(seed)
    again = [float(rng.choice(numbers, len(numbers)).mean()) for _ in range(_rounds(len(numbers)))]
    return _interval(float(numbers.mean()), again)


def difference_estimate(a: ArrayLike, b: ArrayLike, paired: bool, seed: int = 0) -> Estimate:
    """The mean of b − a with its interval; pairs are drawn together."""
    first, second = _numbers(a), _numbers(b)
    if paired:
        return mean_estimate(second - first, seed)
    rng = np.random.default_rng(seed)
    again = [
        float(rng.choice(second, len(second)).mean() - rng.choice(first, len(first)).mean())
        for _ in range(_rounds(len(first) + len(second)))
    ]
    return _interval(float(second.mean() - first.mean()), again)


def effect_size(a: ArrayLike, b: ArrayLike, paired: bool) -> float:
    """The mean of b − a in standard deviations: of the differences if paired, else of the values."""
    first, second = _numbers(a), _numbers(b)
    if not paired:
        return separation(second, first)
    differences = second - first
    spread = float(np.sqrt(_variance(differences)))
    return float(differences.mean()) / spread if spread > 0 else 0.0


def sign_flip_test(differences: ArrayLike, seed: int = 0) -> float:
    """Two-sided p-value of paired differences: how often random signs give as large a mean.

    All patterns of signs are tried for up to 12 pairs, else 10,000 random ones. No shape of distribution is
    assumed (Fisher's randomisation test).
    """
    numbers = _numbers(differences)
    observed = abs(numbers.sum()) - 1e-12
    if len(numbers) <= _EXACT_PAIRS:
        patterns = np.array(list(itertools.product((1.0, -1.0), repeat=len(numbers))))
        return float(np.mean(np.abs(patterns @ numbers) >= observed))
    rng = np.random.default_rng(seed)
    hits = sum(
        int(abs(numbers @ (rng.integers(0, 2, len(numbers)) * 2.0 - 1)) >= observed) for _ in range(FLIPS)
    )
    return (1 + hits) / (1 + FLIPS)


def shuffle_test(a: ArrayLike, b: ArrayLike, seed: int = 0) -> float:
    """Two-sided p-value of two unpaired sides: how often random sides differ as much in their means."""
    first, second = _numbers(a), _numbers(b)
    pooled = np.concatenate([first, second])
    observed = abs(first.mean() - second.mean()) - 1e-12
    rng = np.random.default_rng(seed)
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
    """The score from which on a reply counts as high.

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
    """The share of values at or above each cut."""
    shares: Numbers = 1 - np.searchsorted(np.sort(values), cuts, "left") / len(values)
    return shares


def _numbers(values: ArrayLike) -> Numbers:
    numbers = np.asarray(values, dtype=np.float64).ravel()
    if not len(numbers):
        raise ValueError("there are no values to compare")
    return numbers


def _variance(values: Numbers) -> float:
    return float(values.var(ddof=1)) if len(values) > 1 else 0.0


def _rounds(values: int) -> int:
    return max(200, min(RESAMPLES, _MOST_RESAMPLED // max(1, values)))


def _interval(value: float, again: Sequence[float]) -> Estimate:
    tail = (1 - CONFIDENCE) / 2 * 100
    low, high = np.percentile(again, [tail, 100 - tail])
    return Estimate(value, float(low), float(high))
