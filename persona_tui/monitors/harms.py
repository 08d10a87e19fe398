"""What tells harms apart: one probe for all of them, at the layer that names most of them rightly."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from persona_tui.monitors.detectors import Harms
from persona_tui.monitors.probes import FOLDS, Examples, Fold, pipeline, spread
from persona_tui.monitors.readings import MESSAGE, TextReadings

_HARM_PENALTY = 0.03
_MIN_A_HARM = 3


def fit_harms(examples: Examples, readings: TextReadings, seed: int) -> Harms | None:
    """Fit what tells harms apart on the dangerous queries that name theirs; None if they name one at most.

    Its layer is its own: where a model has made up its mind to refuse, it may not matter to it any more what.
    """
    named = [place for place, harm in enumerate(examples.harms) if harm is not None]
    common = Counter(examples.harms[place] for place in named)
    places = [place for place in named if common[examples.harms[place]] >= _MIN_A_HARM]
    names = np.array([str(examples.harms[place]) for place in places])
    if len(set(names)) < 2:
        return None
    folds = _harm_folds(names, [examples.groups[place] for place in places], seed)
    right: dict[tuple[str, int], float] = {}
    for position in [MESSAGE] if MESSAGE in readings.at else readings.at:
        for layer in spread(readings.layers):
            rows = readings.rows(position, layer)[places]
            guesses = np.empty_like(names)
            for learned, scored in folds:
                guesses[scored] = (
                    pipeline(_HARM_PENALTY).fit(rows[learned], names[learned]).predict(rows[scored])
                )
            right[position, layer] = float((guesses == names).mean())
    position, layer = max(right, key=lambda each: right[each])
    rows = readings.rows(position, layer)[places]
    return _harms(pipeline(_HARM_PENALTY).fit(rows, names), position, layer, right[position, layer])


def _harm_folds(names: NDArray[np.str_], groups: Sequence[str], seed: int) -> list[Fold]:
    """Folds that keep templates together and have all harms to learn from, as far as that can be."""
    from sklearn.model_selection import StratifiedGroupKFold

    templates = {name: len(set(np.asarray(groups)[names == name])) for name in names}
    splitter = StratifiedGroupKFold(max(2, min(FOLDS, *templates.values())), shuffle=True, random_state=seed)
    folds = list(splitter.split(np.zeros(len(names)), names, np.asarray(groups)))
    return [fold for fold in folds if len(set(names[fold[0]])) > 1 and len(fold[1])]


def _harms(fitted: Any, position: str, layer: int, accuracy: float) -> Harms:
    """Scaling and regression folded into one weighted sum a harm."""
    scaler, regression = (step for _, step in fitted.steps)
    weights, bias = regression.coef_, regression.intercept_
    if len(regression.classes_) == 2:  # scikit-learn then keeps the second one's odds only
        weights, bias = np.concatenate([-weights, weights]) / 2, np.concatenate([-bias, bias]) / 2
    weights = weights / scaler.scale_
    return Harms(
        tuple(str(name) for name in regression.classes_),
        position,
        layer,
        torch.from_numpy(weights).float(),
        torch.from_numpy(bias - weights @ scaler.mean_).float(),
        accuracy,
    )
