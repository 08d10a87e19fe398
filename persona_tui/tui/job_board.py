"""The jobs of this run: submits them to the model's thread, keeps the panel and the log up to date.

A job that was asked for as a `JobRequest` is on the disk until it has ended, and is offered again by the next
run if this one ends first.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from textual.content import Content
from textual.timer import Timer

from persona_tui.core.documents import printable
from persona_tui.core.errors import PersonaTuiError
from persona_tui.core.jobs import Change, Job, JobContext
from persona_tui.core.log_file import LogFile
from persona_tui.project.requests import JobRequest, Unfinished
from persona_tui.tui.messages import JobChanged, LogLine
from persona_tui.tui.screens.page import PageScreen
from persona_tui.tui.stage import reason
from persona_tui.tui.widgets.jobs_panel import JobRow, JobsPanel, clock, speed

if TYPE_CHECKING:
    from persona_tui.tui.stage import AppStage

T = TypeVar("T")
Ended = Callable[[Job[Any]], None]


@dataclass
class _Entry:
    """A job of this run, or what an earlier one has left (then there is no job yet)."""

    name: str
    job: Job[Any] | None = None
    on_end: Ended | None = None
    request: JobRequest | None = None
    stored: str | None = None  # under which key the request is on the disk
    told: bool = False  # whether `on_end` has been called
    fleeting: bool = False  # whether nobody wants to see it once it is done
    beat: int = 0  # reports so far

    @property
    def state(self) -> str:
        return "unfinished" if self.job is None else self.job.state

    @property
    def is_open(self) -> bool:
        return self.job is not None and not self.job.ended


class JobBoard:
    """Knows every job of this run, by a key that the panel can hand back."""

    def __init__(self, app: AppStage) -> None:
        self._app = app
        self._entries: dict[str, _Entry] = {}
        self._count = 0
        self._file = LogFile(app.project.workspace.root / "logs")
        self._unfinished = Unfinished(app.project.workspace)
        self._closing = False
        self._clock: Timer | None = None  # ticks while there is a job: its time goes on between two reports

    def asked(self, what: str, key: str) -> None:
        """Do what the user wants done with a job of the list: remove, resume or info.

        Raises:
            PersonaTuiError: that is not possible now.
        """
        answers: dict[str, Callable[[str], object]] = {
            "remove": self.remove,
            "resume": self.resume,
            "info": self.info,
        }
        if key in self._entries:
            answers[what](key)

    # --- beginning

    def submit(
        self,
        name: str,
        work: Callable[[JobContext], T],
        on_end: Callable[[Job[T]], None],
        *,
        quiet: bool = False,
        fleeting: bool = False,
    ) -> Job[T]:
        """Queue long work.

        Args:
            name: what it does, for people.
            work: done on the model's thread.
            on_end: called on the app's thread when it is done, failed or cancelled.
            quiet: leave the panel closed.
            fleeting: say nothing when it begins, and take it off the list when it is done.
        """
        return self._submit(_Entry(name, on_end=on_end, fleeting=fleeting), work, quiet)

    def submit_request(self, request: JobRequest, on_end: Ended) -> Job[Any]:
        """Queue long work that the next run can do if this one does not come to it."""
        entry = _Entry(request.name, on_end=on_end, request=request)
        try:
            entry.stored = self._unfinished.add(request)
        except PersonaTuiError as error:
            self.log(f"{request.name}: cannot be resumed after a restart: {error}")
        return self._submit_again(entry)

    def _submit_again(self, entry: _Entry) -> Job[Any]:
        request, project = entry.request, self._app.project
        assert request is not None
        return self._submit(entry, lambda context: request.run(project, context))

    def _submit(self, entry: _Entry, work: Callable[[JobContext], T], quiet: bool = False) -> Job[T]:
        job = entry.job = self._app.worker.submit_job(entry.name, work, self._listen)
        self._add(entry)
        if not entry.fleeting:
            self.log(f"{entry.name}: queued")
        if self._app.main.is_wide and not quiet:
            self._app.main.open_panel("jobs")
        self._clock = self._clock or self._app.set_interval(1.0, self._tick)
        self.show()
        return job

    def _tick(self) -> None:
        """Draw how long the job has taken by now; nothing ticks once there is none."""
        if self.running is None and self._clock is not None:
            self._clock.stop()
            self._clock = None
        self.show()

    def _add(self, entry: _Entry) -> None:
        self._count += 1
        self._entries[f"job-{self._count}"] = entry

    # --- what an earlier run has left

    def offer_unfinished(self, on_end: Ended) -> None:
        """List what earlier runs have not finished, and say so in the chat.

        Args:
            on_end: called when one that was resumed has ended.
        """
        try:
            found = self._unfinished.take_over()
        except (PersonaTuiError, OSError) as error:
            self.log(f"the jobs of earlier runs cannot be read: {error}")
            return
        for stored, request in found.items():
            self._add(_Entry(request.name, on_end=on_end, request=request, stored=stored))
        if found:
            names = ", ".join(request.name for request in found.values())
            key = self._app.key_label("jobs")
            self._app.main.chat.note(f"An earlier run did not finish: {names}. {key}, then f5, resumes it.")
            self.show()

    def resume_first(self) -> None:
        """Go on with the oldest job that an earlier run has left.

        Raises:
            PersonaTuiError: there are none, or they are another model's.
        """
        self.resume(next((key for key, entry in self._entries.items() if entry.state == "unfinished"), ""))

    def resume(self, key: str) -> None:
        """Do again what was cut short, failed or was cancelled.

        Raises:
            PersonaTuiError: there is no such job, or it is another model's.
        """
        entry = self._entries.get(key)
        if entry is None or entry.request is None or not self._can_resume(entry):
            raise PersonaTuiError("There is nothing to resume here.")
        present = self._app.project.settings.model.name
        if entry.request.model != present:
            raise PersonaTuiError(
                f"{entry.name} is for {entry.request.model}, but this is {present}: "
                f"choose that model first ({self._app.key_label('model')})"
            )
        del self._entries[key]
        if entry.stored is None:
            self.submit_request(entry.request, entry.on_end or (lambda job: None))
        else:
            self._submit_again(entry)

    def _can_resume(self, entry: _Entry) -> bool:
        return entry.request is not None and entry.state in ("unfinished", "failed", "cancelled")

    def remove(self, key: str) -> None:
        """Cancel a job that is under way; take any other off the list, and off the disk."""
        if self.cancel(key):
            return
        entry = self._entries.pop(key)
        self._forget_stored(entry)
        self.show()
        self._app.deleted(f"The job {entry.name}", lambda: self._put_back(key, entry))

    def _put_back(self, key: str, entry: _Entry) -> None:
        if entry.state == "unfinished" and entry.request is not None:
            entry.stored = self._unfinished.add(entry.request)
        self._entries[key] = entry
        self.show()

    def _forget_stored(self, entry: _Entry) -> None:
        if entry.stored is not None:
            self._unfinished.remove(entry.stored)
            entry.stored = None

    # --- what the model's thread says

    def _listen(self, job: Job[Any], change: Change) -> None:
        """Pass a change on; called on the model's thread."""
        if change == "log":
            self._app.post_message(LogLine(f"{job.name}: {job.lines[-1]}"))
        else:
            self._app.post_message(JobChanged(job))

    def changed(self, job: Job[Any]) -> None:
        """Show a job's new state, and act on its end once."""
        entry = next((entry for entry in self._entries.values() if entry.job is job), None)
        if entry is not None:
            entry.beat += 1
        self.show()
        if entry is None or not job.ended or entry.told:
            return
        entry.told = True
        if not self._closing:
            self._forget_stored(entry)
        self._log_end(job)
        if entry.fleeting and job.state == "done":
            self._entries = {key: other for key, other in self._entries.items() if other is not entry}
            self.show()
        if entry.on_end is not None:
            entry.on_end(job)

    def _log_end(self, job: Job[Any]) -> None:
        self.log(f"{job.name}: {job.state} after {clock(job.seconds)}")
        if job.error is not None:
            self._log_traceback(job.error)

    def log_error(self, error: Exception) -> None:
        """Write to the log what went wrong: one line on the screen, all of a mistake of ours on the disk."""
        self.log(f"error: {reason(error)}")
        self._log_traceback(error)

    def _log_traceback(self, error: Exception) -> None:
        if not isinstance(error, PersonaTuiError):
            self._file.write("".join(traceback.format_exception(error)))

    # --- showing

    def show(self) -> None:
        """Draw the panel and the status line's share."""
        for panel in self._panels():
            panel.show_rows([_row(key, entry) for key, entry in reversed(self._entries.items())])
            self._app.show_status()

    def _panels(self) -> Iterable[JobsPanel]:
        """Return the panel; nothing when the app is ending and has taken it down before a job's last word."""
        return self._app.main.query(JobsPanel)

    @property
    def running(self) -> Job[Any] | None:
        """The job under way, else the first that waits."""
        open_jobs = [entry.job for entry in self._entries.values() if entry.job is not None and entry.is_open]
        return next((job for job in open_jobs if job.state == "running"), open_jobs[0] if open_jobs else None)

    def summary(self) -> str:
        """Return the job under way in a few words, for the status line."""
        job = self.running
        if job is None:
            return ""
        row = _row("", _Entry(job.name, job))
        return " ".join(
            [
                job.name,
                f"{row.fraction:.0%}" if row.fraction is not None else row.state,
                *([f"{clock(row.eta)} left"] if row.eta else []),
            ]
        )

    def info(self, key: str) -> None:
        """Show all that is known of a job."""
        entry = self._entries[key]
        lines = self._app.own_words("\n".join(self._details(entry)))
        self._app.push_screen(PageScreen(entry.name, Content(printable(lines))))

    def _details(self, entry: _Entry) -> list[str]:
        lines = [f"state     {entry.state}"]
        if entry.request is not None:
            lines.append(f"model     {entry.request.model}")
        if entry.job is not None:
            lines += _measured(entry.job)
            if entry.job.error is not None:
                lines += ["", f"error     {reason(entry.job.error)}"]
        if self._can_resume(entry):
            lines += ["", "f5 runs it again" if entry.job is not None else "f5 resumes it, del removes it"]
        if entry.job is not None and entry.job.lines:
            lines += ["", *entry.job.lines]
        return [*lines, "", f"log file  {self._file.path}"]

    # --- ending

    def cancel(self, key: str | None = None) -> bool:
        """Cancel a job, by default the one that runs; whether there was one to cancel."""
        job = self._entries[key].job if key in self._entries else self.running if key is None else None
        if job is None or job.ended:
            return False
        job.cancel()
        self.log(f"{job.name}: asked to stop")
        return True

    def close(self) -> None:
        """The app ends: stop what runs, and leave it on the disk for the next run."""
        self._closing = True
        for entry in self._entries.values():
            if entry.job is not None:
                entry.job.cancel()
        self._unfinished.close()
        self._file.close()

    def log(self, line: str) -> None:
        """Add a line to the log, on the disk and on the screen, if it is still there."""
        self._file.write(line)
        for panel in self._panels():
            panel.write(line)


