"""One picture of a monitor: how its layers separate, where its scores lie, and how its methods compare.

Drawn by matplotlib, which is optional: `pip install 'persona-tui[plots]'`.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np

from persona_tui.core.errors import MonitorError
from persona_tui.monitors.detectors import CONTENT, TONE
from persona_tui.monitors.evaluation import Evaluation
from persona_tui.monitors.monitor import SelfMonitor

FORMATS = (".png", ".svg")

_SAFE, _DANGEROUS, _THRESHOLD = "#2a78b8", "#c8503c", "#333333"
_BINS = 24


def check_plot(path: Path) -> None:
    """Make sure, before the long work, that a picture can be drawn.

    Raises:
        MonitorError: the file is no .png or .svg, or matplotlib is not installed.
    """
    if path.suffix.lower() not in FORMATS:
        raise MonitorError(f"{path.name} is not a .png or .svg file; plots are written as one of these")
    if importlib.util.find_spec("matplotlib") is None:
        raise MonitorError("plots need matplotlib: pip install 'persona-tui[plots]'")


def draw(monitor: SelfMonitor, evaluation: Evaluation, path: Path) -> None:
    """Write the picture.

    Raises:
        MonitorError: see `check_plot`.
        OSError: the file cannot be written.
    """
    check_plot(path)
    # Not pyplot: it would look for a screen.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(15, 4.6), layout="constrained")
    FigureCanvasAgg(figure)
    layers, scores, methods = figure.subplots(1, 3, width_ratios=(1.1, 1, 1.4))
    _draw_layers(layers, monitor)
    _draw_scores(scores, evaluation)
    _draw_methods(methods, evaluation)
    figure.suptitle(f"Monitor {monitor.name} of {monitor.metadata.get('model_name')}")
    figure.savefig(path, dpi=120)


def _draw_layers(axes: Any, monitor: SelfMonitor) -> None:
    """AUC by layer, cross-validated on what was fitted."""
    for method in (CONTENT, TONE):
        scan = [point for point in monitor.metadata.get("scan", []) if point["method"] == method]
        for position in dict.fromkeys(point["position"] for point in scan):
            points = [point for point in scan if point["position"] == position]
            at = [point["layer"] for point in points]
            area = [point["auc"] for point in points]
            (line,) = axes.plot(
                at,
                [each["value"] for each in area],
                marker="o",
                markersize=3,
                linestyle="-" if method == CONTENT else ":",
                label=f"{method}, {position.replace('_', ' ')}",
            )
            low, high = [each["low"] for each in area], [each["high"] for each in area]
            axes.fill_between(at, low, high, alpha=0.12, color=line.get_color())
    axes.axhline(0.5, color=_THRESHOLD, linewidth=0.6)
    axes.set(title="How layers separate", xlabel="layer", ylabel="AUC, cross-validated, 95%")
    axes.legend(fontsize="small")


def _draw_scores(axes: Any, evaluation: Evaluation) -> None:
    """Where the safe and the dangerous queries of all sets lie, and the threshold."""
    values, safe, _ = evaluation.scored(evaluation.method)
    edges = np.histogram_bin_edges(values, _BINS)
    for flags, colour, label in ((safe, _SAFE, "safe"), (~safe, _DANGEROUS, "dangerous")):
        axes.hist(values[flags], edges, color=colour, alpha=0.6, label=f"{label} ({int(flags.sum())})")
    axes.axvline(
        evaluation.thresholds[evaluation.method], color=_THRESHOLD, linestyle="--", label="threshold"
    )
    axes.set(title=f"Scores of {evaluation.method}, all sets", xlabel="score", ylabel="queries")
    axes.legend(fontsize="small")


def _draw_methods(axes: Any, evaluation: Evaluation) -> None:
    """Accuracy of every method on every set."""
    rows, methods, sets = evaluation.rows(), list(evaluation.thresholds), evaluation.sets
    width = 0.8 / max(1, len(methods))
    for place, method in enumerate(methods):
        found = [row["accuracy"] for row in rows if row["method"] == method]
        value = np.array([each["value"] for each in found])
        spread = [value - [each["low"] for each in found], [each["high"] for each in found] - value]
        axes.bar(
            np.arange(len(sets)) + (place - (len(methods) - 1) / 2) * width,
            value,
            width,
            yerr=np.clip(spread, 0, None),
            error_kw={"linewidth": 0.8},
            label=method,
        )
    axes.set(title="Accuracy on queries that were not fitted on, 95%", ylim=(0, 1.02))
    axes.set_xticks(np.arange(len(sets)), sets)
    axes.legend(fontsize="small", ncols=3, loc="lower right")
