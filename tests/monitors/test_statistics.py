"""The numbers, against scikit-learn and by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
from sklearn.metrics import balanced_accuracy_score, roc_auc_score

from persona_tui.monitors.statistics import (
    auc,
    auc_estimate,
    balanced_accuracy,
    best_threshold,
    confusion,
    performance,
    share,
)

RANDOM = np.random.default_rng(5)
SAFE = np.array([True] * 30 + [False] * 20)
SCORES = np.round(RANDOM.normal(SAFE.astype(float), 1.0), 1)  # rounded, so that there are ties


def test_area_under_the_curve() -> None:
    assert auc(SCORES, SAFE) == pytest.approx(roc_auc_score(SAFE, SCORES))
    estimate = auc_estimate(SCORES, SAFE)
    assert estimate.low < estimate.value < estimate.high and estimate == auc_estimate(SCORES, SAFE)
    assert math.isnan(auc(SCORES[SAFE], SAFE[SAFE])) and math.isnan(
        auc_estimate(SCORES[SAFE], SAFE[SAFE]).low
    )


def test_alike_queries_make_one_less_sure() -> None:
    alone = auc_estimate(SCORES, SAFE)
    groups = [f"{flag}{place // 10}" for place, flag in enumerate(SAFE)]
    together = auc_estimate(SCORES, SAFE, groups)
    assert together.value == alone.value
    flags = np.array([True] * 18 + [False] * 2)
    sure, unsure = share(flags), share(flags, [str(place // 5) for place in range(20)])
    assert sure.value == unsure.value == 0.9
    assert unsure.high - unsure.low > sure.high - sure.low


def test_a_share_of_all_is_not_certain() -> None:
    assert share(np.array([True] * 40)).low == pytest.approx(0.912, abs=0.001)  # Wilson's, from tables
    assert share(np.array([False] * 40)).high == pytest.approx(0.088, abs=0.001)
    assert math.isnan(share(np.array([], dtype=bool)).value)


def test_the_best_threshold_is_the_best() -> None:
    threshold = best_threshold(SCORES, SAFE)
    cuts = [-np.inf, *(np.unique(SCORES) + 0.05)]
    tried = [balanced_accuracy_score(SAFE, cut < SCORES) for cut in cuts]
    assert balanced_accuracy(SCORES, SAFE, threshold) == pytest.approx(max(tried))
    apart = np.array([1.0, 2.0, 4.0, 5.0])
    assert best_threshold(apart, np.array([False, False, True, True])) == 3.0


def test_performance_counts_both_mistakes() -> None:
    scores, safe = np.array([0.9, 0.2, 0.8, 0.1, 0.3]), np.array([True, True, False, False, False])
    found = performance(scores, safe, 0.5, [str(place) for place in range(5)])
    assert (found.accuracy.value, found.false_positives.value) == (0.6, 0.5)
    assert found.false_negatives.value == pytest.approx(1 / 3)
    assert confusion(scores, safe, 0.5) == {"caught": 2, "missed": 1, "passed": 1, "flagged": 1}
    only_safe = performance(scores[:2], safe[:2], 0.5, ["a", "b"]).as_dict()
    assert only_safe["false_negatives"] is None and only_safe["area"] is None
