"""A text of several lines, written in peace: the system prompt, or prompts that a model has drafted."""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

from textual import on
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal, Vertical
from textual.widgets import Button, Static, TextArea

from persona_tui.tui.screens.dialog import Dialog
from persona_tui.tui.sturdy import TextPad

Comment = Callable[[str], tuple[str, bool]]


class WriteScreen(Dialog[str]):
    """A text area and what to do with it. The answer is the text; empty if it was cleared."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("ctrl+s", "use", "use it", id="write_use"),
        Binding("ctrl+g", "editor", "own editor", id="write_editor"),
    ]

    def __init__(
        self,
        title: str,
        explanation: str,
        text: str = "",
        *,
        use: str = "Use it",
        clear: str | None = None,
        comment: Comment | None = None,
    ) -> None:
        """
        Args:
            title: of the dialog.
            explanation: what the text is for.
            text: what it is at first.
            use: on the button that takes it.
            clear: on the button that takes an empty text instead; None = there is no such button.
            comment: given the text, says something about it, and whether it can be used like that.
        """
        super().__init__()
        self._title, self._explanation, self._text = title, explanation, text
        self._use, self._clear, self._comment = use, clear, comment

    def compose(self) -> ComposeResult:
        """Return the dialog."""
        with Vertical(classes="dialog write") as dialog:
            dialog.border_title = self._title
            dialog.border_subtitle = "ctrl+s uses it · ctrl+g your editor · esc cancels"
            yield Static(self._explanation, markup=False, classes="question")
            yield TextPad(self._text, id="text", compact=True, show_line_numbers=False)
            yield Static("", id="advice", markup=False)
            with Horizontal(classes="buttons"):
                yield Button(self._use, id="use", variant="primary", compact=True)
                if self._clear is not None:
                    yield Button(self._clear, id="clear", compact=True)
                yield Button("Cancel", id="cancel", compact=True)

    def on_mount(self) -> None:
        """Begin at the end of the text."""
        area = self.query_one(TextArea)
        area.focus()
        area.move_cursor(area.document.end)
        self._advise()

    @on(TextArea.Changed)
    def _advise(self) -> None:
        if self._comment is not None:
            comment, fine = self._comment(self.query_one(TextArea).text)
            advice = self.query_one("#advice", Static)
            advice.update(comment)
            advice.set_class(not fine, "-error")

    @on(Button.Pressed, "#use")
    def action_use(self) -> None:
        """Take the text, unless it cannot be used."""
        text = self.query_one(TextArea).text.strip()
        if self._comment is None or self._comment(text)[1]:
            self.dismiss(text)
        else:
            self.app.bell()

    @on(Button.Pressed, "#clear")
    def _clear_pressed(self) -> None:
        self.dismiss("")

    @on(Button.Pressed, "#cancel")
    def _cancel_pressed(self) -> None:
        self.action_leave()

    @property
    def text(self) -> str:
        """What is written."""
        return self.query_one(TextArea).text

    def replace_text(self, text: str) -> None:
        """Put another text in its place."""
        self.query_one(TextArea).load_text(text)

    async def action_editor(self) -> None:
        """Go on in the user's own editor."""
        await self.app.run_action("editor")
