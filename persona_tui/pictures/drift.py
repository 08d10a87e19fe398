"""How a conversation moves along an axis or a trait, turn by turn, against what is ordinary for the model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from persona_tui.core.errors import PersonaTuiError
from persona_tui.core.jobs import JobContext
from persona_tui.traits.vector import weakness_of
from persona_tui.vectors.maths import TraceScale, mean_of

if TYPE_CHECKING:
    from persona_tui.model import Message
    from persona_tui.steering.engine import SteeringEngine


@dataclass(frozen=True)
class Drift:
    """A conversation along a direction.

    Attributes:
        name: of the direction.
        readings: of each reply, the mean over its tokens, on the direction's own scale: see
            `PersonaVector.scale`. Of an axis, that is in standard deviations of ordinary replies.
        ordinary: between which readings 95% of ordinary replies lie; None if only the scale is known.
        floor: where the floor lies on this scale; None if this direction is not capped.
        weak: why the direction may not mean what its name says; None if nothing speaks against it.
    """

    name: str
    readings: tuple[float, ...]
    ordinary: tuple[float, float] | None
    floor: float | None
    weak: str | None = None

    @property
    def left_at(self) -> int | None:
        """The first turn, from 1, that lies outside the ordinary range; None if all lie within it."""
        return next((turn for turn, each in enumerate(self.readings, 1) if self.is_outside(each)), None)

    def is_outside(self, reading: float) -> bool:
        """Return whether a reading lies outside the ordinary range, as far as that is known."""
        return self.ordinary is not None and not self.ordinary[0] <= reading <= self.ordinary[1]


def drift(
    engine: SteeringEngine,
    turns: Sequence[tuple[list[Message], str]],
    name: str,
    context: JobContext | None = None,
) -> Drift:
    """Read every reply of a conversation along a direction, as the unsteered model reads it.

    Args:
        engine: with the model's axes, personas and traits.
        turns: replies, each with the conversation before it, in order.
        name: "assistant", "safety", a persona, or a trait as `trait:NAME`.
        context: told how far it is, and asked between replies whether to stop.

    Raises:
        JobCancelled: it was asked to stop.
        PersonaTuiError: there is no such direction, or the conversation has no replies.
        GenerationError: a reply does not fit the context.
    """
    if not turns:
        raise PersonaTuiError("The conversation has no replies yet.")
    scale, context = scale_of(engine, name), context or JobContext()
    readings = []
    for place, (messages, reply) in enumerate(turns):
        context.checkpoint()
        context.progress(place, len(turns), "reading replies")
        events = engine.model.reread_reply(messages, reply, {name: scale.vectors})
        readings.append(mean_of([event.projections[name] for event in events]) - scale.ordinary)
    weak = weakness_of(engine.personas, name)
    return Drift(name, tuple(readings), ordinary_range(engine, name), engine.floor_reading(name), weak)


def scale_of(engine: SteeringEngine, name: str) -> TraceScale:
    """Return the scale of an axis, a persona or a trait.

    Raises:
        PersonaNotFoundError: there is no such direction.
        VectorFileError: its file cannot be used.
    """
    axes = engine.personas.axes
    if axes is not None and name in axes.names and name in axes.projections:
        return axes.scale(name, engine.capping_layers)
    return engine.personas.get(name).scale


def ordinary_range(engine: SteeringEngine, name: str) -> tuple[float, float] | None:
    """Return between which readings 95% of ordinary replies lie; None for what is no axis: see `Axes`."""
    axes = engine.personas.axes
    return None if axes is None else axes.ordinary_range(name, engine.capping_layers)
