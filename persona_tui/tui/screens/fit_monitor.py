"""What a monitor is fitted on, and what it is called."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from textual import on
from textual.app import ComposeResult
from textual.containers import Horizontal, Vertical
from textual.widgets import Button, Input, Static

from persona_tui.core.errors import WorkspaceError
from persona_tui.core.files import safe_name
from persona_tui.tui.screens.dialog import Dialog
from persona_tui.tui.widgets.chooser import Chooser

OWN = "own file"
_DATA = ("both", "training", "large", OWN)
_METHODS = ("auto", "tone", "content", "projection", "probe", "consensus")


@dataclass(frozen=True)
class NewMonitor:
    """What is asked for; `file` instead of `data` if it is the user's own."""

    name: str
    data: str
    method: str
    file: Path | None


class FitScreen(Dialog[NewMonitor]):
    """Name, data and method. The answer is what was chosen."""

    def __init__(self, name: str, known: Collection[str]) -> None:
        """
        Args:
            name: in the field at first.
            known: the monitors there are, which would be replaced.
        """
        super().__init__()
        self._first_name, self._known = name, known

    def compose(self) -> ComposeResult:
        """Return the form."""
        with Vertical(classes="dialog form") as dialog:
            dialog.border_title = "fit a monitor"
            dialog.border_subtitle = "enter fits it · esc cancels"
            yield Static("What should it be called?", classes="question")
            yield Input(self._first_name, placeholder="default", id="monitor-name", compact=True)
            data, method = Chooser("data", _DATA, id="fit-data"), Chooser("method", _METHODS, id="fit-method")
            data.value, method.value = _DATA[0], _METHODS[0]
            yield data
            yield method
            yield Input(placeholder="your own labelled queries (.jsonl)", id="fit-file", compact=True)
            yield Static("", id="advice", markup=False)
            with Horizontal(classes="buttons"):
                yield Button("Fit it", id="fit", variant="primary", compact=True)
                yield Button("Cancel", id="cancel", compact=True)

    def on_mount(self) -> None:
        """Say what is in the way."""
        self._advise()

    def on_chooser_changed(self, message: Chooser.Changed) -> None:
        """Take a choice."""
        message.chooser.value = message.value
        self._advise()

    @on(Input.Changed)
    def _advise(self) -> None:
        self.query_one("#fit-file", Input).display = self._chosen("#fit-data") == OWN
        problem = self._problem()
        replaced = f"This replaces the monitor {self._typed}." if self._typed in self._known else ""
        advice = self.query_one("#advice", Static)
        advice.update(problem or replaced or "25 + 25 queries, the larger set's training split, or both.")
        advice.set_class(bool(problem), "-error")

    @property
    def _typed(self) -> str:
        return self.query_one("#monitor-name", Input).value.strip()

    def _chosen(self, which: str) -> str:
        return self.query_one(which, Chooser).value

    @property
    def _file(self) -> Path | None:
        text = self.query_one("#fit-file", Input).value.strip()
        return Path(text).expanduser() if self._chosen("#fit-data") == OWN and text else None

    def _problem(self) -> str:
        try:
            safe_name(self._typed)
        except WorkspaceError as error:
            return str(error)
        if self._chosen("#fit-data") == OWN and (self._file is None or not self._file.is_file()):
            return "Name a file of labelled queries."
        return ""

    @on(Input.Submitted)
    @on(Button.Pressed, "#fit")
    def _fit(self) -> None:
        if not self._problem():
            data = self._chosen("#fit-data")
            self.dismiss(
                NewMonitor(
                    self._typed, "both" if data == OWN else data, self._chosen("#fit-method"), self._file
                )
            )

    @on(Button.Pressed, "#cancel")
    def _cancel(self) -> None:
        self.action_leave()
