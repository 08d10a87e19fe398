"""How a conversation moves along an axis or a trait, turn by turn, against what is ordinary for the model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from persona_tui.core.errors import PersonaTuiError
from persona_tui.vectors.scales import TraceScale, axis_scale, mean_of, vector_scale

if TYPE_CHECKING:
    from persona_tui.model import Message
    from persona_tui.steering.engine import SteeringEngine

# The share of ordinary replies that lies outside the range, half of it at either end.
OUTSIDE = 0.05


@dataclass(frozen=True)
class Drift:
    """A conversation along a direction.

    Attributes:
        name: of the direction.
        readings: of each reply, the mean over its tokens, on the direction's own scale: for an axis,
            standard deviations of ordinary replies, 0 being their mean; for others, see `vectors.scales`.
        ordinary: between which readings 95% of ordinary replies lie; None if only the scale is known.
        floor: where the floor lies on this scale; None if this direction is not capped.
    """

    name: str
    readings: tuple[float, ...]
    ordinary: tuple[float, float] | None
    floor: float | None

    @property
    def left_at(self) -> int | None:
        """The first turn, from 1, that lies outside the ordinary range; None if all lie within it."""
        if self.ordinary is None:
            return None
        low, high = self.ordinary
        return next((turn for turn, each in enumerate(self.readings, 1) if not low <= each <= high), None)


def drift(engine: SteeringEngine, turns: Sequence[tuple[list[Message], str]], name: str) -> Drift:
    """Read every reply of a conversation along a direction, as the unsteered model reads it.

    Args:
        engine: with the model's axes, personas and traits.
        turns: replies, each with the conversation before it, in order.
        name: "assistant", "safety", a persona, or a trait as `trait:NAME`.

    Raises:
        PersonaTuiError: there is no such direction, or the conversation has no replies.
        GenerationError: a reply does not fit the context.
    """
    if not turns:
        raise PersonaTuiError("The conversation has no replies yet.")
    scale = scale_of(engine, name)
    readings = []
    for messages, reply in turns:
        events = engine.model.reread_reply(messages, reply, {name: scale.vectors})
        readings.append(mean_of([event.projections[name] for event in events]) - scale.ordinary)
    return Drift(name, tuple(readings), _ordinary(engine, name), engine.floor_reading(name))


def scale_of(engine: SteeringEngine, name: str) -> TraceScale:
    """The scale of an axis, a persona or a trait.

    Raises:
        PersonaNotFoundError: there is no such direction.
        VectorFileError: its file cannot be used.
    """
    axes = engine.personas.axes
    if axes is not None and name in axes.names and name in axes.projections:
        return axis_scale(axes, name, engine.capping_layers)
    return vector_scale(engine.personas.get(name))


def _ordinary(engine: SteeringEngine, name: str) -> tuple[float, float] | None:
    """Between which readings ordinary replies lie, from the projections that the axes' file keeps."""
    axes = engine.personas.axes
    if axes is None or name not in axes.names or name not in axes.projections:
        return None
    import numpy as np

    layers = [layer for layer in engine.capping_layers if layer in axes.layers]
    rows = np.stack([axes.projections[name][axes.layers.index(layer)].double().numpy() for layer in layers])
    spread = rows.std(axis=1, keepdims=True)
    scaled = (rows - rows.mean(axis=1, keepdims=True)) / np.where(spread > 0, spread, 1.0)
    low, high = np.quantile(scaled, (OUTSIDE / 2, 1 - OUTSIDE / 2), axis=1).mean(axis=1)
    return float(low), float(high)
