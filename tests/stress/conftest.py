"""A prepared workspace and the command line, with what must not be touched lying beside them."""

from __future__ import annotations

import resource
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.cli.conftest import Result, call, cli, prepared, tiny_model, workspace
from tests.conftest import STRESS

__all__ = ["call", "cli", "prepared", "tiny_model", "workspace"]

PATIENCE = 60  # seconds that a single command may take before it counts as hanging

Say = Callable[[str], None]
Check = Callable[[Result, object], None]


@pytest.fixture
def say(capsys: pytest.CaptureFixture[str], request: pytest.FixtureRequest) -> Say:
    """Print a count past pytest's capture, in `make stress`."""
    wanted = request.config.getoption(STRESS)

    def say(line: str) -> None:
        if wanted:
            with capsys.disabled():
                print(f"\n  {line}", end="")

    return say


def problem(result: Result, what: object) -> str | None:
    """A command must succeed, or say in one line what is wrong; what it did instead, if it did."""
    lines = result.err.splitlines()
    crashed = "bug in persona-tui" in result.err or "Traceback" in result.out + result.err
    silent = result.status and not result.out and not (lines and (len(lines) == 1 or "Error: " in lines[-1]))
    if result.status in (0, 1, 2) and not crashed and not silent:
        return None
    return f"{what}: {result.status}\n{result.out[-300:]}\n{result.err[-300:]}"


def check(result: Result, what: object) -> None:
    """Fail unless a command succeeded or said in one line what is wrong."""
    told = problem(result, what)
    assert told is None, told


@pytest.fixture(autouse=True)
def little_memory() -> Iterator[None]:
    """What fills the memory fails here, and does not take the machine with it."""
    pages = int(Path("/proc/self/statm").read_text().split()[0]) if Path("/proc/self/statm").exists() else 0
    before = resource.getrlimit(resource.RLIMIT_AS)
    if pages:
        room = pages * resource.getpagesize() + (3 << 30)
        resource.setrlimit(resource.RLIMIT_AS, (room, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, before)


@contextmanager
def no_hang(what: object) -> Iterator[None]:
    """Fail when something takes far too long."""

    def give_up(number: int, frame: object) -> None:
        raise AssertionError(f"{what} hangs")

    before = signal.signal(signal.SIGALRM, give_up)
    signal.setitimer(signal.ITIMER_REAL, PATIENCE)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def everything(folder: Path) -> dict[str, bytes | None]:
    """All files below a folder and what is in them; links are not followed."""
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() and not path.is_symlink() else None
        for path in folder.rglob("*")
    }


@pytest.fixture
def outside(tmp_path: Path) -> Iterator[Path]:
    """A folder beside the workspace, which must be the same afterwards."""
    folder = tmp_path / "outside"
    folder.mkdir()
    (folder / "diary.txt").write_text("Dear diary")
    before = everything(folder)
    yield folder
    assert everything(folder) == before
