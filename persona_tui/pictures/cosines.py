"""The cosines between a model's personas, in an order in which those that are alike stand together."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from persona_tui.core.errors import PersonaTuiError
from persona_tui.vectors.likeness import pairwise
from persona_tui.vectors.manager import PersonaManager


@dataclass(frozen=True)
class CosineGrid:
    """A grid of cosines.

    Attributes:
        names: of rows and columns, in the order of a clustering by average linkage.
        cosines: `[n, n]`; NaN where two personas have no layer in common.
    """

    names: tuple[str, ...]
    cosines: NDArray[np.float64]


def cosine_grid(manager: PersonaManager) -> CosineGrid:
    """Compare all personas that can be used with each other.

    Raises:
        PersonaTuiError: there are fewer than two.
    """
    chosen = list(manager.usable())
    if len(chosen) < 2:
        raise PersonaTuiError(f"A grid needs two personas; there are {len(chosen)}.")
    grid = np.full((len(chosen), len(chosen)), np.nan)
    np.fill_diagonal(grid, 1.0)
    for (one, other), value in pairwise(manager, chosen).items():
        at, to = chosen.index(one), chosen.index(other)
        grid[at, to] = grid[to, at] = value
    order = _clustered(grid)
    return CosineGrid(tuple(chosen[at] for at in order), grid[np.ix_(order, order)])


def _clustered(grid: NDArray[np.float64]) -> list[int]:
    """Return the leaves of a hierarchical clustering, ordered so that neighbours are alike."""
    from scipy.cluster.hierarchy import leaves_list, linkage
    from scipy.spatial.distance import squareform

    distances = 1 - np.nan_to_num(grid, nan=0.0)
    np.fill_diagonal(distances, 0.0)
    tree = linkage(squareform(distances, checks=False), "average", optimal_ordering=True)
    return [int(at) for at in leaves_list(tree)]
