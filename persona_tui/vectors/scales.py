"""On what scale a token is compared with a direction: 0 and 1 that mean something, whatever the layer.

A scale is a set of vectors that activations are projected onto, and the mean projection of what is ordinary.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

from torch import Tensor

from persona_tui.core.errors import VectorFileError
from persona_tui.vectors.axes import Axes
from persona_tui.vectors.maths import normalize
from persona_tui.vectors.persona import PersonaVector

RECIPE = "response"  # replies are compared with replies, whatever a persona is steered with


@dataclass(frozen=True)
class TraceScale:
    """What a token is compared with.

    Attributes:
        vectors: by layer, `[hidden]`; a reading is the mean of the dot products with them.
        ordinary: the reading that counts as 0.
    """

    vectors: Mapping[int, Tensor]
    ordinary: float


@dataclass(frozen=True, eq=False)
class Sides:
    """Where the two sides of a trait lie at the layer it is read at.

    Attributes:
        direction: the unit vector from low to high, `[hidden]`.
        half_gap: half the distance between both sides' means, along the direction.
        centre: the projection of the middle between both sides' means.
    """

    direction: Tensor
    half_gap: float
    centre: float


def sides_of(trait: PersonaVector, layer: int) -> Sides:
    """Return where a trait's sides lie at a layer.

    Raises:
        VectorFileError: it has no vector there.
    """
    if layer not in trait.layers or RECIPE not in trait.raw:
        raise VectorFileError(f'The trait "{trait.name}" has no vector for layer {layer}.')
    row = trait.layers.index(layer)
    raw, mean = trait.raw[RECIPE][row], trait.mean[RECIPE][row]
    direction = normalize(raw)
    centre = float((mean.double() - raw.double() / 2) @ direction.double())
    return Sides(direction, float(raw.norm()) / 2, centre)


def vector_scale(vector: PersonaVector) -> TraceScale:
    """Return the scale of a persona (0 = ordinary replies, 1 = its own) or a trait (-1 = low, 1 = high).

    Raises:
        VectorFileError: a trait's file does not say at which layer it is read.
    """
    return _trait_scale(vector) if vector.kind == "trait" else _persona_scale(vector)


def _persona_scale(persona: PersonaVector) -> TraceScale:
    target = set(persona.metadata.get("target_layers") or persona.layers)
    vectors, ordinary = {}, []
    for row, layer in enumerate(persona.layers):
        raw, mean = persona.raw[RECIPE][row], persona.mean[RECIPE][row]
        size = float(raw.norm())
        if layer in target and size > 0:
            vectors[layer] = normalize(raw) / size
            ordinary.append(float((mean - raw) @ vectors[layer]))
    return TraceScale(vectors, mean_of(ordinary))


def _trait_scale(trait: PersonaVector) -> TraceScale:
    reading = trait.metadata.get("trait")
    layer = reading.get("layer") if isinstance(reading, Mapping) else None
    if not isinstance(layer, int):
        raise VectorFileError(
            f'The trait "{trait.name}" cannot be used: its file does not say which layer it is read at.'
        )
    sides = sides_of(trait, layer)
    if sides.half_gap <= 0:
        return TraceScale({}, 0.0)
    return TraceScale({layer: sides.direction / sides.half_gap}, sides.centre / sides.half_gap)


def axis_scale(axes: Axes, name: str, layers: Sequence[int]) -> TraceScale:
    """Return the scale of an axis: 1 = a standard deviation of ordinary replies.

    0 is halfway between both sides of the axis, so that answers to safe prompts lie above it and refusals
    below; in files that do not record the sides, the average of ordinary replies.
    """
    vectors, ordinary = {}, []
    for layer in layers:
        if layer not in axes.layers:
            continue
        projections = axes.projections[name][axes.layers.index(layer)]
        spread = float(projections.std(correction=0)) or 1.0
        vectors[layer] = axes.axis(name, layer) / spread
        centre = axes.centre(name, layer)
        ordinary.append((float(projections.mean()) if centre is None else centre) / spread)
    return TraceScale(vectors, mean_of(ordinary))


def mean_of(values: Sequence[float]) -> float:
    """Return the mean; 0 of nothing."""
    return fmean(values) if values else 0.0
