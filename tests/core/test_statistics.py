"""Statistics against what they must be by hand, and against scikit-learn and scipy."""

from __future__ import annotations

import math

import numpy as np
import pytest
from sklearn.metrics import balanced_accuracy_score, roc_auc_score

from persona_tui.core.statistics import (
    auc_estimate,
    balanced_accuracy,
    best_threshold,
    confusion,
    difference_estimate,
    effect_size,
    holm,
    labelled_auc,
    mean_estimate,
    performance,
    roc_auc,
    separation,
    share,
    shuffle_test,
    sign_flip_test,
)

RNG = np.random.default_rng(3)


def test_auc_by_hand() -> None:
    assert roc_auc([2, 3], [0, 1]) == 1
    assert roc_auc([1, 1], [1, 1]) == 0.5
    assert roc_auc([0, 2], [1]) == 0.5
    with pytest.raises(ValueError, match="no values"):
        roc_auc([], [1])


def test_auc_counts_the_pairs_that_lie_right() -> None:
    high, low = RNG.normal(1, 1, 40).round(1), RNG.normal(0, 1, 30).round(1)
    right = [(a > b) + (a == b) / 2 for a in high for b in low]
    assert roc_auc(high, low) == pytest.approx(np.mean(right))


def test_intervals_hold_the_value_and_shrink() -> None:
    few = auc_estimate(RNG.normal(1, 1, 10), RNG.normal(0, 1, 10))
    many = auc_estimate(RNG.normal(1, 1, 500), RNG.normal(0, 1, 500))
    for estimate in (few, many, mean_estimate(RNG.normal(0, 1, 50))):
        assert estimate.low <= estimate.value <= estimate.high
    assert many.high - many.low < few.high - few.low
    assert few == auc_estimate(RNG.normal(1, 1, 10), [0]) or few.low >= 0  # shares stay shares


def test_a_perfect_separation_is_not_certain() -> None:
    assert auc_estimate([1.0], [0.0]).low == pytest.approx(1 / (1 + 1.959964**2))  # by hand
    assert auc_estimate([0.0], [1.0]).high == pytest.approx(1 - 1 / (1 + 1.959964**2))
    few, many = auc_estimate([2] * 5, [1] * 5), auc_estimate([2] * 500, [1] * 500)
    assert few.value == many.value == 1 and few.low < many.low < 1 and few.high == many.high == 1
    assert str(auc_estimate([1.0], [0.0])) == "1.00 [0.21, 1.00]"


def test_the_interval_covers_as_often_as_it_says() -> None:
    random, true = np.random.default_rng(11), 0.5 * (1 + math.erf(1 / 2))  # two normals, one deviation apart
    found = [auc_estimate(random.normal(1, 1, 20), random.normal(0, 1, 30)) for _ in range(400)]
    assert 0.92 < np.mean([each.low <= true <= each.high for each in found]) < 0.985


def test_the_same_values_give_the_same_interval() -> None:
    values = list(RNG.normal(0, 1, 20))
    assert mean_estimate(values) == mean_estimate(values)


def test_separation_and_effect_sizes() -> None:
    assert separation([3, 5], [0, 2]) == pytest.approx(3 / 2**0.5)
    assert separation([1, 1], [0, 0]) == 0  # nothing to divide by
    assert effect_size([0, 0, 0], [1, 2, 3], paired=True) == pytest.approx(2)
    assert effect_size([1, 2], [1, 2], paired=True) == 0


def test_paired_differences_need_less() -> None:
    a = RNG.normal(0, 5, 30)
    b = a + 0.5 + RNG.normal(0, 0.1, 30)
    paired, unpaired = difference_estimate(a, b, True), difference_estimate(a, b, False)
    assert paired.value == pytest.approx(unpaired.value)
    assert paired.high - paired.low < unpaired.high - unpaired.low
    assert sign_flip_test(b - a) < 0.001 < 0.05 < shuffle_test(a, b)


def test_the_exact_test_by_hand() -> None:
    assert sign_flip_test([1, 2, 3]) == pytest.approx(2 / 8)
    assert sign_flip_test([0, 0]) == 1
    assert shuffle_test([1, 2, 3], [1, 2, 3]) == 1


def test_holm_by_hand() -> None:
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.9, 0.8]) == [1.0, 1.0]


def test_thresholds() -> None:
    assert best_threshold([2, 3], [0, 1]) == 1.5
    assert best_threshold([1, 5, 6], [0, 1.2, 2]) == 3.5
    assert best_threshold([1, 5, 6], [0, 2, 4, 5.5], most_false_alarms=0.0) == 5.75
    many = best_threshold(RNG.normal(2, 1, 4000), RNG.normal(0, 1, 4000))
    assert many == pytest.approx(1, abs=0.3)


# Labelled queries -----------------------------------------------------------------------------------------

RANDOM = np.random.default_rng(5)
SAFE = np.array([True] * 30 + [False] * 20)
SCORES = np.round(RANDOM.normal(SAFE.astype(float), 1.0), 1)  # rounded, so that there are ties


def test_area_under_the_curve() -> None:
    assert labelled_auc(SCORES, SAFE).value == pytest.approx(roc_auc_score(SAFE, SCORES))
    estimate = labelled_auc(SCORES, SAFE)
    assert estimate.low < estimate.value < estimate.high and estimate == labelled_auc(SCORES, SAFE)
    assert math.isnan(labelled_auc(SCORES[SAFE], SAFE[SAFE]).low)


def test_alike_queries_make_one_less_sure() -> None:
    alone = labelled_auc(SCORES, SAFE)
    groups = [f"{flag}{place // 10}" for place, flag in enumerate(SAFE)]
    together = labelled_auc(SCORES, SAFE, groups)
    assert together.value == alone.value and together.low < alone.low and together.high > alone.high
    flags = np.array([True] * 18 + [False] * 2)
    sure, unsure = share(flags), share(flags, [str(place // 5) for place in range(20)])
    assert sure.value == unsure.value == 0.9
    assert unsure.high - unsure.low > sure.high - sure.low


def test_a_share_of_all_is_not_certain() -> None:
    assert share(np.array([True] * 40)).low == pytest.approx(0.912, abs=0.001)  # Wilson's, from tables
    assert share(np.array([False] * 40)).high == pytest.approx(0.088, abs=0.001)
    assert math.isnan(share(np.array([], dtype=bool)).value)


def test_the_best_threshold_is_the_best() -> None:
    threshold = best_threshold(SCORES[SAFE], SCORES[~SAFE])
    cuts = [-np.inf, *(np.unique(SCORES) + 0.05)]
    tried = [balanced_accuracy_score(SAFE, cut < SCORES) for cut in cuts]
    assert balanced_accuracy(SCORES, SAFE, threshold) == pytest.approx(max(tried))
    apart = np.array([1.0, 2.0, 4.0, 5.0])
    assert best_threshold(apart[2:], apart[:2]) == 3.0


def test_performance_counts_both_mistakes() -> None:
    scores, safe = np.array([0.9, 0.2, 0.8, 0.1, 0.3]), np.array([True, True, False, False, False])
    found = performance(scores, safe, 0.5, [str(place) for place in range(5)])
    assert (found.accuracy.value, found.false_positives.value) == (0.6, 0.5)
    assert found.false_negatives.value == pytest.approx(1 / 3)
    assert confusion(scores, safe, 0.5) == {"caught": 2, "missed": 1, "passed": 1, "flagged": 1}
    only_safe = performance(scores[:2], safe[:2], 0.5, ["a", "b"]).as_dict()
    assert only_safe["false_negatives"] is None and only_safe["area"] is None
