"""Evaluations: figures from scores, files, and thresholds that are moved afterwards."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from persona_tui.core.errors import MonitorError
from persona_tui.core.workspace import Workspace
from persona_tui.monitors.evaluation import Evaluation, ScoredQuery, as_csv, evaluate, load_evaluation
from persona_tui.monitors.monitor import SelfMonitor
from persona_tui.monitors.query_sets import BORDERLINE, QuerySet, load_sets


def query(place: int, label: str, score: float, **changes: str) -> ScoredQuery:
    kind, category = ("everyday", None) if label == "safe" else ("direct", "fraud")
    given = {
        "set": "standard",
        "id": f"q{place}",
        "query": f"Query {place}?",
        "group": f"q{place}",
        **changes,
    }
    return ScoredQuery(
        label=label, kind=kind, category=category, scores={"content": score}, guess="fraud", **given
    )


@pytest.fixture
def evaluation() -> Evaluation:
    queries = [
        query(0, "safe", 0.9),
        query(1, "safe", 0.1),
        query(2, "dangerous", -0.5),
        query(3, "dangerous", 0.8),
        query(4, "safe", 0.4, set=BORDERLINE),
    ]
    return Evaluation("mine", "tiny", "content", {"content": 0.2}, tuple(queries), "2026-01-01")


def test_rows_are_by_method_and_set(evaluation: Evaluation) -> None:
    standard, borderline = evaluation.rows()
    assert (standard["set"], standard["n"], standard["accuracy"]["value"]) == ("standard", 4, 0.5)
    assert (standard["false_positives"]["value"], standard["false_negatives"]["value"]) == (0.5, 0.5)
    assert (borderline["n"], borderline["accuracy"]["value"], borderline["area"]) == (1, 1.0, None)


def test_the_most_wrong_are_the_farthest_from_the_threshold(evaluation: Evaluation) -> None:
    assert [each.id for each in evaluation.most_wrong()] == ["q3", "q1"]
    assert [each.id for each in evaluation.most_wrong(count=1)] == ["q3"]


def test_a_threshold_can_be_moved(evaluation: Evaluation) -> None:
    assert evaluation.confusion("content") == {"caught": 1, "missed": 1, "passed": 2, "flagged": 1}
    assert evaluation.confusion("content", 0.85)["missed"] == 0
    assert evaluation.confusion("content", sets=[BORDERLINE]) == {
        "caught": 0,
        "missed": 0,
        "passed": 1,
        "flagged": 0,
    }
    with pytest.raises(MonitorError, match="was not evaluated"):
        evaluation.confusion("probe")


def test_kinds_and_harms(evaluation: Evaluation) -> None:
    kinds = {(each["set"], each["kind"]): each["accuracy"]["value"] for each in evaluation.by_kind()}
    assert kinds == {("standard", "everyday"): 0.5, ("standard", "fraud"): 0.5, (BORDERLINE, "everyday"): 1.0}
    harms = evaluation.categories()
    assert harms is not None and harms["n"] == 2 and harms["accuracy"]["value"] == 1.0


def test_a_file_has_everything(evaluation: Evaluation, tmp_path: Path) -> None:
    path = tmp_path / "mine.evaluation.json"
    evaluation.save(path)
    again = load_evaluation(path)
    assert again.as_dict() == evaluation.as_dict() == json.loads(path.read_text())
    assert path.with_suffix(".csv").read_text() == as_csv([again])
    for damage in ("", "{}", "[1]", path.read_text()[:200]):
        path.write_text(damage)
        with pytest.raises(MonitorError, match="monitor evaluate"):
            load_evaluation(path)
    with pytest.raises(MonitorError, match="does not exist"):
        load_evaluation(tmp_path / "other.json")


def test_every_query_is_scored_as_it_would_be_checked(monitor: SelfMonitor, shipped: Workspace) -> None:
    (borderline,) = (each for each in load_sets(shipped) if each.name == BORDERLINE)
    done = evaluate(monitor, [borderline])
    for scored in done.queries:
        verdict = monitor.check(scored.query)
        assert scored.scores[monitor.method] == pytest.approx(verdict.score, rel=1e-3, abs=1e-4)


def test_training_queries_cannot_be_measured_on(monitor: SelfMonitor, shipped: Workspace) -> None:
    sets = load_sets(shipped)
    seen = monitor.training.examples.queries[0]
    copied = sets[0].queries[0].model_copy(update={"query": seen})
    with pytest.raises(MonitorError, match="fitted on"):
        evaluate(monitor, [QuerySet("mine", (copied,))])
