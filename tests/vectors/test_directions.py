"""A direction that points nowhere, or beyond what a model writes, is refused when it is read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from persona_tui.core.errors import VectorFileError
from persona_tui.core.workspace import packaged_root
from persona_tui.monitors.monitor import SelfMonitor
from persona_tui.traits.vector import TraitVector
from persona_tui.vectors.axes import Axes
from persona_tui.vectors.files import METADATA_KEY
from persona_tui.vectors.persona import PersonaVector

BUILTIN = packaged_root() / "vectors" / "builtin"
READERS = {"personas": PersonaVector, "traits": TraitVector, "monitors": SelfMonitor, ".": Axes}


def changed(folder: str, to: Path, tensors: float | None = None, **metadata: Any) -> Path:
    """A packaged file with every number of its directions, or some metadata, replaced."""
    source = next(path for path in sorted((BUILTIN / folder).glob("*.safetensors")))
    stored = load_file(source)
    with safe_open(source, "pt") as file:
        about = json.loads(file.metadata()[METADATA_KEY])
    if tensors is not None:
        stored = {name: _filled(name, each, tensors) for name, each in stored.items()}
    path = to / source.name
    save_file(stored, path, {METADATA_KEY: json.dumps({**about, **metadata})})
    return path


def _filled(name: str, tensor: Tensor, value: float) -> Tensor:
    return tensor if name.startswith(("mean", "baseline", "projections")) else torch.full_like(tensor, value)


@pytest.mark.parametrize("folder", READERS)
@pytest.mark.parametrize("value", [0.0, 1e-30, 3e38, float("nan"), float("inf")])
def test_no_kind_of_file_takes_it(folder: str, value: float, tmp_path: Path) -> None:
    assert READERS[folder].load(changed(folder, tmp_path)) is not None
    path = changed(folder, tmp_path, value)
    with pytest.raises(VectorFileError, match="cannot be used") as refusal:
        READERS[folder].load(path)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    ("metadata", "field"),
    [
        ({"gain": "nan"}, "gain"),
        ({"gain": "x"}, "gain"),
        ({"gain": 1e300}, "gain"),
        ({"target_layers": ["4"]}, "target_layers"),
    ],
)
def test_a_gain_that_is_no_number_is_named(metadata: dict[str, Any], field: str, tmp_path: Path) -> None:
    path = changed("personas", tmp_path, **metadata)
    with pytest.raises(VectorFileError, match=field):
        PersonaVector.load(path)


def test_a_calibration_with_a_gain_out_of_range_is_named(tmp_path: Path) -> None:
    calibration = {
        "recipe": "response", "layers": [2], "default_strength": 0.3, "expression": 1.0, "fluency_drop": 0.0
    }  # fmt: skip
    for gain in ("nan", 1e12):
        path = changed("personas", tmp_path, calibration={**calibration, "gain": gain})
        with pytest.raises(VectorFileError, match=r"calibration\.gain"):
            PersonaVector.load(path)
