"""How alike directions are: cosines between personas, and between a persona and the axes.

Only the recipe `response` is compared, at the layers where either persona is added; the mean over them.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations

from torch import Tensor

from persona_tui.vectors.axes import Axes
from persona_tui.vectors.files import RECIPE
from persona_tui.vectors.manager import PersonaManager
from persona_tui.vectors.maths import cosine
from persona_tui.vectors.persona import PersonaVector


def persona_cosine(one: PersonaVector, other: PersonaVector) -> float | None:
    """Return the cosine between two personas' safe vectors, -1 to 1; None if they cannot be compared."""
    wanted = {*one.steering_layers, *other.steering_layers}
    layers = [layer for layer in one.layers if layer in other.layers and layer in wanted]
    if not layers or RECIPE not in one.safe or RECIPE not in other.safe:
        return None
    if one.safe[RECIPE].shape[-1] != other.safe[RECIPE].shape[-1]:  # of models of different sizes
        return None
    return float(cosine(_rows(one, layers), _rows(other, layers)).mean())


def axis_cosines(persona: PersonaVector, axes: Axes) -> dict[str, float]:
    """Return the cosine between a persona's raw vector and each axis, by name.

    The raw one, since the safe vector's cosine with the safety axis is 0 by construction.
    """
    layers = [layer for layer in persona.steering_layers if layer in axes.layers]
    if not layers or RECIPE not in persona.raw:
        return {}
    own = persona.raw[RECIPE]
    return {
        name: sum(float(cosine(own[persona.layers.index(layer)], axes.axis(name, layer))) for layer in layers)
        / len(layers)
        for name in axes.names
    }


def cosines_to_others(manager: PersonaManager, name: str) -> dict[str, float]:
    """Return the cosine between a persona and every other usable one on the disk, the nearest first.

    Raises:
        PersonaNotFoundError: there is no such persona.
        VectorFileError: its file is damaged or belongs to another model.
    """
    own = manager.get(name)
    others = {other: each for other, each in manager.usable().items() if other != name}
    found = {other: persona_cosine(own, each) for other, each in others.items()}
    known = {other: value for other, value in found.items() if value is not None}
    return dict(sorted(known.items(), key=lambda item: -item[1]))


def pairwise(manager: PersonaManager, names: Sequence[str]) -> dict[tuple[str, str], float]:
    """Return the cosine between each two personas, in the order of `names`.

    Raises:
        PersonaNotFoundError: there is no such persona.
        VectorFileError: a file is damaged or belongs to another model.
    """
    found = {
        (one, other): persona_cosine(manager.get(one), manager.get(other))
        for one, other in combinations(names, 2)
    }
    return {pair: value for pair, value in found.items() if value is not None}


def _rows(persona: PersonaVector, layers: Sequence[int]) -> Tensor:
    return persona.safe[RECIPE][[persona.layers.index(layer) for layer in layers]]
