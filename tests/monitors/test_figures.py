"""What the monitor screen shows: histograms, rates, layers, dimensions, saved thresholds, results."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path

import pytest

from persona_tui.core.errors import MonitorError
from persona_tui.core.workspace import Workspace
from persona_tui.monitors.evaluation import Evaluation, evaluate, load_evaluation
from persona_tui.monitors.figures import (
    KINDS,
    check_all,
    curves,
    dimensions,
    histogram,
    judged_by,
    rates,
    rows_at,
    score_range,
    vector_layers,
)
from persona_tui.monitors.monitor import SelfMonitor
from persona_tui.monitors.query_sets import load_sets
from persona_tui.monitors.results import results_folder, write_results
from persona_tui.monitors.store import MonitorStore


@pytest.fixture(scope="module")
def evaluation(monitor: SelfMonitor, shipped: Workspace) -> Evaluation:
    return evaluate(monitor, load_sets(shipped))


def test_a_histogram_counts_every_query_once_in_its_kind(evaluation: Evaluation) -> None:
    found = histogram(evaluation, "content", bins=7)
    assert list(found.counts) == list(KINDS)
    assert all(len(counts) == 7 for counts in found.counts.values())
    assert sum(sum(counts) for counts in found.counts.values()) == len(evaluation.queries)
    only = histogram(evaluation, "content", bins=7, sets=["borderline"])
    assert (only.low, only.high) == (found.low, found.high)
    assert sum(only.counts["borderline"]) == 20 and not sum(only.counts["dangerous"])
    assert found.bin_of(found.low - 1) == 0 and found.bin_of(found.high + 1) == 6


def test_rates_follow_the_threshold_from_nothing_caught_to_everything_flagged(evaluation: Evaluation) -> None:
    low, high = score_range(evaluation, "probe")
    lenient, strict = rates(evaluation, "probe", low), rates(evaluation, "probe", high)
    assert (lenient.caught, lenient.flagged, lenient.false_negatives) == (0, 0, 1.0)
    assert (strict.missed, strict.passed, strict.false_positives) == (0, 0, 1.0)
    own = rates(evaluation, "probe")
    assert own.threshold == evaluation.thresholds["probe"] and own.n == len(evaluation.queries)
    assert own.accuracy == (own.caught + own.passed) / own.n
    assert rates(evaluation, "probe", sets=["borderline"]).false_negatives is None


def test_the_comparison_follows_one_threshold_as_if_it_were_measured_anew(evaluation: Evaluation) -> None:
    rows = evaluation.rows()
    moved = replace(evaluation, thresholds={**evaluation.thresholds, "probe": 0.4})
    assert rows_at(evaluation, rows, "probe", 0.4) == moved.rows()
    assert rows == evaluation.rows()


def test_every_layer_has_a_point_and_the_consensus_has_the_curves_of_the_probes(monitor: SelfMonitor) -> None:
    found = curves(monitor, "content")
    assert {curve.position for curve in found} == {"message", "prompt_last"}
    layers = monitor.metadata["layers"]
    assert all([point.layer for point in curve.points] == layers for curve in found)
    assert curves(monitor, "consensus") == curves(monitor, "probe")
    assert len(curves(monitor)) == 8


def test_dimensions_are_those_of_the_method_with_the_largest_first(monitor: SelfMonitor) -> None:
    content = dimensions(monitor, "content", count=5)
    assert len(content.values) == monitor.metadata["hidden_size"] and len(content.top) == 5
    sizes = [abs(content.values[place]) for place in content.top]
    assert sizes == sorted(sizes, reverse=True) and sizes[0] == abs(content.values).max()
    assert content.share(range(len(content.values))) == pytest.approx(1)
    assert vector_layers(monitor, "content") == tuple(monitor.metadata["layers"])
    probe = monitor.detectors["probe"]
    assert dimensions(monitor, "probe").values == pytest.approx(probe.form.weights[0].double().numpy())  # type: ignore[union-attr]
    with pytest.raises(MonitorError, match="no vector at layer 99"):
        dimensions(monitor, "content", 99)


def test_all_methods_judge_a_text_as_they_do_alone(monitor: SelfMonitor) -> None:
    found = check_all(monitor, "How do I bake bread?")
    assert list(found) == list(monitor.detectors)
    for method, verdict in found.items():
        alone = monitor.check("How do I bake bread?", method)
        assert verdict.score == pytest.approx(alone.score, abs=1e-4) and verdict.method == method
    with pytest.raises(MonitorError, match="empty"):
        check_all(monitor, "  ")


@pytest.fixture
def store(tmp_path: Path, monitor: SelfMonitor, evaluation: Evaluation) -> MonitorStore:
    (tmp_path / "config.yaml").write_text("")
    store = MonitorStore(Workspace(tmp_path), "tiny", "tiny")
    store.save(monitor)
    evaluation.save(store.evaluation_path(monitor.name))
    return store


def test_a_threshold_is_saved_with_its_evaluation_and_can_be_taken_back(
    store: MonitorStore, monitor: SelfMonitor, evaluation: Evaluation
) -> None:
    fitted = monitor.detectors["tone"].threshold
    changed = store.set_threshold("default", "tone", 0.25)
    assert changed.method == "tone" and changed.detectors["tone"].threshold == 0.25
    again = store.load("default")
    assert again.detectors["tone"].fit["fitted_threshold"] == fitted
    kept = load_evaluation(store.evaluation_path("default"))
    assert kept.method == "tone" and kept.thresholds["tone"] == 0.25
    assert kept.queries == evaluation.queries
    back = store.set_threshold("default", "tone")
    assert back.detectors["tone"].threshold == fitted
    assert "fitted_threshold" not in back.detectors["tone"].fit
    for bad in (float("nan"), float("inf")):
        with pytest.raises(MonitorError, match="must be a number"):
            store.set_threshold("default", "tone", bad)
    with pytest.raises(MonitorError, match="no method"):
        store.set_threshold("default", "tune", 0.1)


def test_a_damaged_evaluation_keeps_a_threshold_from_being_saved(store: MonitorStore) -> None:
    store.evaluation_path("default").write_text("{")
    before = store.path_of("default").read_bytes()
    with pytest.raises(MonitorError, match="to write it again"):
        store.set_threshold("default", "tone", 0.25)
    assert store.path_of("default").read_bytes() == before


def test_results_are_written_as_json_and_csv(
    tmp_path: Path, monitor: SelfMonitor, evaluation: Evaluation
) -> None:
    folder = results_folder(Workspace(tmp_path), "tiny", "monitors", "default")
    assert folder == tmp_path / "results" / "tiny" / "monitors" / "default"
    files = write_results(folder, monitor, judged_by(evaluation, monitor), "content", 0.0)
    document = json.loads(files[0].read_text())
    assert document["threshold"] == 0.0 and document["rates"]["all"]["n"] == len(evaluation.queries)
    assert document["fitted_threshold"] == monitor.detectors["content"].threshold
    assert all(wrong["label"] in ("safe", "dangerous") for wrong in document["most_wrong"])
    for path in files[1:]:
        rows = list(csv.reader(path.open()))
        assert len(rows) > 1 and all(len(row) == len(rows[0]) for row in rows), path
    with (folder / "scores.csv").open() as file:
        assert len(list(csv.DictReader(file))) == len(evaluation.queries)
