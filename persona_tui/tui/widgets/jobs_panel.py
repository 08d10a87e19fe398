"""Long work: how far it is, and what it said."""

import textwrap
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from textual import events
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Vertical
from textual.content import Content
from textual.message import Message
from textual.widgets import Log, OptionList
from textual.widgets.option_list import Option

from persona_tui.core.documents import printable
from persona_tui.core.jobs import LOG_LINES
from persona_tui.tui.sturdy import RowList, Sturdy

_NARROWEST = 40
_BAR_WIDTH = 8
_SIGNS = {"queued": "·", "running": "▸", "done": "✓", "failed": "✗", "cancelled": "–", "unfinished": "↻"}
_TURNING = "▸▹"
_STYLES = {
    "done": "$text-success",
    "failed": "bold $text-error",
    "cancelled": "dim",
    "queued": "dim",
    "unfinished": "$text-warning",
}


@dataclass(frozen=True)
class JobRow:
    """One job as the list shows it.

    Attributes:
        key: what the board calls it.
        name: what it does.
        state: a key of the signs.
        fraction: 0 to 1; None while the amount of work is not known.
        eta: seconds left, None if that is not known.
        note: what it is at, or why it failed.
        count: how many units are done, and of how many.
        rate: units per second.
        detail: what exactly is in hand, such as a prompt.
        seconds: how long it has taken, None while it waits.
        beat: grows with every report.
    """

    key: str
    name: str
    state: str
    fraction: float | None = None
    eta: float | None = None
    note: str = ""
    count: str = ""
    rate: float | None = None
    detail: str = ""
    seconds: float | None = None
    beat: int = 0

    def content(self) -> Content:
        """Return the row's text."""
        parts: list[str | tuple[str, str]] = [(f"{self._sign} {self.name}", _STYLES.get(self.state, "bold"))]
        if self.state == "running" and self.fraction is not None:
            left = f" · {clock(self.eta)} left" if self.eta else ""
            been = f" · {clock(self.seconds)}" if self.seconds else ""
            parts += [" ", bar(self.fraction), f" {self.fraction:.0%}{been}{left}"]
        below = " · ".join(self._facts()) if self.state == "running" else ""
        note = self.note or self.state
        if self.seconds and self.state == "done":
            note = f"{note} in {clock(self.seconds)}"
        if not below:
            parts.append((f" {printable(note)}", "$text-error" if self.state == "failed" else "dim"))
        else:
            parts.append((f"\n  {' '.join(printable(below).split())}", "dim"))
        return Content.assemble(*parts)

    @property
    def _sign(self) -> str:
        """The sign of its state; of a job under way, one that turns with every report: it is alive."""
        return _TURNING[self.beat % len(_TURNING)] if self.state == "running" else _SIGNS[self.state]

    def _facts(self) -> list[str]:
        """Return what stands on the second line, the longest last: it may be cut off."""
        return [fact for fact in (self.note, self.count, speed(self.rate), self.detail) if fact]


def bar(fraction: float) -> tuple[str, str]:
    """Return a bar and its style."""
    filled = round(fraction * _BAR_WIDTH)
    return "█" * filled + "░" * (_BAR_WIDTH - filled), "$text-accent"


