"""Nothing that is pressed, clicked or pasted ends the app: what fails is told, and the app goes on.

Textual ends an app with the first exception that reaches one of its loops. `Sturdy` stands before the loop
of every screen and widget of ours, `SturdyApp` before the app's own, before actions (those of Textual's
widgets, too), timers and painting. All come to `SturdyApp.failed`: one line on screen, an entry in the log.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from textual import events
from textual.app import App
from textual.message import Message

if TYPE_CHECKING:
    from collections.abc import Mapping

    from textual.actions import ActionParseResult
    from textual.dom import DOMNode
    from textual.message_pump import MessagePump as _Pump
else:
    _Pump = object

MOST_FAILURES = 50  # outside of handlers and actions; a screen that cannot even be painted is of no use


class Sturdy(_Pump):
    """Survives its own handlers. Name it before Textual's class."""

    async def _dispatch_message(self, message: Message) -> None:
        try:
            await super()._dispatch_message(message)
        except Exception as error:
            app: Any = self.app
            app.failed(error)


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

    def failed(self, error: Exception) -> None:
        """Say in one line what failed, and write it to the log."""
        raise NotImplementedError

    async def on_event(self, event: events.Event) -> None:
        """Keep what is typed until there is a screen to type on."""
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

    async def _deliver(self, event: events.Event) -> None:
        if isinstance(event, events.Key | events.Paste) and not event.is_forwarded:
            self.aim(event)
        await super().on_event(event)

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