def _measured(job: Job[Any]) -> list[str]:
    """Say how long a job has taken, and how far it has come; nothing while it waits."""
    if job.state == "queued" or not (job.seconds or job.progress.done):
        return []
    progress = job.progress
    of = f" of {progress.total}" if progress.total else ""
    lines = [f"took      {clock(job.seconds)}", f"progress  {progress.done}{of} {progress.note}".rstrip()]
    if job.state == "running":
        lines += [f"speed     {speed(progress.rate)}"] if progress.rate else []
        lines += [f"left      {clock(progress.eta)}"] if progress.eta else []
        lines += [f"now       {progress.detail}"] if progress.detail else []
    return lines


def _row(key: str, entry: _Entry) -> JobRow:
    if entry.job is None:
        model = entry.request.model if entry.request is not None else ""
        return JobRow(
            key, entry.name, entry.state, note=f"of an earlier run, {model}: f5 resumes, del removes"
        )
    job, progress = entry.job, entry.job.progress
    note = progress.note if job.state == "running" else reason(job.error) if job.error is not None else ""
    return JobRow(
        key,
        entry.name,
        job.state,
        progress.fraction if progress.total else None,
        progress.eta,
        note,
        f"{progress.done}/{progress.total}" if progress.total else "",
        progress.rate,
        progress.detail if job.state == "running" else "",
        job.seconds or None,
        entry.beat,
    )
