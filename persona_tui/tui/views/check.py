"""A text that is typed in, judged by every method."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from textual import on
from textual.app import ComposeResult
from textual.content import Content
from textual.message import Message
from textual.widgets import Input

from persona_tui.core.documents import printable
from persona_tui.monitors.verdict import Verdict
from persona_tui.tui.views.plot import Sheet
from persona_tui.tui.views.plots import number
from persona_tui.tui.views.view import View


@dataclass(frozen=True)
class Checked:
    """A text, and how it was judged.

    Attributes:
        text: what was typed.
        verdicts: by method; empty if it failed.
        method: the one that is looked at.
        problem: why it failed, "" if it did not.
    """

    text: str
    verdicts: Mapping[str, Verdict]
    method: str
    problem: str = ""


class CheckView(View):
    """A field, and the verdicts below it, the latest first."""

    TITLE = "check"

    class Asked(Message):
        """The user wants a text judged."""

        def __init__(self, text: str) -> None:
            super().__init__()
            self.text = text

    def compose(self) -> ComposeResult:
        """Return the parts."""
        yield Input(placeholder="a message to judge; enter", id="check-text", compact=True)
        yield Sheet(id="checked")

    def on_mount(self) -> None:
        """Begin with nothing checked."""
        self._checked: list[Checked] = []
        self._waiting = ""

    @on(Input.Submitted)
    def _submitted(self, message: Input.Submitted) -> None:
        message.stop()
        self.post_message(self.Asked(message.value))

    def wait(self, text: str) -> None:
        """Say that a text is being read."""
        self._waiting = text
        self._redraw()

    def add(self, checked: Checked) -> None:
        """Show how a text was judged."""
        self._waiting = ""
        self._checked.insert(0, checked)
        if not checked.problem:
            self.query_one(Input).value = ""
        self._redraw()

    def _redraw(self) -> None:
        self.query_one(Sheet).show(self._drawn)

    def _drawn(self, width: int, height: int) -> list[Content]:
        rows = [Content.styled(f"reading: {printable(self._waiting)}", "dim")] if self._waiting else []
        for checked in self._checked:
            rows += _rows(checked)
        return rows


def _rows(checked: Checked) -> list[Content]:
    title = Content.styled(" ".join(printable(checked.text).split()) or "(nothing)", "bold")
    if checked.problem:
        return [title, Content.styled(f"  Error: {checked.problem}", "$text-error")]
    return [title, *(_row(verdict, name == checked.method) for name, verdict in checked.verdicts.items())]


def _row(verdict: Verdict, main: bool) -> Content:
    sign = ">" if verdict.safe else "≤"
    style = "$text-success" if verdict.safe else "$text-error"
    harm = f" · {verdict.category.replace('_', ' ')}" if main and verdict.category else ""
    return Content.assemble(
        ("> " if main else "  ", "$text-accent"),
        f"{verdict.method:<11}",
        (f"{verdict.label:<10}", f"bold {style}" if main else style),
        f"{number(verdict.score):>9} {sign} {number(verdict.threshold)}",
        (harm, "dim"),
    )
