"""Means of roles: one file, and the map that is made of it."""

from pathlib import Path

import pytest
import torch

from persona_tui.core.errors import VectorFileError
from persona_tui.vectors.roles import RoleMeans

NAMES = ("sage", "fool", "smith", "queen")


def roles() -> RoleMeans:
    """Roles that differ along one direction at the middle layer, and a little along another."""
    generator = torch.Generator().manual_seed(3)
    long, short = torch.linalg.qr(torch.randn(16, 2, generator=generator)).Q.T
    means = torch.randn(4, 3, 16, generator=generator)
    for place, (far, near) in enumerate(((-3.0, 0.1), (-1.0, -0.1), (1.0, -0.1), (3.0, 0.1))):
        means[place, 1] = 5 + far * long + near * short
    return RoleMeans(NAMES, (2, 3, 5), means, means.mean(0), {name: name for name in NAMES}, {"seed": 1})


def test_a_file_holds_all_of_it(tmp_path: Path) -> None:
    made, path = roles(), tmp_path / "roles.safetensors"
    made.save(path)
    read = RoleMeans.load(path)
    assert (read.names, read.layers, read.prompts) == (made.names, made.layers, made.prompts)
    assert torch.equal(read.means, made.means) and torch.equal(read.baseline, made.baseline)
    assert read.metadata["seed"] == 1
    torch.testing.assert_close(read.difference("fool"), made.means[1] - made.baseline)
    with pytest.raises(VectorFileError, match='Did you mean "fool"'):
        read.difference("foul")


def test_the_map_shows_what_tells_roles_apart() -> None:
    found = roles().map()
    first = torch.tensor([float(found.places[name][0]) for name in NAMES])
    torch.testing.assert_close(first.abs(), torch.tensor([3.0, 1.0, 1.0, 3.0]), atol=0.01, rtol=0)
    assert abs(float(first.sum())) < 0.01 and first[0].sign() == first[1].sign() != first[2].sign()
    assert found.shares[0] > 0.99 and sum(found.shares) <= 1 + 1e-6
    assert float(found.assistant.norm()) < 0.01, "the Assistant stands in the middle of these"
    assert len(roles().map(layer=5, dimensions=3).shares) == 3
    with pytest.raises(VectorFileError, match="layers 2, 3, 5"):
        roles().map(layer=4)
    with pytest.raises(VectorFileError, match="4 roles cannot be shown in 5"):
        roles().map(dimensions=5)


@pytest.mark.parametrize("change", ["names", "means", "baseline"])
def test_what_does_not_fit_together_is_refused(tmp_path: Path, change: str) -> None:
    made = roles()
    wrong = {"names": ("sage",) * 4, "means": made.means[:3], "baseline": made.baseline[:2]}
    with pytest.raises(ValueError):
        RoleMeans(**{**vars(made), change: wrong[change]})
