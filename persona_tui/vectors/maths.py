"""The vector arithmetic: small functions over the last dimension, float32 in and out.

Sums are done in float64. What is left after removing a component can be a small part of the vector, and in
float32 the rounding of what was removed would then be visible in it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

import torch
from torch import Tensor


@dataclass(frozen=True)
class TraceScale:
    """On what scale a token is compared with a direction: 0 and 1 that mean something, whatever the layer.

    Attributes:
        vectors: by layer, `[hidden]`; a reading is the mean of the dot products with them.
        ordinary: the mean reading of what is ordinary, which counts as 0.
    """

    vectors: Mapping[int, Tensor]
    ordinary: float


def mean_of(values: Sequence[float]) -> float:
    """Return the mean; 0 of nothing."""
    return fmean(values) if values else 0.0


def normalize(v: Tensor) -> Tensor:
    """Return `v` `[..., hidden]` scaled to length 1. A zero vector has no direction and stays zero."""
    return _unit(v.double()).float()


def project_onto(v: Tensor, axis: Tensor) -> Tensor:
    """Return the part of `v` `[..., hidden]` that lies along `axis`, whose length does not matter."""
    return _along(v.double(), axis).float()


def remove_component(v: Tensor, axis: Tensor) -> Tensor:
    """Return `v` `[..., hidden]` without its part along `axis`, whose length does not matter."""
    wide = v.double()
    return (wide - _along(wide, axis)).float()


def orthogonalize_persona(raw: Tensor, axis: Tensor) -> Tensor:
    """Return the `safe` vector: `raw` `[..., hidden]` without its component along the safety axis.

    It keeps its natural size and is not scaled to length 1. The size says how far a persona really moves the
    residual stream at that layer, and differs tenfold between layers and models; strength is calibrated in
    multiples of it.
    """
    return remove_component(raw, axis)


def cosine(a: Tensor, b: Tensor) -> Tensor:
    """Return the cosine between `a` and `b` over the last dimension; 0 where either is zero."""
    return (_unit(a.double()) * _unit(b.double())).sum(dim=-1).float()


def compute_safe_floor(activations: Sequence[Tensor], axis: Tensor, percentile: float = 25) -> float:
    """Return the percentile (0 to 100) of the activations' projections onto a unit axis.

    Args:
        activations: ordinary responses, each `[hidden]`.
        axis: unit direction `[hidden]`.
        percentile: 25 leaves a quarter of ordinary responses below the floor.

    Raises:
        ValueError: there are no activations.
    """
    if not activations:
        raise ValueError("a floor needs at least one activation")
    projections = torch.stack(list(activations)).float() @ axis.float()
    return torch.quantile(projections, percentile / 100).item()


def blend_vectors(vectors: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    """Return the direction of the weighted sum of `vectors` `[..., hidden]`, scaled to length 1."""
    return _unit(_weighted_sum(vectors, weights)).float()


def blend(vectors: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    """Return a blend of `vectors` `[..., hidden]` that is as long as what it is made of.

    The direction is that of the weighted sum. The length is the mean of the lengths, weighted by the size of
    the weights: a plain sum of two unrelated vectors at one half each would be a third quieter than either.
    Only the proportions of the weights matter; a negative weight turns a vector round.

    Raises:
        ValueError: no vectors, or not one finite weight for each.
    """
    direction = _unit(_weighted_sum(vectors, weights))
    shares = torch.tensor(weights, dtype=torch.float64).abs()
    lengths = torch.stack([torch.linalg.vector_norm(v.double(), dim=-1) for v in vectors], dim=-1)
    total = shares.sum()
    length = (lengths * shares).sum(dim=-1) / total if total > 0 else lengths.sum(dim=-1) * 0
    return (direction * length.unsqueeze(-1)).float()


def _weighted_sum(vectors: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    if not vectors or len(vectors) != len(weights):
        raise ValueError(f"{len(vectors)} vectors and {len(weights)} weights cannot be blended")
    amounts = torch.tensor(weights, dtype=torch.float64)
    if not amounts.isfinite().all():
        raise ValueError("weights must be finite numbers")
    total: Tensor = torch.tensordot(amounts, torch.stack([v.double() for v in vectors]), dims=1)
    return total


def _unit(wide: Tensor) -> Tensor:
    length = torch.linalg.vector_norm(wide, dim=-1, keepdim=True)
    return wide / torch.where(length > 0, length, 1.0)


def _along(wide: Tensor, axis: Tensor) -> Tensor:
    unit = _unit(axis.double())
    return (wide * unit).sum(dim=-1, keepdim=True) * unit
