"""Cosines between personas and axes."""

from __future__ import annotations

import pytest
import torch

from persona_tui.vectors.likeness import axis_cosines, cosines_to_others, pairwise, persona_cosine
from persona_tui.vectors.manager import PersonaManager


def test_pairs_are_compared_where_either_is_added(manager: PersonaManager) -> None:
    sage, explorer = manager.get("sage"), manager.get("explorer")  # at layer 4 and at layer 3
    rows = [sage.layers.index(layer) for layer in (3, 4)]
    by_hand = torch.cosine_similarity(sage.safe["response"][rows], explorer.safe["response"][rows]).mean()
    assert persona_cosine(sage, explorer) == pytest.approx(float(by_hand), abs=1e-5)
    assert pairwise(manager, ["sage", "explorer"]) == {("sage", "explorer"): persona_cosine(sage, explorer)}
    assert persona_cosine(sage, sage) == pytest.approx(1, abs=1e-5)


def test_others_come_nearest_first(manager: PersonaManager) -> None:
    found = cosines_to_others(manager, "sage")
    assert set(found) == {"explorer", "trickster"}
    assert list(found.values()) == sorted(found.values(), reverse=True)


def test_axes_are_compared_with_the_raw_vector(manager: PersonaManager) -> None:
    axes, sage = manager.axes, manager.get("sage")
    assert axes is not None
    found = axis_cosines(sage, axes)
    raw = sage.raw["response"][sage.layers.index(4)]
    for name in ("assistant", "safety"):
        expected = torch.cosine_similarity(raw, axes.axis(name, 4), dim=0)
        assert found[name] == pytest.approx(float(expected), abs=1e-5)
