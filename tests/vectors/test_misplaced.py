"""What lies in the wrong folder is named, with what to do."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from persona_tui.core.errors import VectorFileError
from persona_tui.core.workspace import packaged_root
from persona_tui.vectors.files import VectorStore, check_kind, read_metadata

SHIPPED = packaged_root() / "vectors" / "builtin"


def test_a_file_of_another_kind_is_told_where_it_belongs(tmp_path: Path) -> None:
    path = tmp_path / "sage.safetensors"
    shutil.copy(SHIPPED / "personas" / "sage.safetensors", path)
    with pytest.raises(VectorFileError, match="it holds 'persona', not 'monitor'; it belongs in personas/"):
        check_kind(path, read_metadata(path), "monitor")


def test_files_that_are_only_imported_are_named(tmp_path: Path) -> None:
    for name in ("mine.pt", "other.gguf", "summary.json"):
        (tmp_path / name).write_bytes(b"")
    said = VectorStore(tmp_path).strangers()
    assert len(said) == 2 and all("`persona-tui import" in each for each in said)
    assert "mine.pt" in said[0] and "other.gguf" in said[1]
