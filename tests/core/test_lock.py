"""The lock: one writer, named to others, and never left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from persona_tui.core.errors import WorkspaceError
from persona_tui.core.files import only_writer

HOLD = """
import sys
from pathlib import Path
from persona_tui.core.files import only_writer
with only_writer(Path(sys.argv[1]), "a test"):
    print("held", flush=True)
    sys.stdin.read()
"""


@contextmanager
def holder(folder: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process that holds the lock until its input ends."""
    arguments = [sys.executable, "-c", HOLD, str(folder)]
    with subprocess.Popen(arguments, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stdout.readline() == "held\n"
        yield process
        process.kill()


def test_a_second_process_is_told_who_writes(tmp_path: Path) -> None:
    folder = tmp_path / "vectors" / "partial"
    with holder(folder) as process:
        with pytest.raises(WorkspaceError, match=rf"process {process.pid} is writing .* \(a test\)"):
            only_writer(folder, "another").__enter__()
        process.communicate("")
    with only_writer(folder, "another"):
        pass


def test_a_killed_holder_blocks_nobody(tmp_path: Path) -> None:
    with holder(tmp_path) as process:
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert (tmp_path / ".lock").exists()
    with only_writer(tmp_path, "another"):
        assert str(os.getpid()) in (tmp_path / ".lock").read_text()


def test_nothing_is_left_behind(tmp_path: Path) -> None:
    for _ in range(3):
        with only_writer(tmp_path, "a test"):
            assert [path.name for path in tmp_path.iterdir()] == [".lock"]
    assert list(tmp_path.iterdir()) == []


def test_within_one_process_too(tmp_path: Path) -> None:
    with only_writer(tmp_path, "first"), pytest.raises(WorkspaceError, match="first"):
        only_writer(tmp_path, "second").__enter__()


def test_a_lock_file_of_nonsense(tmp_path: Path) -> None:
    (tmp_path / ".lock").write_bytes(b"\xff[[[")
    with only_writer(tmp_path, "a test"):
        pass


def test_links_are_not_followed(tmp_path: Path) -> None:
    target = tmp_path / "elsewhere"
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / ".lock").symlink_to(target)
    with pytest.raises(WorkspaceError, match="cannot be written"):
        only_writer(tmp_path / "folder", "a test").__enter__()
    assert not target.exists()


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(WorkspaceError, match="cannot be written"):
        only_writer(tmp_path / "file" / "folder", "a test").__enter__()
