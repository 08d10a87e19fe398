"""A monitor's results as files that other programs read: one JSON document, and tables as CSV."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from persona_tui.core.files import atomic_write_text, safe_name
from persona_tui.core.workspace import Workspace
from persona_tui.monitors.evaluation import Evaluation, as_csv
from persona_tui.monitors.figures import Rates, curves, dimensions, kind_of, rates
from persona_tui.monitors.monitor import SelfMonitor

WRONG = 50  # of the most wrong examples


def results_folder(workspace: Workspace, slug: str, kind: str, name: str) -> Path:
    """Return where results of a model are written: `results/<model>/<kind>/<name>`; it need not exist.

    Raises:
        WorkspaceError: the name cannot be a file name.
    """
    return workspace.root / "results" / slug / kind / safe_name(name)


def write_results(
    folder: Path,
    monitor: SelfMonitor,
    evaluation: Evaluation,
    method: str,
    threshold: float | None = None,
) -> list[Path]:
    """Write all that is known of a monitor, for one method at one threshold (by default its own).

    `results.json` has everything; `comparison.csv`, `rates.csv`, `scores.csv`, `layers.csv` and
    `dimensions.csv` have a table each. Older results in the folder are replaced.

    Returns:
        The files, results.json first.

    Raises:
        MonitorError: there is no such method.
        WorkspaceError: the folder cannot be written to.
    """
    at = evaluation.thresholds[method] if threshold is None else threshold
    by_set = {name: rates(evaluation, method, at, [name]) for name in evaluation.sets}
    whole = rates(evaluation, method, at)
    texts = {
        "results.json": _document(monitor, evaluation, method, whole, by_set),
        "comparison.csv": as_csv([evaluation]),
        "rates.csv": _rates(method, {"all": whole, **by_set}),
        "scores.csv": _scores(evaluation),
        "layers.csv": _layers(monitor),
        "dimensions.csv": _dimensions(monitor, method),
    }
    for name, text in texts.items():
        atomic_write_text(folder / name, text)
    return [folder / name for name in texts]


def _document(
    monitor: SelfMonitor, evaluation: Evaluation, method: str, whole: Rates, by_set: dict[str, Rates]
) -> str:
    detector = monitor.detectors.get(method)
    document = {
        "monitor": monitor.name,
        "model": evaluation.model,
        "method": method,
        "evaluated": evaluation.created,
        "threshold": whole.threshold,
        "fitted_threshold": fitted_threshold(monitor, method),
        "position": detector.position if detector is not None else None,
        "layers": list(detector.layers) if detector is not None else [],
        "rates": {"all": whole.as_dict(), **{name: each.as_dict() for name, each in by_set.items()}},
        "comparison": evaluation.rows(),
        "kinds": evaluation.by_kind(method),
        "most_wrong": [
            {
                "set": query.set,
                "label": query.label,
                "kind": query.kind,
                "score": query.scores[method],
                "query": query.query,
            }
            for query in evaluation.most_wrong(method, WRONG, whole.threshold)
        ],
        "scan": monitor.metadata.get("scan") or [],
        "vector": dimensions(monitor, method).as_dict() if detector is not None else None,
    }
    return json.dumps(document, ensure_ascii=False, indent=1) + "\n"


def fitted_threshold(monitor: SelfMonitor, method: str) -> float | None:
    """Return the threshold that cross-validation chose, even if one was set by hand; None = not known."""
    detector = monitor.detectors.get(method)
    if detector is None:
        return None
    return float(detector.fit.get("fitted_threshold", detector.threshold))


def _rates(method: str, found: dict[str, Rates]) -> str:
    names = list(next(iter(found.values())).as_dict())
    rows = [[method, name, *(_cell(each.as_dict()[key]) for key in names)] for name, each in found.items()]
    return _table(["method", "set", *names], rows)


def _scores(evaluation: Evaluation) -> str:
    methods = list(evaluation.thresholds)
    rows = [
        [query.set, query.id, query.label, kind_of(query), query.category or "", query.query]
        + [query.scores[method] for method in methods]
        for query in evaluation.queries
    ]
    return _table(["set", "id", "label", "kind", "category", "query", *methods], rows)


def _layers(monitor: SelfMonitor) -> str:
    rows = [
        {"method": curve.method, "position": curve.position, **point.as_dict()}
        for curve in curves(monitor)
        for point in curve.points
    ]
    header = list(rows[0]) if rows else ["method", "position", "layer"]
    return _table(header, [list(row.values()) for row in rows])


def _dimensions(monitor: SelfMonitor, method: str) -> str:
    if method not in monitor.detectors:
        return _table(["dimension", "value"], [])
    values = dimensions(monitor, method).values
    return _table(["dimension", "value"], [[place, value] for place, value in enumerate(values.tolist())])


def _table(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(rows)
    return out.getvalue()


def _cell(value: Any) -> Any:
    return "" if value is None else value
