"""What is done to a model while it runs: added vectors, floors, and the guide, for a batch or row by row."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from persona_tui.core.errors import GenerationError


@dataclass(frozen=True)
class Cap:
    """A floor under the projection onto an axis: `h <- h + max(0, floor - h.axis) * axis`.

    Attributes:
        axis: unit vector `[hidden]`.
        floor: the lowest projection allowed, in the units of the residual stream.
    """

    axis: Tensor
    floor: float


@dataclass(frozen=True)
class Interventions:
    """What is done to the residual stream, by layer. Steering comes first, then the floor.

    Attributes:
        steering: the vector added at a layer: `[hidden]` for all rows, or `[rows, hidden]`, one for each.
        capping: the floor at a layer: one `Cap` for all rows, or one per row (None = no floor for that row).
        plausibility: the guide, for all rows or one per row: a token may be chosen only if the model as it
            is, reading the same text, gives it at least so many times the probability of its own best token
            (at temperature 1, before top-p). 0 = off. It acts where text is written.
    """

    steering: Mapping[int, Tensor] = field(default_factory=dict)
    capping: Mapping[int, Cap | Sequence[Cap | None]] = field(default_factory=dict)
    plausibility: float | Sequence[float] = 0.0

    @staticmethod
    def none() -> Interventions:
        """Leave the model as it is."""
        return Interventions()

    @staticmethod
    def by_row(rows: Sequence[Interventions]) -> Interventions:
        """What a batch needs whose rows are each steered and capped differently.

        Args:
            rows: each row's own, with vectors `[hidden]` and single floors. A layer where a row has none
                leaves that row as it is.
        """
        steered = sorted({layer for each in rows for layer in each.steering})
        capped = sorted({layer for each in rows for layer in each.capping})
        return Interventions(
            {layer: _stacked([each.steering.get(layer) for each in rows]) for layer in steered},
            {layer: [_single(each.capping.get(layer)) for each in rows] for layer in capped},
            [_number(each.plausibility) for each in rows] if any(each.plausibility for each in rows) else 0.0,
        )


def _stacked(vectors: Sequence[Tensor | None]) -> Tensor:
    """Vectors `[hidden]` as `[rows, hidden]`, zero where there is none."""
    nothing = torch.zeros_like(next(vector for vector in vectors if vector is not None))
    return torch.stack([nothing if vector is None else vector for vector in vectors])


def _single(cap: Cap | Sequence[Cap | None] | None) -> Cap | None:
    if cap is None or isinstance(cap, Cap):
        return cap
    raise GenerationError("a row's floor cannot itself be one per row")


def _number(plausibility: float | Sequence[float]) -> float:
    if isinstance(plausibility, Sequence):
        raise GenerationError("a row's plausibility cannot itself be one per row")
    return plausibility
