"""Long work: how far it is, and what it said."""

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Vertical
from textual.content import Content
from textual.message import Message
from textual.widgets import Log
from textual.widgets.option_list import Option

from persona_tui.tui.printable import printable
from persona_tui.tui.widgets.row_list import RowList

LINES = 2000
_NARROWEST = 40
_BAR_WIDTH = 16
_SIGNS = {"queued": "·", "running": "▸", "done": "✓", "failed": "✗", "cancelled": "–"}
_STYLES = {"done": "$text-success", "failed": "$text-error", "cancelled": "dim", "queued": "dim"}


@dataclass(frozen=True)
class JobRow:
    """One job as the list shows it. `fraction` is None while the amount of work is not known."""

    key: str
    name: str
    state: str
    fraction: float | None = None
    eta: float | None = None
    note: str = ""

    def content(self) -> Content:
        """Return the row's text."""
        parts: list[str | tuple[str, str]] = [
            (f"{_SIGNS[self.state]} {self.name} ", _STYLES.get(self.state, "bold"))
        ]
        if self.state == "running" and self.fraction is not None:
            parts += [
                bar(self.fraction),
                f" {self.fraction:.0%}",
                f" · {clock(self.eta)} left" if self.eta else "",
            ]
        parts.append((f" {printable(self.note or self.state)}", "dim"))
        return Content.assemble(*parts)


def bar(fraction: float) -> tuple[str, str]:
    """Return a bar and its style."""
    filled = round(fraction * _BAR_WIDTH)
    return "█" * filled + "░" * (_BAR_WIDTH - filled), "$text-accent"


def clock(seconds: float) -> str:
    """Return a duration as minutes and seconds."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{rest:02}" if minutes >= 60 else f"{minutes}:{rest:02}"


class JobList(RowList):
    """The jobs, the latest first."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("c,delete", "cancel_job", "cancel job", id="jobs_cancel")
    ]

    @dataclass
    class CancelAsked(Message):
        """The user wants a job to stop."""

        key: str

    def action_cancel_job(self) -> None:
        """Say which job should stop."""
        option = self.highlighted_option
        if option is not None and option.id is not None:
            self.post_message(self.CancelAsked(option.id))

    def show_rows(self, rows: Sequence[JobRow]) -> None:
        """Show these jobs. Rows that are there already are only drawn anew."""
        keys = [row.key for row in rows]
        if keys != [option.id for option in self.options]:
            self.set_options([Option(row.content(), id=row.key) for row in rows])
            self.highlighted = 0 if rows else None
            return
        for row in rows:
            self.replace_option_prompt(row.key, row.content())


class JobsPanel(Vertical):
    """The jobs and the log below them."""

    BORDER_TITLE = "jobs"

    def compose(self) -> ComposeResult:
        """Return the panel's parts."""
        yield JobList(id="job-list", compact=True)
        yield Log(id="job-log", max_lines=LINES)

    def on_mount(self) -> None:
        """Say what will appear here."""
        self.write("Long work shows here, with its log.")

    def show_rows(self, rows: Sequence[JobRow]) -> None:
        """Show these jobs."""
        self.query_one(JobList).show_rows(rows)

    def write(self, line: str) -> None:
        """Add a line to the log, wrapped to its present width."""
        log = self.query_one(Log)
        width = max(log.size.width - 1, _NARROWEST)
        for part in textwrap.wrap(printable(line), width, subsequent_indent="  "):
            log.write_line(part)
