"""A guard whose monitor is on the server, which judges there."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NoReturn

from persona_tui.core.errors import MonitorError
from persona_tui.monitors.guard import Guard, GuardMode
from persona_tui.monitors.verdict import Verdict


class RemoteGuard(Guard):
    """Knows its mode, and what the server's monitor has said. Its mode holds from the next reply on."""

    def __init__(self, url: str, monitor: Mapping[str, str]) -> None:
        """
        Args:
            url: of the server.
            monitor: its `weakness`, or the `problem` that it cannot be used.
        """

        def exists() -> None:
            if "problem" in monitor:
                raise MonitorError(f"at {url}: {monitor['problem']}")

        def load() -> NoReturn:
            raise MonitorError(f"the monitor is at {url}")

        super().__init__(load, "off", exists, lambda: monitor.get("weakness", ""))

    def start_in(self, mode: GuardMode) -> None:
        """Begin in a mode. Where there is no monitor, nothing is answered if it judges by that."""
        self._mode = mode

    @property
    def asked_for(self) -> GuardMode:
        """What the server's own guard is to do: it only warns where the chat here sees to the rest."""
        if self._mode != "critique":
            return self._mode
        return "warn" if self._there() else "off"

    @property
    def watch(self) -> None:
        """Nothing is read here."""
        return None

    def take(self, verdict: Verdict) -> None:
        """Take note of a verdict."""
        if verdict.about == "message":
            self.reply = None
        self._remember(verdict)
