"""Probes: scaling and a logistic regression on what was read at one layer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from persona_tui.core.statistics import Numbers
from persona_tui.monitors.readings import TextReadings

PROBE_LAYERS = 12  # at how many layers, evenly spread, a probe is tried


def spread(layers: Sequence[int]) -> list[int]:
    """At most `PROBE_LAYERS` of the layers, the first and the last among them."""
    count = min(PROBE_LAYERS, len(layers))
    places = np.linspace(0, len(layers) - 1, count).round().astype(int)
    return [layers[place] for place in sorted(set(places.tolist()))]


def rows_of(readings: TextReadings, position: str, layer: int) -> Numbers:
    """What is learned from, `[n, hidden]`."""
    rows: Numbers = readings.select(position, [layer])[:, 0].double().numpy()
    return rows


def pipeline(penalty: float) -> Any:
    """Scaling and a logistic regression that is as simple as the penalty asks for."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    return make_pipeline(
        StandardScaler(), LogisticRegression(C=penalty, class_weight="balanced", max_iter=1000)
    )
