"""Whether vectors that were made on one model can be used on another.

A model has a *shape*, which must match, and a *sketch* of its weights: a few hundred numbers, by matrix (see
`persona_tui.model.fingerprint`). Two sketches differ by about as much as the weights do: copies in another
precision, quantised copies and fine-tunes are near, every other model is far. `benchmarks/identity.py`
measures by how much.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

EQUAL = 1e-5  # of the weights' size; sketches are stored with six digits
FAR = 0.6  # 3 bits per row give 0.38, 2 bits 0.96, unrelated models 1.4


@dataclass(frozen=True)
class Shape:
    """What must match for vectors to mean anything.

    Attributes:
        architecture: the kind of model, as transformers calls it.
        hidden_size: the width of the residual stream.
        layers: how many decoder blocks there are.
        vocabulary: how many tokens.
    """

    architecture: str
    hidden_size: int
    layers: int
    vocabulary: int

    def __str__(self) -> str:
        return f"{self.architecture}, {self.layers} layers of {self.hidden_size}, {self.vocabulary:,} tokens"


@dataclass(frozen=True)
class ModelSketch:
    """A model's shape, and the numbers that stand for its weights.

    Attributes:
        shape: see `Shape`.
        numbers: by matrix, projections of some of its rows.
    """

    shape: Shape
    numbers: Mapping[str, Sequence[float]]

    def record(self) -> dict[str, Any]:
        """Return what a vector file says; `from_metadata` reads it."""
        return {
            "model_shape": {
                "architecture": self.shape.architecture,
                "hidden_size": self.shape.hidden_size,
                "layers": self.shape.layers,
                "vocabulary": self.shape.vocabulary,
            },
            "model_sketch": {name: list(each) for name, each in self.numbers.items()},
        }

    @classmethod
    def from_metadata(cls, metadata: Mapping[str, Any]) -> ModelSketch | None:
        """Read what a vector file says; None if it says nothing, as older ones do, or something odd."""
        try:
            about = metadata["model_shape"]
            counts = [int(about[key]) for key in ("hidden_size", "layers", "vocabulary")]
            shape = Shape(str(about["architecture"]), *counts)
            numbers = {
                str(name): [float(number) for number in each]
                for name, each in metadata["model_sketch"].items()
            }
        except (KeyError, TypeError, ValueError, OverflowError, AttributeError):
            return None
        return cls(shape, numbers)

    def difference(self, other: ModelSketch) -> float | None:
        """Return how much the weights differ, as a share of their size; None if that cannot be told.

        0 = not at all, about 1.4 = they have nothing to do with each other. It is the root mean square over
        the matrices that both sketches have, and both must have most of them.
        """
        common = [
            name
            for name, each in self.numbers.items()
            if name in other.numbers and len(each) == len(other.numbers[name])
        ]
        if not common or 2 * len(common) < min(len(self.numbers), len(other.numbers)):
            return None
        squares = [_difference(self.numbers[name], other.numbers[name]) ** 2 for name in common]
        found = math.sqrt(sum(squares) / len(squares))
        return found if math.isfinite(found) else None


def _difference(one: Sequence[float], other: Sequence[float]) -> float:
    apart = math.dist(one, other)
    size = math.sqrt((math.hypot(*one) ** 2 + math.hypot(*other) ** 2) / 2)
    return apart / size if size else 0.0
