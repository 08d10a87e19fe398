"""The trash folder."""

from __future__ import annotations

from pathlib import Path

import pytest

from persona_tui.core.errors import WorkspaceError
from persona_tui.core.files import discard_file, restore_file


def test_what_is_discarded_is_kept_under_its_own_path_and_comes_back(tmp_path: Path) -> None:
    file = tmp_path / "vectors" / "tiny" / "sage.safetensors"
    file.parent.mkdir(parents=True)
    file.write_text("sage")
    trashed = discard_file(tmp_path, file)
    assert not file.exists() and trashed.kept.read_text() == "sage"
    assert trashed.kept.relative_to(tmp_path / "trash").parts[1:] == ("vectors", "tiny", "sage.safetensors")
    assert restore_file(trashed) == file and file.read_text() == "sage"


def test_a_file_outside_the_workspace_can_be_discarded(tmp_path: Path) -> None:
    root, file = tmp_path / "workspace", tmp_path / "elsewhere.txt"
    file.touch()
    assert discard_file(root, file).kept.is_relative_to(root / "trash")


def test_a_name_that_is_taken_again_is_left_alone(tmp_path: Path) -> None:
    file = tmp_path / "sage"
    file.write_text("old")
    trashed = discard_file(tmp_path, file)
    file.write_text("new")
    with pytest.raises(WorkspaceError, match="exists again"):
        restore_file(trashed)
    assert file.read_text() == "new" and trashed.kept.read_text() == "old"


def test_what_cannot_be_moved_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(WorkspaceError, match="cannot be deleted"):
        discard_file(tmp_path, tmp_path / "nothing")
    assert not list(tmp_path.rglob("nothing"))
