"""The jobs of this run: submits them to the model's thread and keeps the panel up to date."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

from persona_tui.jobs import Change, Job, JobContext
from persona_tui.tui.messages import JobChanged, LogLine
from persona_tui.tui.widgets.jobs_panel import JobRow, clock

if TYPE_CHECKING:
    from persona_tui.tui.app import PersonaApp

T = TypeVar("T")
Ended = Callable[[Job[Any]], None]


class JobBoard:
    """Knows every job of this run, by a key that the panel can hand back."""

    def __init__(self, app: PersonaApp) -> None:
        self._app = app
        self._jobs: dict[str, Job[Any]] = {}
        self._on_end: dict[str, Ended] = {}

    def submit(self, name: str, work: Callable[[JobContext], T], on_end: Callable[[Job[T]], None]) -> Job[T]:
        """Queue long work.

        Args:
            name: what it does, for people.
            work: done on the model's thread.
            on_end: called on the app's thread when it is done, failed or cancelled.
        """
        job = self._app.worker.submit_job(name, work, self._listen)
        key = f"job-{len(self._jobs) + 1}"
        self._jobs[key] = job
        self._on_end[key] = on_end
        self._log(f"{name}: queued")
        if self._app.main.is_wide:
            self._app.main.open_panel("jobs")
        self.show()
        return job

    def _listen(self, job: Job[Any], change: Change) -> None:
        """Pass a change on; called on the model's thread."""
        if change == "log":
            self._app.post_message(LogLine(f"{job.name}: {job.lines[-1]}"))
        else:
            self._app.post_message(JobChanged(job))

    def changed(self, job: Job[Any]) -> None:
        """Show a job's new state, and act on its end once."""
        self.show()
        key = next((key for key, known in self._jobs.items() if known is job), None)
        if job.ended and key in self._on_end:
            self._log(f"{job.name}: {job.state}")
            self._on_end.pop(key)(job)

    def show(self) -> None:
        """Draw the panel and the status line's share."""
        self._app.main.jobs.show_rows([_row(key, job) for key, job in reversed(self._jobs.items())])
        self._app.show_status()

    def cancel(self, key: str | None = None) -> bool:
        """Cancel a job, by default the one that runs; whether there was one to cancel."""
        job = self._jobs.get(key) if key else self.running
        if job is None or job.ended:
            return False
        job.cancel()
        self._log(f"{job.name}: asked to stop")
        return True

    @property
    def running(self) -> Job[Any] | None:
        """The job under way, else the first that waits."""
        open_jobs = [job for job in self._jobs.values() if not job.ended]
        return next((job for job in open_jobs if job.state == "running"), open_jobs[0] if open_jobs else None)

    def summary(self) -> str:
        """Return the job under way in a few words, for the status line."""
        job = self.running
        if job is None:
            return ""
        row = _row("", job)
        return " ".join(
            [
                job.name,
                f"{row.fraction:.0%}" if row.fraction is not None else row.state,
                *([f"{clock(row.eta)} left"] if row.eta else []),
            ]
        )

    def _log(self, line: str) -> None:
        self._app.main.jobs.write(line)


def _row(key: str, job: Job[Any]) -> JobRow:
    progress = job.progress
    running = job.state == "running"
    note = progress.note if running else str(job.error or "")
    return JobRow(key, job.name, job.state, progress.fraction if progress.total else None, progress.eta, note)
