"""Where the user writes: enter sends, ctrl+j begins a new line, a pasted text is inserted whole."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar

from textual import events
from textual.actions import SkipAction
from textual.binding import Binding, BindingType
from textual.message import Message
from textual.widgets import TextArea

from persona_tui.tui.widgets.completions import Completions

_PLACEHOLDER = "enter sends · ctrl+j begins a new line · / for commands"

Completer = Callable[[str], Sequence[tuple[str, str]]]


class Prompt(TextArea):
    """A text area that sends, remembers what was sent, and completes slash commands."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("enter", "send", "send what is written", show=False, id="prompt_send"),
        Binding("ctrl+j,shift+enter", "newline", "begin a new line", show=False, id="prompt_newline"),
        Binding("tab", "complete", "take the completion", show=False, id="prompt_complete"),
        Binding("up", "up", "what was sent before", show=False, id="prompt_up"),
        Binding("down", "down", "what was sent after", show=False, id="prompt_down"),
        Binding("pageup", "app.scroll_chat(-1)", "scroll the chat up", show=False, id="chat_page_up"),
        Binding("pagedown", "app.scroll_chat(1)", "scroll the chat down", show=False, id="chat_page_down"),
    ]

    @dataclass
    class Sent(Message):
        """The user sent a text."""

        text: str

    def __init__(self, completions: Completions, completer: Completer, *, id: str | None = None) -> None:
        """
        Args:
            completions: where what could follow is shown.
            completer: given what is written, what it could become and why.
            id: of the widget.
        """
        super().__init__(id=id, compact=True, highlight_cursor_line=False, placeholder=_PLACEHOLDER)
        self._completions = completions
        self._completer = completer
        self._history: list[str] = []
        self._place = 0  # in the history; its end = what is being written
        self._draft = ""

    # --- sending

    def action_send(self) -> None:
        """Send what is written; a half-written command is completed first."""
        chosen = self._completions.chosen
        if chosen and chosen.strip() != self.text.strip() and " " not in self.text:
            self._put(chosen)
            return
        text = self.text.strip()
        if text:
            self.remember(text)
            self._put("")
            self.post_message(self.Sent(text))

    def remember(self, text: str) -> None:
        """Keep a text for the up key."""
        if self._history[-1:] != [text]:
            self._history.append(text)
        self._place = len(self._history)

    def action_newline(self) -> None:
        """Begin a new line."""
        self.insert("\n")

    def _on_paste(self, event: events.Paste) -> None:  # type: ignore[override]  # the base class' runs next
        # Terminals send the line ends of a paste as carriage returns.
        event.text = event.text.replace("\r\n", "\n").replace("\r", "\n")

    async def _on_key(self, event: events.Key) -> None:
        """Act on our own keys in the order they came: a priority binding would overtake text still queued."""
        if event.is_printable:
            return
        active = self.screen.active_bindings.get(event.key)
        if active is None or active.node is not self or active.binding.id is None:
            return
        if await self.app.run_action(active.binding.action, self):
            event.stop()
            event.prevent_default()

    # --- completing

    def on_text_area_changed(self) -> None:
        """Offer what could follow."""
        line = self.text
        offers = self._completer(line) if line.startswith("/") and "\n" not in line else ()
        self._completions.offer(offers)

    def action_complete(self) -> None:
        """Take the marked completion."""
        if not self._completions.is_open:
            raise SkipAction
        self._put(self._completions.chosen)

    def dismiss_completions(self) -> bool:
        """Close the list; whether it was open."""
        was_open = self._completions.is_open
        self._completions.offer(())
        return was_open

    # --- moving

    def action_up(self) -> None:
        """Mark another completion, or fetch what was sent before."""
        self._move(-1, at_edge=self.cursor_location[0] == 0)

    def action_down(self) -> None:
        """Mark another completion, or fetch what was sent after."""
        self._move(1, at_edge=self.cursor_location[0] == self.document.line_count - 1)

    def _move(self, by: int, *, at_edge: bool) -> None:
        if self._completions.is_open:
            self._completions.move(by)
        elif not at_edge or not 0 <= self._place + by <= len(self._history):
            raise SkipAction
        else:
            self._fetch(self._place + by)

    def _fetch(self, place: int) -> None:
        if self._place == len(self._history):
            self._draft = self.text
        self._place = place
        self._put(self._history[place] if place < len(self._history) else self._draft)
        self.dismiss_completions()

    def _put(self, text: str) -> None:
        self.load_text(text)
        self.move_cursor(self.document.end)
