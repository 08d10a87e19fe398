"""An axis as floors that a model can enforce. What steers imports this, and nothing else of extraction."""

from __future__ import annotations

from collections.abc import Sequence

from persona_tui.model import Cap
from persona_tui.vectors.axes import Axes


def capping(axes: Axes, name: str, layers: Sequence[int], percentile: float) -> dict[int, Cap]:
    """The floors of one axis, at those of `layers` that it was extracted for."""
    return {
        layer: Cap(axes.axis(name, layer), axes.floor(name, layer, percentile))
        for layer in layers
        if layer in axes.layers
    }
