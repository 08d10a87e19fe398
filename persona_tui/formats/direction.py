"""What goes through this package's doors: a direction by layer, with what its file says of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NoReturn

import torch
from torch import Tensor

from persona_tui.core.errors import VectorFileError
from persona_tui.vectors.files import SHORTEST

_LARGEST = 1e6  # no working model's stream comes near


@dataclass(frozen=True, eq=False)
class Direction:
    """A direction that another program has made.

    Attributes:
        name: what its file calls it.
        vectors: by layer, counted from 0 at the output of the first block, `[hidden]` float32.
        form: which program's format it came in.
        description: what its file says it is.
        strength: the strength at which the file's own scale of 1 is right; None if the file does not say.
        notes: what of the file was converted or left out, one sentence each.
    """

    name: str
    vectors: Mapping[int, Tensor]
    form: str
    description: str | None = None
    strength: float | None = None
    notes: tuple[str, ...] = field(default=())

    def __post_init__(self) -> None:
        if not self.vectors:
            refuse(self.name, "it has no vector for any layer of this model")
        object.__setattr__(self, "vectors", {k: self.vectors[k].float() for k in sorted(self.vectors)})
        widths = {vector.shape for vector in self.vectors.values()}
        if len(widths) > 1 or len(next(iter(widths))) != 1:
            refuse(self.name, "its layers' vectors are not all of one size")
        for layer, vector in self.vectors.items():
            if not vector.isfinite().all():
                refuse(self.name, f"its vector at layer {layer} holds NaN or infinity")
            if not SHORTEST <= float(vector.norm()) < _LARGEST:
                refuse(self.name, f"its vector at layer {layer} has the length {float(vector.norm()):.3g}")

    @property
    def hidden_size(self) -> int:
        """The width of the residual stream that it belongs to."""
        return int(next(iter(self.vectors.values())).shape[0])


def refuse(name: object, reason: str) -> NoReturn:
    """Raise the one line about a file that cannot be read."""
    raise VectorFileError(f"{name} cannot be imported: {reason}.")


def table(vectors: Mapping[int, Tensor], rows: int) -> Tensor:
    """Return the vectors as one tensor `[rows, hidden]`, zero where there is none."""
    stack = torch.zeros(rows, next(iter(vectors.values())).shape[0])
    for layer, vector in vectors.items():
        stack[layer] = vector.float()
    return stack
