"""Means of roles, in one file."""

from pathlib import Path

import pytest
import torch

from persona_tui.core.errors import VectorFileError
from persona_tui.vectors.roles import RoleMeans

NAMES = ("sage", "fool", "smith", "queen")


def roles() -> RoleMeans:
    means = torch.randn(4, 3, 16, generator=torch.Generator().manual_seed(3))
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


@pytest.mark.parametrize("change", ["names", "means", "baseline"])
def test_what_does_not_fit_together_is_refused(tmp_path: Path, change: str) -> None:
    made = roles()
    wrong = {"names": ("sage",) * 4, "means": made.means[:3], "baseline": made.baseline[:2]}
    with pytest.raises(ValueError):
        RoleMeans(**{**vars(made), change: wrong[change]})
