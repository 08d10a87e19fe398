"""The direction that replies are scored along: a probe of one layer, of the trait's own replies and others.

The difference between both sides' means is what a trait steers with. As a ruler it is moved by what a
conversation is about: a good reply in a crisis is not a warm one. So scores are taken along the direction of
a ridge regression that also sees good replies elsewhere, on the healthy side: ordinary ones, and those of the
traits that this one is not about. On the starter model that doubles the share of bad replies that are caught
at the same false alarms (`benchmarks/traits.py`, docs/traits.md). Where left-out replies are hardly told
apart by it, as on a model that has read little, the difference is the better ruler.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

Numbers = np.ndarray[Any, Any]

SIGNS = (1.0, -1.0)  # of high and of low replies
FOLDS = 8
RIDGE = 10.0  # times the mean of the squared lengths: strong, for there are fewer replies than dimensions
ELSEWHERE = 0.3  # the weight of good replies elsewhere among all good ones


@dataclass(frozen=True)
class Sample:
    """Replies at one layer, to fit on.

    Attributes:
        rows: activations, `[replies, hidden]`.
        sides: 1 for high and −1 for low, `[replies]`.
        own: which of them are the trait's own; the others are good replies elsewhere, `[replies]`.
        situations: what each belongs to: replies to one message are left out together.
        plain: whether the weights are the difference of the own sides' means, and nothing else.
    """

    rows: Numbers
    sides: Numbers
    own: Numbers
    situations: Sequence[str]
    plain: bool = False

    def part(self, which: Numbers) -> Sample:
        """Return some of the replies."""
        kept = [name for name, take in zip(self.situations, which, strict=True) if take]
        return Sample(self.rows[which], self.sides[which], self.own[which], kept, self.plain)

    def weights(self) -> Numbers:
        """Return the probe, `[hidden]`: a row's product with it is higher, the more of the trait there is."""
        if self.plain:
            high, low = (self.rows[self.own & (self.sides == side)].mean(0) for side in SIGNS)
            return high - low  # type: ignore[no-any-return]
        spread = self.rows.std(0)
        scale = np.where(spread > 1e-9 * max(1.0, float(spread.max())), spread, np.inf)
        scaled, shares = self.rows / scale, self._shares()
        centred = (scaled - shares @ scaled) * np.sqrt(shares)[:, None]
        wanted = (self.sides - shares @ self.sides) * np.sqrt(shares)
        gram = centred @ centred.T
        ridge = RIDGE * max(float(np.trace(gram)) / len(gram), 1e-30)
        weights: Numbers = centred.T @ np.linalg.solve(gram + ridge * np.eye(len(gram)), wanted) / scale
        return weights

    def _shares(self) -> Numbers:
        """Return what each row counts for: both sides the same, few replies elsewhere as much as many."""
        shares = np.zeros(len(self.sides))
        for side in SIGNS:
            own, other = (self.sides == side) & self.own, (self.sides == side) & ~self.own
            elsewhere = ELSEWHERE if other.any() else 0.0
            shares[own] = 0.5 * (1 - elsewhere) / max(1, own.sum())
            shares[other] = 0.5 * elsewhere / max(1, other.sum())
        return shares

    def scale(self, weights: Numbers) -> tuple[float, float]:
        """Return centre and half the distance of the own sides' means along some weights."""
        high, low = (float(self.rows[self.own & (self.sides == side)].mean(0) @ weights) for side in SIGNS)
        return (high + low) / 2, (high - low) / 2

    def left_out(self) -> Numbers:
        """Return each reply's score by a probe that was made without its situation, `[replies]`.

        −1 and 1 are the means of the low and the high side that it was made with.
        """
        scores = np.zeros(len(self.rows))
        places = self._folds()
        for fold in range(int(places.max()) + 1):
            kept = self.part(places != fold)
            if len(set(kept.sides[kept.own])) < len(SIGNS):
                kept = self  # all of one side are in this fold
            weights = kept.weights()
            centre, half = kept.scale(weights)
            there = places == fold
            scores[there] = (self.rows[there] @ weights - centre) / (half if half > 0 else 1.0)
        return scores

    def _folds(self) -> Numbers:
        """Return a fold for each reply: the situations in turn, its own and the others by themselves."""
        keys = list(zip(self.own.tolist(), self.situations, strict=True))
        sides = (
            {key for key, each in zip(keys, self.sides, strict=True) if key[0] and each == side}
            for side in SIGNS
        )
        count = min(FOLDS, *map(len, sides))
        found = {key: place % count for own in (True, False) for place, key in enumerate(_kept(keys, own))}
        return np.array([found[key] for key in keys])


def _kept(keys: Sequence[tuple[bool, str]], own: bool) -> list[tuple[bool, str]]:
    """Return each of the keys once, in their order."""
    return [key for key in dict.fromkeys(keys) if key[0] == own]


# Along the difference of the means, layer by layer ----------------------------------------------------------


@dataclass(frozen=True)
class Scores:
    """Scores of both sides' replies, by layer: `[replies, layers]`."""

    high: np.ndarray[Any, Any]
    low: np.ndarray[Any, Any]


def left_out_scores(
    high: Tensor, low: Tensor, high_situations: Sequence[str], low_situations: Sequence[str]
) -> Scores:
    """Return each reply's score under vectors that were made without its situation.

    Args:
        high, low: activations `[replies, layers, hidden]`.
        high_situations, low_situations: what a reply belongs to. Both replies to one message are left out
            together: they share too much for one of them to judge the other.
    """
    names = list(dict.fromkeys([*high_situations, *low_situations]))
    folds = min(FOLDS, len(set(high_situations)), len(set(low_situations)))
    fold_of = {name: place % folds for place, name in enumerate(names)}
    of_high = np.array([fold_of[name] for name in high_situations])
    of_low = np.array([fold_of[name] for name in low_situations])
    scores = Scores(np.zeros(high.shape[:2]), np.zeros(low.shape[:2]))
    for fold in range(folds):
        mean_high, mean_low = _mean_without(high, of_high == fold), _mean_without(low, of_low == fold)
        scores.high[of_high == fold] = _scored(high[of_high == fold], mean_high, mean_low)
        scores.low[of_low == fold] = _scored(low[of_low == fold], mean_high, mean_low)
    return scores


def _mean_without(activations: Tensor, left_out: np.ndarray[Any, Any]) -> Tensor:
    kept = activations[~left_out]
    return (kept if len(kept) else activations).mean(0)


def _scored(activations: Tensor, high: Tensor, low: Tensor) -> np.ndarray[Any, Any]:
    """Return scores `[replies, layers]` on the scale of the two means `[layers, hidden]`."""
    gap = high - low
    squared = (gap * gap).sum(-1).clamp(min=1e-30)
    scores: np.ndarray[Any, Any] = (
        (((activations - (high + low) / 2) * gap).sum(-1) / (squared / 2)).cpu().numpy()
    )
    return scores
