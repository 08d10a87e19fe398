"""Progress on stderr: a bar on a terminal, a line now and then elsewhere, neither within the first second."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, TypeVar

import click

from persona_tui.cli.interrupt import quick_interrupt
from persona_tui.core.documents import printable
from persona_tui.core.errors import JobCancelled
from persona_tui.core.jobs import STOPPED, JobContext, JobProgress, run_inline
from persona_tui.core.processes import is_main

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

T = TypeVar("T")

PATIENCE = 1.0  # seconds before anything is shown
COUNTABLE = 1000  # a total from which on a share says more than a count
LINE_EVERY = 15.0  # seconds between two lines where there is no terminal

NOTHING_KEPT = f"{STOPPED} Nothing was kept."
GOES_ON = f"{STOPPED} Run the same command to go on."


def note(text: str) -> None:
    """Say something that is not a result."""
    click.echo(printable(text), err=True)


def prepare_model(name: str, *, fell_back: bool = False) -> None:
    """Say that a model is being loaded, to somebody who sits there waiting; unpack its GGUF file first.

    Args:
        name: of the model.
        fell_back: whether it is only used because the starter model is not here; say so.
    """
    from persona_tui.model.sources import BUILTIN, TINY, resolve

    if fell_back:
        note(
            f"This is the {name} model, which knows little: "
            "`persona-tui model fetch` downloads the starter model."
        )
    elif sys.stderr.isatty() and name not in (TINY, BUILTIN):
        note(f"Loading {name} ...")
    source = resolve(name)
    if source.gguf is not None and source.folder is None:
        from persona_tui.model.gguf import unpack

        work(lambda context: unpack(source, context.progress))


def work(do: Callable[[JobContext], T], kept: str = NOTHING_KEPT) -> T:
    """Do long work here, showing how far it is. An interrupt ends it soon, with nothing half-written.

    Args:
        do: the work.
        kept: what is said after an interrupt, unless the work itself has said what it keeps.

    Raises:
        Abort: an interrupt came.
    """
    said: list[str] = []
    try:
        with _display() as display, quick_interrupt(kept):

            def log(line: str) -> None:
                said.append(line)
                display.log(line)

            return run_inline(do, display.show, log)
    except KeyboardInterrupt as interrupt:
        if is_main() and not any(line.startswith(STOPPED) for line in said):
            note(kept)
        raise click.Abort from interrupt  # click would make it one itself, and print an empty line


def patient_work(do: Callable[[JobContext], T]) -> T:
    """Do long work here, for somebody who may go on with something else when it is cancelled.

    Raises:
        JobCancelled: an interrupt came.
    """
    try:
        with _display() as display:
            return run_inline(do, display.show, display.log)
    except KeyboardInterrupt:
        raise JobCancelled("cancelled") from None


@contextmanager
def _display() -> Iterator[_Bar | _Lines]:
    display = _Silence() if not is_main() else _Bar() if sys.stderr.isatty() else _Lines()
    try:
        yield display
    finally:
        display.close()


class _Lines:
    """For logs: one line per stage, and one every quarter of a minute."""

    def __init__(self) -> None:
        self._started = time.monotonic()
        self._last = self._started
        self._note = ""

    def show(self, progress: JobProgress) -> None:
        now = time.monotonic()
        if now - self._started < PATIENCE or not (progress.note or progress.total):
            return
        if progress.note != self._note or now - self._last >= LINE_EVERY:
            self._note, self._last = progress.note, now
            doing, far = progress.note or "working", _how_far(progress)
            note(f"{doing}: {far}" if far else f"{doing} ...")

    def log(self, line: str) -> None:
        note(line)

    def close(self) -> None:
        pass


def _how_far(progress: JobProgress) -> str:
    """Small counts as they are, large ones as a share; and the time that is left."""
    if not progress.total:
        return str(progress.done or "")
    if progress.total < COUNTABLE:
        return f"{progress.done}/{progress.total}"
    left = "" if progress.eta is None else f", {clock(progress.eta)} left"
    return f"{progress.fraction:.0%}{left}"


def clock(seconds: float) -> str:
    """Return a duration as hours, minutes and seconds: `4:05`."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


class _Silence(_Lines):
    """For all processes of a launch but one."""

    def show(self, progress: JobProgress) -> None:
        pass

    def log(self, line: str) -> None:
        pass


class _Bar:
    """For people."""

    def __init__(self) -> None:
        self._started = time.monotonic()
        self._progress: Progress | None = None
        self._task: TaskID | None = None

    def show(self, progress: JobProgress) -> None:
        if self._progress is None:
            if time.monotonic() - self._started < PATIENCE:
                return
            self._progress, self._task = _rich_progress()
        assert self._task is not None
        self._progress.update(
            self._task,
            completed=progress.done,
            total=progress.total or None,
            description=progress.note,
            far=_how_far(progress),
        )

    def log(self, line: str) -> None:
        if self._progress is None:
            note(line)
        else:
            self._progress.console.print(line, markup=False, highlight=False)

    def close(self) -> None:
        if self._progress is not None:
            self._progress.stop()


def _rich_progress() -> tuple[Progress, TaskID]:
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
    )

    progress = Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TextColumn("{task.fields[far]}"),
        TimeElapsedColumn(),
        console=Console(stderr=True),
        transient=True,
    )
    progress.start()
    return progress, progress.add_task("", far="")
