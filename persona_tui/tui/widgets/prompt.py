"""Where the user writes: enter sends, ctrl+j begins a new line, a pasted text is inserted whole.

The up key brings back what was sent before, also in earlier runs.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from textual import events
from textual.actions import SkipAction
from textual.binding import Binding, BindingType
from textual.message import Message

from persona_tui.core.documents import json_value, read_plain
from persona_tui.core.files import atomic_write_text
from persona_tui.tui.sturdy import TextPad
from persona_tui.tui.widgets.completions import Completions

KEPT = 500  # texts in the file


class PromptHistory:
    """Texts, oldest first, and a place among them; its end stands for what is being written now."""

    def __init__(self, path: Path | None = None) -> None:
        """
        Args:
            path: a file with one JSON string a line, which need not exist; None = only this run counts.
        """
        self._path = path
        self._texts = _read(path)[-KEPT:] if path is not None else []
        self._place = len(self._texts)
        self._draft = ""

    def add(self, text: str) -> None:
        """Remember a text, and go back to the end.

        Raises:
            OSError: the file cannot be written; the text is remembered for this run.
        """
        is_new = self._texts[-1:] != [text]
        if is_new:
            self._texts.append(text)
        self._place = len(self._texts)
        if is_new and self._path is not None:
            self._write(self._path, text)

    def move(self, by: int, draft: str) -> str | None:
        """Return the text before or after the present one; None beyond either end.

        Args:
            by: -1 for the one before, 1 for the one after.
            draft: what is written now; it is what comes after the last one.
        """
        place = self._place + by
        if not 0 <= place <= len(self._texts):
            return None
        if self._place == len(self._texts):
            self._draft = draft
        self._place = place
        return self._texts[place] if place < len(self._texts) else self._draft

    def _write(self, path: Path, text: str) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        if len(self._texts) > 2 * KEPT:
            self._texts = self._texts[-KEPT:]
            self._place = len(self._texts)
            atomic_write_text(path, "".join(f"{json.dumps(each)}\n" for each in self._texts))
            return
        with path.open("a", encoding="utf-8") as file:
            file.write(f"{json.dumps(text)}\n")


def _read(path: Path) -> list[str]:
    """Return the texts of a file; lines that are none are passed over: at worst one is forgotten."""
    try:
        lines = read_plain(path).decode("utf-8", "replace").splitlines()
    except OSError:
        return []
    return [text for line in lines if (text := _parsed(line))]


def _parsed(line: str) -> str | None:
    try:
        text = json_value(line, halves=True)
    except ValueError:
        return None
    return text if isinstance(text, str) else None


_PLACEHOLDER = "enter sends · ctrl+j new line · / for commands"
_NOT_OURS = ("select_line", "select_all")  # TextArea has them on f6 and f7, which are the app's

Completer = Callable[[str], Sequence[tuple[str, str]]]


class Prompt(TextPad):
    """A text area that sends, remembers what was sent, and completes slash commands."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("enter", "send", "send the message", show=False, id="prompt_send"),
        Binding("ctrl+j,shift+enter", "newline", "start a new line", show=False, id="prompt_newline"),
        Binding("tab", "complete", "accept the completion", show=False, id="prompt_complete"),
        Binding("ctrl+d", "leave", "quit, from an empty prompt", show=False, id="prompt_quit"),
        Binding("up", "up", "what was sent before", show=False, id="prompt_up"),
        Binding("down", "down", "what was sent after", show=False, id="prompt_down"),
        Binding("pageup", "app.scroll_chat(-1)", "scroll the chat up", show=False, id="chat_page_up"),
        Binding("pagedown", "app.scroll_chat(1)", "scroll the chat down", show=False, id="chat_page_down"),
    ]

    @dataclass
    class Sent(Message):
        """The user sent a text; `editing` is the message whose place it takes, if any."""

        text: str
        editing: int | None = None

    @dataclass
    class EditingChanged(Message):
        """An old message is being edited, or not any more (None)."""

        editing: int | None

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
        self.sent = PromptHistory()
        self.editing: int | None = None
        self.examples: Sequence[str] = ()  # what tab offers
        self._put_aside = ""  # what was being written when editing began

    # --- sending

    def action_send(self) -> None:
        """Send what is written; a half-written command is completed first."""
        chosen = self._completions.chosen
        if chosen and chosen.strip() != self.text.strip() and " " not in self.text:
            self._put(chosen)
            return
        text = self.text.strip()
        if not text:
            return
        editing = self.editing
        self.end_editing()
        if editing is None:
            self._put("")
            self._remember(text)
        self.post_message(self.Sent(text, editing))

    def _remember(self, text: str) -> None:
        try:
            self.sent.add(text)
        except OSError as error:
            reason = error.strerror or error
            self.app.notify(f"The prompt history cannot be written: {reason}", severity="warning")

    # --- editing an old message

    def begin_editing(self, key: int, text: str) -> None:
        """Take in an old message, to be sent in another form; what is being written comes back later."""
        if self.editing is None:
            self._put_aside = self.text
        self.editing = key
        self._put(text)
        self.post_message(self.EditingChanged(key))

    def end_editing(self) -> bool:
        """Leave the old message as it is; whether one was being edited."""
        if self.editing is None:
            return False
        self.editing = None
        self._put(self._put_aside)
        self.post_message(self.EditingChanged(None))
        return True

    def replace_text(self, text: str) -> None:
        """Put another text in place of what is written."""
        self._put(text)

    def take_back(self, sent: Sent) -> None:
        """Put back what could not be said, to be sent once more."""
        if sent.editing is not None:
            self.begin_editing(sent.editing, sent.text)
        else:
            self._put(sent.text)

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

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        """Leave f6 and f7 to the app."""
        return False if action in _NOT_OURS else super().check_action(action, parameters)

    # --- completing

    def on_text_area_changed(self) -> None:
        """Offer what could follow."""
        line = self.text
        offers = self._completer(line) if line.startswith("/") and "\n" not in line else ()
        self._completions.offer(offers)

    def action_complete(self) -> None:
        """Take the marked completion; in an empty chat, an example question, or the one after it."""
        if self._completions.is_open:
            self._put(self._completions.chosen)
        elif self.examples and self.text in ("", *self.examples):
            place = self.examples.index(self.text) + 1 if self.text else 0
            self._put(self.examples[place % len(self.examples)])
        else:
            raise SkipAction

    def action_leave(self) -> None:
        """Leave the app if nothing is written."""
        if not self.text:
            self.app.call_later(self.app.action_quit)

    def clear_text(self) -> bool:
        """Delete what is written, so that it can be undone; whether there was anything."""
        if not self.text:
            return False
        self.clear()
        return True

    def dismiss_completions(self) -> bool:
        """Close the list; whether it was open."""
        was_open = self._completions.is_open
        self._completions.offer(())
        return was_open

    # --- moving

    def action_cursor_line_end(self, select: bool = False) -> None:
        """Go to the end of the line; from the end of the text, to the last line of the chat."""
        if not select and self.cursor_location == self.document.end:
            self.app.call_later(self.app.run_action, "chat_end")
        super().action_cursor_line_end(select)

    def action_up(self) -> None:
        """Mark another completion, or fetch what was sent before."""
        self._move(-1, at_edge=self.cursor_location[0] == 0)

    def action_down(self) -> None:
        """Mark another completion, or fetch what was sent after."""
        self._move(1, at_edge=self.cursor_location[0] == self.document.line_count - 1)

    def _move(self, by: int, *, at_edge: bool) -> None:
        if self._completions.is_open:
            self._completions.move(by)
            return
        text = self.sent.move(by, self.text) if at_edge and self.editing is None else None
        if text is None:
            raise SkipAction
        self._put(text)
        self.dismiss_completions()

    def _put(self, text: str) -> None:
        self.load_text(text)
        self.move_cursor(self.document.end)
