"""What detectors are fitted on, folds, and probes: scaling and a logistic regression at one layer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from persona_tui.core.errors import DatasetError
from persona_tui.core.statistics import Flags

PROBE_LAYERS = 12  # at how many layers, evenly spread, a probe is tried
MIN_A_SIDE = 4
FOLDS = 5

Fold: TypeAlias = tuple[NDArray[np.intp], NDArray[np.intp]]  # places to learn from, places to score


@dataclass(frozen=True, eq=False)
class Examples:
    """Labelled queries to fit on.

    Attributes:
        queries: the texts.
        safe: `[n]`.
        groups: `[n]`: the template of each, or something of its own.
        harms: `[n]`: the harm of each dangerous one, None where it is not known.
        kinds: `[n]`: what sort of query each is; "" where it is not known.
    """

    queries: tuple[str, ...]
    safe: Flags
    groups: tuple[str, ...]
    harms: tuple[str | None, ...]
    kinds: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not self.kinds:
            object.__setattr__(self, "kinds", ("",) * len(self.queries))

    def check(self) -> None:
        """Raise a DatasetError unless there is enough of both kinds to fit on."""
        for kind, count in (("safe", int(self.safe.sum())), ("dangerous", int((~self.safe).sum()))):
            if count < MIN_A_SIDE:
                raise DatasetError(f"{count} {kind} queries are too few to fit on: {MIN_A_SIDE} are needed")


def make_folds(examples: Examples, seed: int = 0) -> list[Fold]:
    """Folds that keep templates together and have both kinds on either side, as far as that can be."""
    from sklearn.model_selection import StratifiedGroupKFold

    names = np.asarray(examples.groups)
    smallest = min(len(set(names[examples.safe])), len(set(names[~examples.safe])))
    splitter = StratifiedGroupKFold(max(2, min(FOLDS, smallest)), shuffle=True, random_state=seed)
    folds = list(splitter.split(np.zeros(len(names)), examples.safe, names))
    for learned, _ in folds:
        if len(set(examples.safe[learned])) < 2:
            raise DatasetError(
                "all queries of one kind are from one template: fitting needs several templates"
            )
    return folds


# Probes -----------------------------------------------------------------------------------------------------


def spread(layers: Sequence[int]) -> list[int]:
    """At most `PROBE_LAYERS` of the layers, the first and the last among them."""
    count = min(PROBE_LAYERS, len(layers))
    places = np.linspace(0, len(layers) - 1, count).round().astype(int)
    return [layers[place] for place in sorted(set(places.tolist()))]


def pipeline(penalty: float) -> Any:
    """Scaling and a logistic regression that is as simple as the penalty asks for."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    return make_pipeline(
        StandardScaler(), LogisticRegression(C=penalty, class_weight="balanced", max_iter=1000)
    )
