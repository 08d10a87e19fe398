"""What lies in the wrong folder is named, with what to do."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from persona_tui.core.errors import VectorFileError
from persona_tui.core.workspace import packaged_root
from persona_tui.vectors.files import check_kind, read_metadata
from persona_tui.vectors.misplaced import misplaced

SHIPPED = packaged_root() / "vectors" / "builtin"


def test_a_file_of_another_kind_is_told_where_it_belongs(tmp_path: Path) -> None:
    path = tmp_path / "sage.safetensors"
    shutil.copy(SHIPPED / "personas" / "sage.safetensors", path)
    with pytest.raises(VectorFileError, match="it holds 'persona', not 'monitor'; it belongs in personas/"):
        check_kind(path, read_metadata(path), "monitor")


def test_files_that_are_only_imported_are_named_wherever_they_lie(tmp_path: Path) -> None:
    folder = tmp_path / "vectors" / "model"
    (folder / "traits").mkdir(parents=True)
    paths = [tmp_path / "vectors" / "a.pt", folder / "b.gguf", folder / "traits" / "c.pt"]
    for path in (*paths, folder / "summary.json"):
        path.write_bytes(b"")
    said = dict(misplaced(folder))
    assert set(said) == set(paths)
    assert all(f"persona-tui import {path}" in advice for path, advice in said.items())


def test_axes_have_one_name(tmp_path: Path) -> None:
    folder = tmp_path / "vectors" / "model"
    (folder / "personas").mkdir(parents=True)
    astray = folder / "personas" / "mine.safetensors"
    for path in (astray, folder / "axes.safetensors"):
        shutil.copy(SHIPPED / "axes.safetensors", path)
    assert misplaced(folder) == [(astray, f"it holds axes: move it to {folder / 'axes.safetensors'}")]
    with pytest.raises(VectorFileError, match=r"'axes', not 'persona'; it belongs at axes\.safetensors"):
        check_kind(astray, read_metadata(astray), "persona")
