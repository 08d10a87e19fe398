"""Long work on the one model: progress, cancelling, and giving way to a chat.

A model with hooks is not re-entrant, so one thread owns it. Chat turns and jobs are requests to that thread:

1. Turns go first. Jobs run one after another, in the order they came.
2. A running job calls `JobContext.checkpoint` between batches; waiting turns run there, on the same thread.
3. Cancelling sets a flag that the next checkpoint turns into `JobCancelled`.

Listeners are called on the worker's thread (when a queued job is cancelled, on the canceller's). A front end
with a thread of its own posts itself a message there.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any, Generic, Literal, TypeVar

from persona_tui.core.errors import JobCancelled, PersonaTuiError

T = TypeVar("T")
State = Literal["queued", "running", "done", "failed", "cancelled"]
Change = Literal["state", "progress", "log"]
Listener = Callable[["Job[Any]", Change], None]

LOG_LINES = 2000  # that a job keeps

_RATE_WINDOW = 20  # progress reports that the rate is measured over


@dataclass(frozen=True)
class JobProgress:
    """How far a job is.

    Attributes:
        done: finished units.
        total: all units; 0 = not known.
        note: what it is doing, a few words.
        rate: units per second, recently; None = not known yet.
        eta: seconds left at that rate; None = not known.
        detail: what exactly is in hand, such as the prompt that is being answered.
    """

    done: int = 0
    total: int = 0
    note: str = ""
    rate: float | None = None
    eta: float | None = None
    detail: str = ""

    @property
    def fraction(self) -> float:
        """0 to 1; 0 while the total is not known."""
        return min(1.0, self.done / self.total) if self.total > 0 else 0.0


class _Clock:
    """Measures how fast a count grows."""

    def __init__(self) -> None:
        self._seen: deque[tuple[float, int]] = deque(maxlen=_RATE_WINDOW)
        self._total: int | None = None

    def progress(self, done: int, total: int, note: str) -> JobProgress:
        if self._starts_anew(done, total):
            self._seen.clear()
        self._total = total
        self._seen.append((time.monotonic(), done))
        seconds = self._seen[-1][0] - self._seen[0][0]
        units = self._seen[-1][1] - self._seen[0][1]
        rate = units / seconds if seconds > 0 and units > 0 else None
        eta = (total - done) / rate if rate and total else None
        return JobProgress(done, total, note, rate, eta)

    def _starts_anew(self, done: int, total: int) -> bool:
        # A job's next stage counts from the beginning again, often in other units.
        return total != self._total or bool(self._seen and done < self._seen[-1][1])


STOPPED = "Stopped."  # how a line begins that says what an interrupted job has kept


class JobContext:
    """What long work is given: where it reports, and where it finds out that it should stop."""

    def __init__(
        self,
        on_progress: Callable[[JobProgress], None] | None = None,
        on_log: Callable[[str], None] | None = None,
        stop: threading.Event | None = None,
        give_way: Callable[[], None] | None = None,
    ) -> None:
        self._on_progress = on_progress
        self._on_log = on_log
        self._stop = stop or threading.Event()
        self._give_way = give_way
        self._clock = _Clock()
        self._latest = JobProgress()

    @property
    def cancelled(self) -> bool:
        """Whether somebody asked the work to stop."""
        return self._stop.is_set()

    def progress(self, done: int, total: int, note: str = "") -> None:
        """Report how far the work is. Cheap: call it per batch, or per token if need be."""
        detail = self._latest.detail
        self._report(replace(self._clock.progress(done, total, note), detail=detail))

    def working_on(self, detail: str) -> None:
        """Report what exactly is in hand now: the prompt that is being answered, a file."""
        self._report(replace(self._latest, detail=detail))

    def _report(self, progress: JobProgress) -> None:
        self._latest = progress
        if self._on_progress is not None:
            self._on_progress(progress)

    def log(self, line: str) -> None:
        """Report something that stays to be read."""
        if self._on_log is not None:
            self._on_log(line)

    def raise_if_cancelled(self) -> None:
        """Raise `JobCancelled` if asked to stop. Safe anywhere, also between two tokens of a batch."""
        if self.cancelled:
            raise JobCancelled("cancelled")

    def checkpoint(self) -> None:
        """Call between batches, while no generation is under way: lets waiting chat turns run.

        Raises:
            JobCancelled: somebody asked the work to stop.
        """
        self.raise_if_cancelled()
        if self._give_way is not None:
            self._give_way()
            self.raise_if_cancelled()


class Job(Generic[T]):
    """One piece of long work, as its owner sees it. Fields are written by the worker's thread only.

    Attributes:
        name: what it does, for people.
        state: queued, running, done, failed or cancelled.
        progress: the latest report.
        lines: what it logged recently, in order.
        result: what it returned, once done.
        error: what it raised, once failed.
    """

    def __init__(self, name: str, work: Callable[[JobContext], T]) -> None:
        self.name = name
        self.state: State = "queued"
        self.progress = JobProgress()
        self.lines: deque[str] = deque(maxlen=LOG_LINES)
        self.result: T | None = None
        self.error: Exception | None = None
        self._work: Callable[[JobContext], T] | None = work
        self._stop = threading.Event()
        self._ended = threading.Event()
        self._queue = threading.Lock()
        self._listeners: list[Listener] = []
        self._began: float | None = None
        self._finished: float | None = None

    def add_listener(self, listener: Listener) -> None:
        """Have a function called, on the worker's thread, whenever something changes."""
        self._listeners.append(listener)

    @property
    def ended(self) -> bool:
        """Whether it is done, failed or cancelled."""
        return self._ended.is_set()

    @property
    def seconds(self) -> float:
        """How long it has been under way, or was; 0 while it waits."""
        if self._began is None:
            return 0.0
        return (time.monotonic() if self._finished is None else self._finished) - self._began

    def cancel(self) -> None:
        """Ask it to stop, from any thread. Queued, it ends at once; running, at its next checkpoint."""
        self._stop.set()
        if self._claim("cancelled"):
            self._announce()

    def wait(self, timeout: float | None = None) -> bool:
        """Wait, at most `timeout` seconds, for the end; whether it has come."""
        return self._ended.wait(timeout)

    def run(self, give_way: Callable[[], None] | None = None) -> None:
        """Do the work on this thread. Never raises: what went wrong is in `error`."""
        if not self._claim("running"):
            return
        self._began = time.monotonic()
        self._announce()
        context = JobContext(self._report, self._log, self._stop, give_way)
        # What the work holds, a whole model perhaps, is not needed any more when it has ended.
        work, self._work = self._work, None
        assert work is not None
        try:
            self.result = work(context)
        except JobCancelled:
            self._enter("cancelled")
        except Exception as error:
            self.error = error
            self._log(
                str(error) if isinstance(error, PersonaTuiError) else f"{type(error).__name__}: {error}"
            )
            self._enter("failed")
        else:
            self._enter("done")

    def _report(self, progress: JobProgress) -> None:
        self.progress = progress
        self._tell("progress")

    def _log(self, line: str) -> None:
        self.lines.append(line)
        self._tell("log")

    def _claim(self, state: State) -> bool:
        """Leave the queue, unless somebody else took the job out of it already."""
        with self._queue:
            if self.state != "queued":
                return False
            self.state = state
            return True

    def _enter(self, state: State) -> None:
        self._finished = time.monotonic()
        self.state = state
        self._announce()

    def _announce(self) -> None:
        if self.state != "running":
            self._ended.set()
        self._tell("state")

    def _tell(self, change: Change) -> None:
        for listener in list(self._listeners):
            # Whoever listens may be gone, a closed screen say. That must not end the work, or the worker.
            with suppress(Exception):
                listener(self, change)


