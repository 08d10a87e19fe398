"""What the screens with pictures share: figures are worked out as a job, and drawn when they are there."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar, TypeVar

from textual.binding import Binding, BindingType

from persona_tui.core.errors import PersonaTuiError
from persona_tui.core.jobs import Job, JobContext
from persona_tui.tui.screens.results import ResultsScreen

T = TypeVar("T")


class PictureScreen(ResultsScreen):
    """A screen whose figures take the model a moment. Subclasses draw them, or say why there are none."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("ctrl+r", "app.prepare", "prepare this model", show=False, id="picture_prepare")
    ]

    _latest: Job[Any] | None = None

    @property
    def idle(self) -> bool:
        """Whether nothing is being worked out."""
        return self._latest is not None and self._latest.ended and self._job is None

    def compute(self, name: str, work: Callable[[JobContext], T], done: Callable[[T], None]) -> None:
        """Work something out on the model's thread, behind turns and other jobs.

        Args:
            name: of the job, for people.
            work: what to do there; it is stopped when the screen is left.
            done: given the result, on the screen's thread.
        """
        if self._job is not None:
            self._job.cancel()

        def ended(job: Job[T]) -> None:
            if self.is_attached and job is self._latest:
                self._ended(job, done)

        self._latest = self.owner.jobs.submit(name, work, ended, quiet=True, fleeting=True)
        self.follow(self._latest)

    def _ended(self, job: Job[T], done: Callable[[T], None]) -> None:
        self._job = None
        if job.state == "done" and job.result is not None:
            self.say("")
            done(job.result)
        elif job.error is not None:
            self.nothing(job.error)
        else:
            self.say("Cancelled. f5 begins again.")

    def nothing(self, error: Exception) -> None:
        """Say why there is nothing to draw, and the one thing to do about it."""
        if isinstance(error, PersonaTuiError):
            text = self.owner.own_words(" ".join(str(error).split()))
            cure = self.owner.way_to("prepare")
            self.empty(text if cure in text else f"{text} {cure} makes personas and axes.")
        else:
            self.fail(error)

    def empty(self, why: str) -> None:
        """Draw a sentence instead."""
        raise NotImplementedError

    def on_unmount(self) -> None:
        """Nobody waits for it any more."""
        if self._job is not None:
            self._job.cancel()
