"""The map of persona space: where personas, traits, axes and a conversation lie, in two dimensions."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from persona_tui.core.errors import PersonaTuiError
from persona_tui.core.mix import TRAIT_PREFIX, Mix
from persona_tui.vectors.axes import Axes
from persona_tui.vectors.files import RECIPE
from persona_tui.vectors.manager import PersonaManager
from persona_tui.vectors.persona import PersonaVector
from persona_tui.vectors.roles import RoleMeans

if TYPE_CHECKING:
    from persona_tui.model import Message
    from persona_tui.steering.engine import SteeringEngine

Kind = Literal["persona", "role", "assistant", "trait", "axis", "mix", "turn"]
FEWEST = 2  # personas that span a plane, with ordinary replies at its origin


@dataclass(frozen=True)
class Place:
    """Something on the map.

    Attributes:
        name: what it is called.
        kind: what it is. The two ends of a trait are "NAME +" and "NAME −"; an axis is drawn at one standard
            deviation of ordinary replies.
        x, y: where it lies along the first and second principal components, in the residual stream's units.
    """

    name: str
    kind: Kind
    x: float
    y: float


@dataclass(frozen=True)
class PersonaMap:
    """The plane of the first two principal components of a model's personas and roles.

    Attributes:
        layer: where they were compared.
        shares: of the personas' variance, along each of the two components.
        places: everything that was placed; ordinary replies ("assistant") are the origin of the vectors.
    """

    layer: int
    shares: tuple[float, float]
    places: tuple[Place, ...]

    def of(self, *kinds: Kind) -> list[Place]:
        """Return the places of some kinds, in their order."""
        return [place for place in self.places if place.kind in kinds]

    def nearest(self, name: str, count: int) -> list[Place]:
        """Return the personas and roles that lie nearest to a persona on the map, the nearest first."""
        own = next((each for each in self.of("persona") if each.name == name), None)
        if own is None:
            return []
        others = [each for each in self.of("persona", "role") if each != own]
        return sorted(others, key=lambda each: math.hypot(each.x - own.x, each.y - own.y))[:count]


def persona_map(
    engine: SteeringEngine,
    mix: Mix | None = None,
    turns: Sequence[tuple[list[Message], str]] = (),
    layer: int | None = None,
) -> PersonaMap:
    """Place a model's personas in the plane in which they differ most.

    The components are those of the differences from ordinary replies, at one layer: the personas' `raw`, and
    those of the roles that a mean was kept of (`init --roles`).

    Args:
        engine: with the model's personas.
        mix: what is added at this layer becomes a point, if anything is.
        turns: replies, each with the conversation before it, in order; each becomes a point of the path.
        layer: where to compare; by default the middle of the layers that most personas share, or the nearest
            one at which roles were read.

    Raises:
        PersonaTuiError: there are fewer than two personas and roles that can be compared.
        GenerationError: a reply does not fit the context.
    """
    manager = engine.personas
    known, roles = [*manager.usable().values()], manager.roles
    chosen = _middle(known) if layer is None else layer
    if layer is None and roles is not None:
        chosen = min(roles.layers, key=lambda each: abs(each - chosen))
    usable = {each.name: _row(each, chosen) for each in known if chosen in each.layers and RECIPE in each.raw}
    others = _roles(roles, chosen, usable) if roles is not None else {}
    rows = [*usable.values(), *others.values()]
    if len(rows) < FEWEST:
        raise PersonaTuiError(f"A map needs {FEWEST} personas at layer {chosen}; there are {len(rows)}.")
    plane = _Plane(np.stack(rows))
    places = [plane.place("assistant", "assistant", np.zeros(plane.width))]
    places += [plane.place(name, "persona", row) for name, row in usable.items()]
    places += [plane.place(name, "role", row) for name, row in others.items()]
    places += _traits(manager, plane, chosen)
    if manager.axes is not None:
        places += _axes(manager.axes, plane, chosen)
    if mix is not None:
        added = engine.interventions(mix).steering.get(chosen)
        places += [plane.place("mix", "mix", _numbers(added))] if added is not None else []
    places += _path(engine, plane, chosen, turns)
    return PersonaMap(chosen, plane.shares, tuple(places))


class _Plane:
    """The first two principal components of some vectors and the origin."""

    def __init__(self, vectors: NDArray[np.float64]) -> None:
        from sklearn.decomposition import PCA

        self.width = vectors.shape[1]
        fitted = PCA(n_components=2, svd_solver="full").fit(np.vstack([np.zeros(self.width), vectors]))
        # A component's sign is arbitrary: the first vector lies to the right of the origin, and above it.
        signs = np.where(fitted.components_ @ vectors[0] < 0, -1.0, 1.0)
        self._components = fitted.components_ * signs[:, None]
        first, second = (float(each) for each in fitted.explained_variance_ratio_)
        self.shares = (first, second)

    def place(self, name: str, kind: Kind, vector: NDArray[np.float64]) -> Place:
        x, y = (float(each) for each in self._components @ vector)
        return Place(name, kind, x, y)


def _middle(personas: Sequence[PersonaVector]) -> int:
    """Return the middle of the layers at which most personas are added."""
    counts: dict[int, int] = {}
    for persona in personas:
        for layer in persona.steering_layers:
            counts[layer] = counts.get(layer, 0) + 1
    most = max(counts.values(), default=0)
    shared = sorted(layer for layer, count in counts.items() if count == most)
    return shared[len(shared) // 2] if shared else 0


def _row(persona: PersonaVector, layer: int) -> NDArray[np.float64]:
    return _numbers(persona.raw[RECIPE][persona.layers.index(layer)])


def _roles(roles: RoleMeans, layer: int, personas: Mapping[str, object]) -> dict[str, NDArray[np.float64]]:
    """Return the roles that were read at a layer and are no personas."""
    if layer not in roles.layers:
        return {}
    row = roles.layers.index(layer)
    return {name: _numbers(roles.difference(name)[row]) for name in roles.names if name not in personas}


def _numbers(vector: Tensor) -> NDArray[np.float64]:
    return np.asarray(vector.double().cpu().numpy())


def _traits(manager: PersonaManager, plane: _Plane, layer: int) -> list[Place]:
    """Both ends of every trait, half its length from the origin to either side."""
    found = []
    for full in manager.list_traits():
        trait = manager.get(full)
        if layer in trait.layers and RECIPE in trait.raw:
            half, name = _row(trait, layer) / 2, full.removeprefix(TRAIT_PREFIX)
            found += [plane.place(f"{name} +", "trait", half), plane.place(f"{name} −", "trait", -half)]
    return found


def _axes(axes: Axes, plane: _Plane, layer: int) -> list[Place]:
    if layer not in axes.layers:
        return []
    row = axes.layers.index(layer)
    spreads = {
        name: float(axes.projections[name][row].std(correction=0)) if name in axes.projections else 1.0
        for name in axes.names
    }
    return [
        plane.place(name, "axis", _numbers(axes.axis(name, layer)) * spreads[name]) for name in axes.names
    ]


def _path(
    engine: SteeringEngine, plane: _Plane, layer: int, turns: Sequence[tuple[list[Message], str]]
) -> list[Place]:
    """Return each reply's mean activation, as the plain model reads it, less that of ordinary replies."""
    axes = engine.personas.axes
    if not turns:
        return []
    if axes is None or layer not in axes.layers:
        raise PersonaTuiError("A conversation's path needs the model's axes: run `persona-tui init`.")
    ordinary = axes.baseline[RECIPE][axes.layers.index(layer)]
    passages = [[*messages, {"role": "assistant", "content": reply}] for messages, reply in turns]
    read = engine.model.read(passages, [layer])
    return [
        plane.place(str(number), "turn", _numbers(each.response[0] - ordinary))
        for number, each in enumerate(read, 1)
    ]
