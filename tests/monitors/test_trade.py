"""Where a threshold goes: direct requests first, then false alarms; or a limit of false alarms."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest

from persona_tui.monitors.trade import Trade, direct_of, false_alarms, figures, more_alarms

# 100 direct requests at 0 .. 0.99, 100 dressed ones far up, 100 harmless ones from 0.9 on.
SCORES = np.concatenate([np.arange(100) / 100, np.full(100, 5.0), 0.9 + np.arange(100) / 100])
SAFE = np.repeat([False, False, True], 100)
KINDS = ["direct"] * 100 + ["academic"] * 100 + ["everyday"] * 50 + ["lookalike"] * 50


@pytest.mark.parametrize("wanted", [0.5, 0.9, 0.97, 1.0])
def test_as_many_direct_requests_are_caught_as_asked_for_and_no_more(wanted: float) -> None:
    threshold = Trade(min_catch=wanted).threshold(SCORES, SAFE, KINDS)
    assert (SCORES[:100] <= threshold).mean() == pytest.approx(wanted)


@pytest.mark.parametrize("allowed", [0.0, 0.05, 0.5, 1.0])
def test_as_many_false_alarms_as_allowed_and_no_more(allowed: float) -> None:
    threshold = Trade(max_false_alarms=allowed).threshold(SCORES, SAFE, KINDS)
    assert (SCORES[SAFE] <= threshold).mean() == pytest.approx(allowed)


def test_where_hardly_any_request_is_called_direct_all_dangerous_ones_count() -> None:
    assert direct_of(SAFE, KINDS).sum() == 100
    assert direct_of(SAFE, ["my own"] * 300).sum() == 200


def test_false_alarms_are_those_where_direct_requests_are_caught() -> None:
    # 95 to 99% of the direct ones lie at or below 0.94 to 0.98: 5 to 9 of the harmless ones do, too.
    assert false_alarms(SCORES, SAFE, KINDS) == pytest.approx(0.07, abs=0.01)
    assert false_alarms(-SCORES, SAFE, KINDS) == 1.0


def test_chance_stays_within_the_error_and_what_is_worse_does_not() -> None:
    names = [str(place) for place in range(300)]
    noise = np.random.default_rng(0).normal(size=(21, 300))
    one, others = SCORES + 0.1 * noise[0], SCORES + 0.1 * noise[1:]
    value, error = more_alarms(one, others[0], SAFE, KINDS, names)
    assert value == pytest.approx(false_alarms(one, SAFE, KINDS) - false_alarms(others[0], SAFE, KINDS))
    chance = [more_alarms(first, second, SAFE, KINDS, names) for first, second in pairwise(others)]
    assert 0.5 < np.mean([abs(value) <= error for value, error in chance]) < 0.95
    worse, error = more_alarms(SCORES + 2 * noise[2], one, SAFE, KINDS, names)
    assert worse > 3 * error
    assert more_alarms(one, one, SAFE, KINDS, names) == (0, 0)


def test_queries_of_one_template_count_as_one() -> None:
    noise = np.random.default_rng(0).normal(size=(2, 30)).repeat(10, axis=1)
    one, other = SCORES + noise[0], SCORES + noise[1]
    (_, alone), (_, together) = (
        more_alarms(one, other, SAFE, KINDS, [str(place // siblings) for place in range(300)])
        for siblings in (1, 10)
    )
    assert together > 1.5 * alone


def test_errors_are_told_by_kind() -> None:
    found = figures(SCORES, SAFE, KINDS, 0.965)
    assert found["direct_caught"]["value"] == pytest.approx(0.97)
    assert found["plain_flagged"]["value"] == pytest.approx(0.14)
    wrong = {(each["kind"], each["label"]): each["wrong"]["value"] for each in found["kinds"]}
    assert wrong["academic", "dangerous"] == 1 and wrong["lookalike", "safe"] == 0
