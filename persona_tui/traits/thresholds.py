"""Thresholds from labelled conversations: from which score on does a reply count as high?

A labelled conversation has a `label` beside its messages: 1, true or "high", or 0, false or "low". It is
about the last reply.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from persona_tui.core.errors import DatasetError
from persona_tui.core.statistics import Estimate, auc_estimate, best_threshold
from persona_tui.datasets.transcripts import BadLine, Transcript
from persona_tui.traits.definition import SIDES, TraitDefinition
from persona_tui.traits.score import Scored, TraitScorer
from persona_tui.traits.vector import TraitVector

_LABELS: dict[Any, bool] = {
    **dict.fromkeys(("high", "1", "true", "yes", "present", "positive"), True),
    **dict.fromkeys(("low", "0", "false", "no", "absent", "negative"), False),
}
TEST = "test conversations"  # as the source of a threshold
_FOLDS = 5
_FEWEST = 2  # of each side
_CHANCE = 0.5  # the area below which scores rank labels the wrong way round


@dataclass(frozen=True)
class ThresholdFit:
    """What labelled replies say about a trait.

    Attributes:
        trait: whose scores they are.
        threshold: scores from here on count as high.
        before: the threshold that the trait has.
        auc: how well scores separate the labels.
        accuracy, accuracy_before: the mean of the shares that are right on each side, at either threshold.
        accuracy_unseen: the same for thresholds that were fitted without the replies they judge.
        confusion: of the labelled replies, at the threshold: true_high, false_low, false_high, true_low.
    """

    trait: str
    threshold: float
    before: float
    auc: Estimate
    accuracy: float
    accuracy_before: float
    accuracy_unseen: float
    confusion: dict[str, int]

    def as_dict(self) -> dict[str, Any]:
        """Return it for JSON."""
        return {
            "trait": self.trait,
            "threshold": round(self.threshold, 4),
            "before": round(self.before, 4),
            "auc": self.auc.as_dict(),
            "balanced_accuracy": round(self.accuracy, 4),
            "balanced_accuracy_before": round(self.accuracy_before, 4),
            "balanced_accuracy_unseen": round(self.accuracy_unseen, 4),
            "confusion": self.confusion,
        }


def read_label(scored: Scored) -> bool | None:
    """Return whether a conversation is labelled high; None if its label is missing or unknown."""
    label = scored.conversation.fields.get("label")
    return _LABELS.get(str(label).strip().casefold())


def labelled_scores(
    trait: str, items: Iterable[Scored | BadLine]
) -> tuple[list[float], list[float], list[BadLine]]:
    """Return the scores of the last replies labelled high and low, and the lines that could not be used."""
    high: list[float] = []
    low: list[float] = []
    bad: list[BadLine] = []
    for item in items:
        if isinstance(item, BadLine):
            bad.append(item)
            continue
        label = read_label(item)
        if label is None:
            where = item.conversation
            bad.append(BadLine(where.where, where.line, '"label" must be high (1) or low (0)'))
        else:
            (high if label else low).append(item.replies[-1].scores[trait])
    return high, low, bad


def reference_scores(scorer: TraitScorer, definition: TraitDefinition) -> tuple[list[float], list[float]]:
    """Return the scores of a definition's test conversations, high and low, without unreadable ones.

    A threshold that was fitted on them makes them no test any more: the trait's held-out accuracy was
    measured at the threshold before.
    """
    found = []
    for side in SIDES:
        items = [
            Transcript(messages, name, fields={"label": side})
            for name, messages in definition.conversations("test", side)
        ]
        scored = [each for each in scorer.stream(items) if isinstance(each, Scored)]
        found.append([each.replies[-1].scores[definition.name] for each in scored])
    return found[0], found[1]


def counts_at(high: Sequence[float], low: Sequence[float], threshold: float) -> dict[str, int]:
    """Return how many labelled replies are on either side: true_high, false_low, false_high, true_low."""
    above, alarms = sum(value >= threshold for value in high), sum(value >= threshold for value in low)
    return {
        "true_high": above,
        "false_low": len(high) - above,
        "false_high": alarms,
        "true_low": len(low) - alarms,
    }


def fit_threshold(
    trait: TraitVector, high: Sequence[float], low: Sequence[float], most_false_alarms: float = 1.0
) -> ThresholdFit:
    """Return the best threshold for labelled scores.

    Args:
        trait: whose scores they are.
        high, low: scores of the replies with either label.
        most_false_alarms: the share of low replies that may at most count as high.

    Raises:
        DatasetError: a side has fewer than two replies, or the low ones score higher.
    """
    for side, values in (("high", high), ("low", low)):
        if len(values) < _FEWEST:
            raise DatasetError(
                f'"{trait.name}" cannot be calibrated: {len(values)} replies are labelled {side}, '
                f"and at least {_FEWEST} are needed on each side"
            )
    area = auc_estimate(high, low)
    if area.value < _CHANCE:
        raise DatasetError(
            f'"{trait.name}" cannot be calibrated: replies labelled high score lower than those labelled low '
            f"(AUC {area.value:.2f}). Are the labels swapped? If not, it does not tell these replies apart"
        )
    threshold = best_threshold(high, low, most_false_alarms)
    before = trait.reading.threshold
    above, below = np.asarray(high), np.asarray(low)
    return ThresholdFit(
        trait.name,
        threshold,
        before,
        area,
        balanced_accuracy(high, low, threshold),
        balanced_accuracy(high, low, before),
        _unseen(above, below, most_false_alarms),
        counts_at(high, low, threshold),
    )


def balanced_accuracy(high: Sequence[float], low: Sequence[float], threshold: float) -> float:
    """Return the mean of the share of high scores at or above a threshold and of low scores below it."""
    right_high = float(np.mean(np.asarray(high) >= threshold))
    right_low = float(np.mean(np.asarray(low) < threshold))
    return (right_high + right_low) / 2


def _unseen(high: np.ndarray[Any, Any], low: np.ndarray[Any, Any], most_false_alarms: float) -> float:
    """Return the cross-validated balanced accuracy."""
    right = {"high": 0, "low": 0}
    folds = min(_FOLDS, len(high), len(low))
    for fold in range(folds):
        of_high, of_low = np.arange(len(high)) % folds == fold, np.arange(len(low)) % folds == fold
        threshold = best_threshold(high[~of_high], low[~of_low], most_false_alarms)
        right["high"] += int((high[of_high] >= threshold).sum())
        right["low"] += int((low[of_low] < threshold).sum())
    return (right["high"] / len(high) + right["low"] / len(low)) / 2
