"""Replies' activations added up, the same to the last digit in whatever order.

They are added in whole numbers of a small unit, as the last digit of a sum of floats depends on its order:
batches may be cut otherwise, several processes may share them, and vLLM's workers may add up by themselves.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from persona_tui.core.errors import GenerationError

if TYPE_CHECKING:
    from persona_tui.model.results import Activations, Generation

UNIT = 2.0**-24  # 6e-8, finer than activations are known
_LARGEST = 2.0**23  # no working model comes near; 2^16 responses of it can be added up


@dataclass
class Pool:
    """The sum of some replies' activations. A reply without a token is in none.

    Attributes:
        layers: where they were read, ascending.
        totals: of `response` and of `prompt_last`, `[2, layers, hidden]` int64, in units; None = none was
            added.
        count: how many replies are in it.
        tokens: how many tokens they had.
    """

    layers: tuple[int, ...]
    totals: Tensor | None = None
    count: int = 0
    tokens: int = 0

    def add(self, activations: Activations) -> None:
        """Count in one reply.

        Raises:
            GenerationError: an activation is not a number, or too large to be one of a working model.
        """
        if activations.n_tokens:
            whole = whole_units(torch.stack([activations.response, activations.prompt_last]), self.layers)
            self.join(Pool(self.layers, whole, 1, activations.n_tokens))

    def join(self, other: Pool) -> None:
        """Count in what is in another."""
        if other.totals is not None and other.count:
            self.totals = other.totals if self.totals is None else self.totals + other.totals
            self.count += other.count
            self.tokens += other.tokens


@dataclass(frozen=True)
class Pooled:
    """Replies, and what their activations come to.

    Attributes:
        replies: in the requests' order; with activations of their own only where that was asked for.
        pools: by kind of reply.
    """

    replies: list[Generation]
    pools: Mapping[bool, Pool] = field(default_factory=dict)


def whole_units(value: Tensor, layers: Sequence[int]) -> Tensor:
    """Activations `[..., layers, hidden]` in whole units, int64.

    Raises:
        GenerationError: some are not numbers, or too large to be those of a working model; names a layer.
    """
    fits = usable(value)
    if not fits.all():
        wrong = (~fits).any(dim=-1).view(-1, len(layers)).any(dim=0)
        raise unusable(layers[int(wrong.nonzero()[0])])
    return in_units(value)


def usable(value: Tensor) -> Tensor:
    """Which activations are numbers of a working model."""
    return value.abs() <= _LARGEST  # false for what is no number


def unusable(layer: int) -> GenerationError:
    """What is said of a layer with others."""
    return GenerationError(
        f"layer {layer} has activations that are not usable numbers: try another --dtype, bfloat16 or float32"
    )


def in_units(value: Tensor) -> Tensor:
    """Usable activations in whole units, int64."""
    return (value.double() / UNIT).round().long()
