"""Layers by tokens: where in the depth a direction is in a reply, as spoken and as read unsteered."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from persona_tui.core.errors import PersonaTuiError
from persona_tui.core.mix import Mix
from persona_tui.traits.vector import weakness_of
from persona_tui.vectors.files import RECIPE
from persona_tui.vectors.maths import normalize

if TYPE_CHECKING:
    from torch import Tensor

    from persona_tui.model import Message
    from persona_tui.steering.engine import SteeringEngine


@dataclass(frozen=True)
class HeatMap:
    """A direction over layers and tokens.

    Attributes:
        name: of the direction.
        layers: of the rows, ascending.
        tokens: what each column's token says.
        spoken: `[layers, tokens]`: projections onto the unit direction, less those of ordinary replies, as
            shares of the length of ordinary replies' mean activation at that layer.
        plain: the same, as the unsteered model reads the same tokens.
        weak: why the direction may not mean what its name says; None if nothing speaks against it.
    """

    name: str
    layers: tuple[int, ...]
    tokens: tuple[str, ...]
    spoken: NDArray[np.float64]
    plain: NDArray[np.float64]
    weak: str | None = None

    @property
    def limit(self) -> float:
        """What colours reach up to: all but the largest 2% of the shares, which a few tokens have."""
        both = np.abs(np.stack([self.spoken, self.plain]))
        return float(np.quantile(both, 0.98)) or 1.0


def heat_map(
    engine: SteeringEngine,
    messages: list[Message],
    reply: str | Sequence[int],
    name: str,
    mixes: Mapping[int, Mix] | None = None,
) -> HeatMap:
    """Read a reply along a direction at every layer where both it and ordinary replies are known.

    Args:
        engine: with the model's axes.
        messages: what the reply answers, a system prompt included.
        reply: its text, or its token ids.
        name: "assistant", "safety", a persona, or a trait as `trait:NAME`.
        mixes: by token: what it was spoken with from that one on; None = unsteered.

    Raises:
        PersonaTuiError: there is no such direction, or the model has no axes.
        GenerationError: the reply is too long, or memory ran out.
    """
    axes = engine.personas.axes
    if axes is None:
        raise PersonaTuiError("A heat map needs ordinary replies to compare with: run `persona-tui init`.")
    units = {layer: unit for layer, unit in _units(engine, name).items() if layer in axes.layers}
    if not units:
        raise PersonaTuiError(f'"{name}" has no vector at a layer of the axes.')
    probes = {str(layer): {layer: unit} for layer, unit in units.items()}
    changes = {index: engine.interventions(mix) for index, mix in (mixes or {}).items()}
    spoken = engine.model.reread_reply(messages, reply, probes, changes)
    plain = spoken if not changes else engine.model.reread_reply(messages, reply, probes)
    baseline = {layer: axes.baseline[RECIPE][axes.layers.index(layer)] for layer in units}
    tables = [
        np.array(
            [
                [
                    (event.projections[str(layer)] - float(baseline[layer] @ units[layer]))
                    / float(baseline[layer].norm())
                    for event in events
                ]
                for layer in units
            ]
        )
        for events in (spoken, plain)
    ]
    texts, weak = tuple(event.text for event in spoken), weakness_of(engine.personas, name)
    return HeatMap(name, tuple(units), texts, tables[0], tables[1], weak)


def _units(engine: SteeringEngine, name: str) -> dict[int, Tensor]:
    """Return a direction's unit vectors by layer."""
    axes = engine.personas.axes
    if axes is not None and name in axes.names:
        return {layer: axes.axis(name, layer) for layer in axes.layers}
    vector = engine.personas.get(name)
    if RECIPE not in vector.raw:
        raise PersonaTuiError(f'"{name}" has no vectors that were taken from replies.')
    return {layer: normalize(row) for layer, row in zip(vector.layers, vector.raw[RECIPE], strict=True)}