def clock(seconds: float) -> str:
    """Return a duration as minutes and seconds."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{rest:02}" if minutes >= 60 else f"{minutes}:{rest:02}"


def speed(rate: float | None) -> str:
    """Return a throughput: per second, or what is slower per minute; "" if it is not known."""
    if not rate:
        return ""
    if rate >= 100:
        return f"{rate:,.0f}/s"
    return f"{rate:.3g}/s" if rate >= 1 else f"{rate * 60:.3g}/min"


class JobList(RowList):
    """The jobs, the latest first."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("delete", "ask('remove')", "cancel/remove", id="jobs_cancel"),
        Binding("f5", "ask('resume')", "resume/again", id="jobs_resume"),
        Binding("enter,right", "ask('info')", "details", id="jobs_info"),
    ]

    @dataclass
    class Asked(Message):
        """The user wants something done with a job: remove, resume or info."""

        what: str
        key: str

    def action_ask(self, what: str) -> None:
        """Say what is wanted of the marked job."""
        option = self.highlighted_option
        if option is not None and option.id is not None:
            self.post_message(self.Asked(what, option.id))

    def on_option_list_option_selected(self, event: OptionList.OptionSelected) -> None:
        """A click on a row: its details."""
        event.stop()
        if event.option_id is not None:
            self.post_message(self.Asked("info", event.option_id))

    def show_rows(self, rows: Sequence[JobRow]) -> None:
        """Show these jobs, and leave the mark where it was. Rows that are there are only drawn again."""
        keys = [row.key for row in rows]
        if keys != [option.id for option in self.options]:
            marked = self.highlighted_option.id if self.highlighted_option else None
            new = [key for key in keys if key not in self._id_to_option]
            self.set_options([Option(row.content(), id=row.key) for row in rows])
            # A job that has just been asked for is what one wants to look at, or cancel.
            wanted = marked if marked in keys and not new else keys[0] if keys else None
            self.highlighted = keys.index(wanted) if wanted is not None else None
            return
        for row in rows:
            self.replace_option_prompt(row.key, row.content())


class JobLog(Sturdy, Log):
    """The log. Its end stays in view until the reader scrolls away from it, also when the rows above grow."""

    def __init__(self, *, id: str | None = None) -> None:
        super().__init__(id=id, max_lines=LOG_LINES)
        self._following = True
        self._said: deque[str] = deque(maxlen=LOG_LINES)
        self._wrapped_to = _NARROWEST  # that the lines are wrapped to

    def watch_scroll_y(self, old_value: float, new_value: float) -> None:
        """Follow again when the reader comes back to the end."""
        super().watch_scroll_y(old_value, new_value)
        self._following = self.is_vertical_scroll_end

    def on_resize(self) -> None:
        """Wrap all lines to the new width, and keep the end in view."""
        width = max(self.size.width - 1, _NARROWEST)
        if self.size.width and width != self._wrapped_to:
            self._wrapped_to, following = width, self._following
            self.clear()
            self._following = following
            for line in self._said:
                self._write(line)
        self._follow()

    def add(self, line: str) -> None:
        """Add a line, wrapped to the present width."""
        self._said.append(printable(line))
        following = self._following
        self._write(self._said[-1])
        self._following = following
        self._follow()

    def _write(self, line: str) -> None:
        for part in textwrap.wrap(line, self._wrapped_to, subsequent_indent="  "):
            self.write_line(part, scroll_end=False)

    def _follow(self) -> None:
        if self._following:
            self.scroll_end(animate=False, immediate=True, x_axis=False)
            self._following = True


class JobsPanel(Sturdy, Vertical):
    """The jobs and the log below them."""

    BORDER_TITLE = "jobs"

    @dataclass
    class Printed(Message):
        """A library printed something that would have torn the screen."""

        text: str

    def compose(self) -> ComposeResult:
        """Return the panel's parts."""
        yield JobList(id="job-list", compact=True)
        yield JobLog(id="job-log")

    def on_mount(self) -> None:
        """Say what will appear here, and take what Python code prints (for the rest see `terminal`)."""
        self.write("Jobs show here, with their log.")
        self.begin_capture_print()

    def on_print(self, event: events.Print) -> None:
        """Pass on what was printed, by lines."""
        text: str | bytes = event.text  # whatever the code passed to write: click takes us for a binary file
        printed = text.decode(errors="replace") if isinstance(text, bytes) else text
        for line in printed.splitlines():
            if line.strip():
                self.post_message(self.Printed(line))

    def show_rows(self, rows: Sequence[JobRow]) -> None:
        """Show these jobs."""
        self.query_one(JobList).show_rows(rows)

    def write(self, line: str) -> None:
        """Add a line to the log, unless the app is ending and has taken it down."""
        for log in self.query(JobLog):
            log.add(line)
