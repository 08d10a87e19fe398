"""Statistics against what they must be by hand, and against scikit-learn and scipy."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from persona_tui.core.statistics import (
    auc_estimate,
    best_threshold,
    difference_estimate,
    effect_size,
    holm,
    mean_estimate,
    roc_auc,
    separation,
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


def test_auc_is_scikit_learns() -> None:
    high, low = RNG.normal(1, 1, 40).round(1), RNG.normal(0, 1, 30).round(1)
    labels = [1] * 40 + [0] * 30
    assert roc_auc(high, low) == pytest.approx(roc_auc_score(labels, [*high, *low]))


def test_intervals_hold_the_value_and_shrink() -> None:
    few = auc_estimate(RNG.normal(1, 1, 10), RNG.normal(0, 1, 10))
    many = auc_estimate(RNG.normal(1, 1, 500), RNG.normal(0, 1, 500))
    for estimate in (few, many, mean_estimate(RNG.normal(0, 1, 50))):
        assert estimate.low <= estimate.value <= estimate.high
    assert many.high - many.low < few.high - few.low
    assert few == auc_estimate(RNG.normal(1, 1, 10), [0]) or few.low >= 0  # shares stay shares


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
