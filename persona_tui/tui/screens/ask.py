"""Asks for one line of text."""

from collections.abc import Callable

from textual import on
from textual.app import ComposeResult
from textual.containers import Vertical
from textual.widgets import Input, Static

from persona_tui.tui.screens.dialog import Dialog

Check = Callable[[str], str | None]


class AskScreen(Dialog[str]):
    """A question, a field, and what is wrong with what was typed."""

    def __init__(
        self, title: str, question: str, value: str = "", check: Check = lambda text: None, example: str = ""
    ) -> None:
        """
        Args:
            title: of the dialog.
            question: what is asked, in a line or two.
            value: what is in the field at first.
            check: given what was typed, says what is wrong with it; None = nothing.
            example: shown while the field is empty.
        """
        super().__init__()
        self._title, self._question = title, question
        self._value, self._check, self._example = value, check, example

    def compose(self) -> ComposeResult:
        """Return the dialog."""
        with Vertical(classes="dialog form") as dialog:
            dialog.border_title = self._title
            dialog.border_subtitle = "enter accepts · esc cancels"
            yield Static(self._question, markup=False, classes="question")
            yield Input(self._value, placeholder=self._example, id="answer", compact=True)
            yield Static("", id="advice", markup=False)

    @on(Input.Changed)
    def _typed(self) -> None:
        self._advise("")

    @on(Input.Submitted)
    def _submitted(self, event: Input.Submitted) -> None:
        problem = self._check(event.value.strip())
        if problem is None:
            self.dismiss(event.value.strip())
        else:
            self._advise(problem)

    def _advise(self, problem: str) -> None:
        advice = self.query_one("#advice", Static)
        advice.update(problem)
        advice.set_class(bool(problem), "-error")