@dataclass(frozen=True)
class _Turn:
    work: Callable[[], Any]
    future: Future[Any]
    stop: threading.Event | None

    def run(self) -> None:
        if not self.future.set_running_or_notify_cancel():
            return
        try:
            self.future.set_result(self.work())
        except BaseException as error:
            self.future.set_exception(error)


class ModelWorker:
    """The one thread that owns the model."""

    def __init__(self, name: str = "model") -> None:
        self._turns: deque[_Turn] = deque()
        self._jobs: deque[Job[Any]] = deque()
        self._wake = threading.Condition()
        self._closing = False
        self._turn: _Turn | None = None
        self._job: Job[Any] | None = None
        # A daemon, so that quitting never waits for a batch that takes long.
        self._thread = threading.Thread(target=self._loop, name=name, daemon=True)
        self._thread.start()

    @property
    def job(self) -> Job[Any] | None:
        """The job under way, if any."""
        return self._job

    @property
    def busy(self) -> bool:
        """Whether anything runs or waits."""
        with self._wake:
            return bool(self._turn or self._job or self._turns or self._jobs)

    def submit_job(
        self, name: str, work: Callable[[JobContext], T], listener: Listener | None = None
    ) -> Job[T]:
        """Queue long work. It runs when the jobs before it have ended.

        Raises:
            RuntimeError: the worker is closed.
        """
        job = Job(name, work)
        if listener is not None:
            job.add_listener(listener)
        with self._wake:
            self._refuse_if_closed()
            self._jobs.append(job)
            self._wake.notify()
        return job

    def submit_turn(self, work: Callable[[], T], stop: threading.Event | None = None) -> Future[T]:
        """Queue short work, a chat turn say. It runs before any job, and between a running job's batches.

        Args:
            work: what to do, on the worker's thread.
            stop: an event that ends the work early; `close` sets it.

        Raises:
            RuntimeError: the worker is closed.
        """
        turn = _Turn(work, Future(), stop)
        with self._wake:
            self._refuse_if_closed()
            self._turns.append(turn)
            self._wake.notify()
        return turn.future

    def close(self, timeout: float = 0.4) -> bool:
        """Stop everything: cancel all jobs, stop the turn, wait at most `timeout` seconds.

        Returns:
            Whether the thread has ended. If not, it ends with the process.
        """
        with self._wake:
            self._closing = True
            waiting = [*self._turns]
            for job in (self._job, *self._jobs):
                if job is not None:
                    job.cancel()
            for turn in (self._turn, *waiting):
                if turn is not None and turn.stop is not None:
                    turn.stop.set()
            self._turns.clear()
            self._wake.notify()
        for turn in waiting:
            turn.future.cancel()
        self._thread.join(timeout)
        return not self._thread.is_alive()

    def _refuse_if_closed(self) -> None:
        if self._closing:
            raise RuntimeError("the worker is closed")

    def _loop(self) -> None:
        while (work := self._next()) is not None:
            if isinstance(work, Job):
                self._run_job(work)
            else:
                self._run_turn(work)

    def _next(self) -> _Turn | Job[Any] | None:
        """Wait for work; None = the worker is closed and nothing is left to be told so."""
        with self._wake:
            while not (self._turns or self._jobs or self._closing):
                self._wake.wait()
            if self._turns:
                return self._turns.popleft()
            return self._jobs.popleft() if self._jobs else None

    def _run_job(self, job: Job[Any]) -> None:
        with self._wake:
            self._job = job
            if self._closing:
                job.cancel()
        try:
            job.run(self._give_way)
        finally:
            with self._wake:
                self._job = None

    def _run_turn(self, turn: _Turn) -> None:
        with self._wake:
            self._turn = turn
            if self._closing and turn.stop is not None:
                turn.stop.set()
        try:
            turn.run()
        finally:
            with self._wake:
                self._turn = None

    def _give_way(self) -> None:
        """Run the turns that wait, in the middle of a job."""
        while True:
            with self._wake:
                if self._turn is not None or not self._turns:
                    return
                turn = self._turns.popleft()
            self._run_turn(turn)


def run_inline(
    work: Callable[[JobContext], T],
    on_progress: Callable[[JobProgress], None] | None = None,
    on_log: Callable[[str], None] | None = None,
) -> T:
    """Do long work on this thread, as the command line does. What it raises is raised."""
    return work(JobContext(on_progress, on_log))
