"""Nothing that is pressed, clicked or pasted ends the app: what fails is told, and the app goes on.

Textual ends an app with the first exception that reaches one of its loops. `Sturdy` stands before the loop
of every screen and widget of ours, `SturdyApp` before the app's own, before actions (those of Textual's
widgets, too), timers and painting. All come to `SturdyApp.failed`: one line on screen, an entry in the log.

`RowList` and `TextPad` are Textual's (8.2), where it raises on a key.
"""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Any, ClassVar

from textual import events
from textual.app import App
from textual.binding import Binding, BindingType
from textual.geometry import Offset
from textual.message import Message
from textual.strip import Strip
from textual.widget import Widget
from textual.widgets import OptionList, TextArea

if TYPE_CHECKING:
    from collections.abc import Mapping

    from textual.actions import ActionParseResult
    from textual.dom import DOMNode
    from textual.message_pump import MessagePump as _Pump
else:
    _Pump = object

_LONGEST = 1.0  # seconds that a key may take, if nothing is heard of it
MOST_FAILURES = 50  # outside of handlers and actions; a screen that cannot even be painted is of no use


class Sturdy(_Pump):
    """Survives its own handlers. Name it before Textual's class."""

    async def _dispatch_message(self, message: Message) -> None:
        try:
            await super()._dispatch_message(message)
        except Exception as error:
            app: Any = self.app
            app.failed(error)


class KeySettled(Message, bubble=True):
    """Goes the way that a key has gone, behind it."""

    def __init__(self, target: Widget, key: int, rounds: int = 2) -> None:
        super().__init__()
        self.target, self.key, self.rounds = target, key, rounds


class SturdyApp(Sturdy, App[None]):
    """An app that survives what fails, and loses no key that is pressed before its screen is there.

    Attributes:
        failures: what has failed in this run, mistakes of the user left out.
    """

    def __init__(self) -> None:
        super().__init__()
        self.failures: list[Exception] = []
        self._early: list[events.Event] | None = []  # what was typed before; None = the screen is there
        self._unhandled = 0
        self._key = 0
        self._under_way = False  # whether a key is
        self._waiting: list[events.Event] = []  # keys behind it

    def failed(self, error: Exception) -> None:
        """Say in one line what failed, and write it to the log."""
        raise NotImplementedError

    async def on_event(self, event: events.Event) -> None:
        """Keep what is typed until there is a screen to type on.

        Terminals send alt+t as escape and t, and Textual (8.2) leaves the t with the key: a text field would
        take it as text.
        """
        if isinstance(event, events.Key) and event.key.startswith("alt+"):
            event.character = None
        if self._early is not None and isinstance(event, events.Key | events.Paste):
            self._early.append(event)
        elif self._early is None:
            await self._deliver(event)
        elif not isinstance(event, events.MouseEvent):
            await super().on_event(event)

    async def take_early_keys(self) -> None:
        """Do what was typed before the screen was there, in the order in which it was typed."""
        early, self._early = self._early or [], None
        for event in early:
            await self._deliver(event)

    # --- one key after the other

    async def _deliver(self, event: events.Event) -> None:
        """Hand an event on; a key waits until what the one before it has set off is done.

        Textual looks a key's binding up when the key has come back from the focused widget. If the next one
        has moved the focus by then, it would be looked up in the wrong place.
        """
        if not isinstance(event, events.Key | events.Paste) or event.is_forwarded:
            await super().on_event(event)
        elif self._under_way:
            self._waiting.append(event)
        else:
            self.aim(event)
            target = self.focused
            await super().on_event(event)
            if target is not None and isinstance(event, events.Key) and self.sets_off(target, event):
                self._wait_for(target)

    def sets_off(self, target: Widget, key: events.Key) -> bool:
        """Return whether the keys behind one that a widget is given have to wait for it."""
        return False

    @property
    def keys_waiting(self) -> bool:
        """Whether a key is still under way to what it does."""
        return self._under_way

    def _wait_for(self, target: Widget) -> None:
        self._key += 1
        self._under_way = target.post_message(KeySettled(target, self._key))
        key = self._key
        self.set_timer(
            _LONGEST, lambda: self._settled(key)
        )  # the widget may be gone, and the message with it

    async def on_key_settled(self, message: KeySettled) -> None:
        """Go on when a key has gone its way, and then what it has posted."""
        message.stop()
        if message.rounds > 1 and message.target.post_message(
            KeySettled(message.target, message.key, message.rounds - 1)
        ):
            return
        await self._settled(message.key)

    async def _settled(self, key: int) -> None:
        if key != self._key or not self._under_way:
            return
        self._under_way = False
        waiting, self._waiting = self._waiting, []
        for event in waiting:
            await self._deliver(event)

    async def run_action(
        self,
        action: str | ActionParseResult,
        default_namespace: DOMNode | None = None,
        namespaces: Mapping[str, DOMNode] | None = None,
    ) -> bool:
        """Perform an action, of whichever widget; one that fails is told, and counts as done."""
        try:
            return await super().run_action(action, default_namespace, namespaces)
        except Exception as error:
            self.failed(error)
            return True

    def _handle_exception(self, error: Exception) -> None:
        """Take what Textual would end the app for: something failed in a timer, or while painting."""
        self._unhandled += 1
        if self._early is not None or self._unhandled > MOST_FAILURES:
            super()._handle_exception(error)
        else:
            self.failed(error)

    def aim(self, event: events.Key | events.Paste) -> None:
        """Choose where a text that is being typed goes, before it goes there."""


class RowList(Sturdy, OptionList):
    """Textual's list, in which (8.2) page up and page down raise while no row has been laid out.

    Beside the chat letters never come here: they go to the prompt.
    """

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("j", "cursor_down", "down", show=False),
        Binding("k", "cursor_up", "up", show=False),
        Binding("g", "first", "first", show=False),
        Binding("G", "last", "last", show=False),
    ]

    def action_page_up(self) -> None:
        """Move the mark up by a page."""
        with suppress(KeyError):
            self._move_page(-1)

    def action_page_down(self) -> None:
        """Move the mark down by a page."""
        with suppress(KeyError):
            self._move_page(1)


class TextPad(Sturdy, TextArea):
    """Textual's, in which (8.2) undoing a long paste raises, and painting a placeholder without any room.

    Undoing shortens the text first and moves the cursor back last. If the scrollbar goes in between, the
    cursor is looked for in a line that does not exist any more; it will be scrolled to once it has moved.
    No room is left for a moment when the terminal becomes much narrower, below a dialog, too.
    """

    def scroll_cursor_visible(self, center: bool = False, animate: bool = False) -> Offset:
        """Scroll to the cursor, unless its line is gone."""
        if self.cursor_location[0] >= self.document.line_count:
            return Offset()
        return super().scroll_cursor_visible(center, animate)

    def render_line(self, y: int) -> Strip:
        """Draw one row; nothing where there is no room."""
        return super().render_line(y) if self.content_size.width > 0 else Strip.blank(self.size.width)
