"""How full the model's context is, and saying so before it overflows."""

from __future__ import annotations

from typing import TYPE_CHECKING

from persona_tui.chat import Node
from persona_tui.tui.turn import Turn

if TYPE_CHECKING:
    from persona_tui.tui.app import PersonaApp

NEARLY = 0.85  # of the room for a prompt


class Context:
    """Keeps count, and warns once each time that it gets nearly full, and when messages are left out."""

    def __init__(self, app: PersonaApp) -> None:
        self._app = app
        self.size: int | None = None
        self._used: int | None = None
        self._warned = False
        self._forgotten = 0

    @property
    def used(self) -> int | None:
        """Tokens of the conversation so far, as of the last reply; None = not counted yet."""
        turn = self._app.speaker.last
        if turn is not None and turn.prompt_tokens:
            return turn.prompt_tokens + turn.count
        return self._used

    @property
    def room(self) -> int | None:
        """Tokens that a prompt may have, so that the longest reply still fits; None = any number."""
        if self.size is None:
            return None
        longest = self._app.speaker.sampling.get("max_new_tokens") or self._app.longest_reply
        return self.size - min(int(longest), self.size // 2)

    @property
    def nearly_full(self) -> bool:
        """Whether the next message may push the oldest ones out."""
        return self.room is not None and self.used is not None and self.used > self.room * NEARLY

    def opened(self, last: Node | None) -> None:
        """Begin with another conversation."""
        stats = last.runs[-1].stats if last is not None and last.runs else {}
        counted = stats.get("prompt_tokens", 0) + stats.get("tokens", 0)
        self._used = counted or None
        self._warned, self._forgotten = False, 0

    def turn_ended(self, turn: Turn) -> None:
        """Warn if the next prompt will hardly fit, or this one did not."""
        if turn.forgotten > self._forgotten:
            self._app.main.chat.note(
                f"The context is full: the model no longer sees the oldest {turn.forgotten} messages. "
                f"/new begins another conversation."
            )
        elif self.nearly_full and not self._warned:
            self._app.main.chat.note(self._warning())
        self._warned = self.nearly_full
        self._forgotten = turn.forgotten

    def _warning(self) -> str:
        return (
            f"The context is nearly full: {self.used} of {self.size} tokens, and a reply may need "
            f"{(self.size or 0) - (self.room or 0)}. Soon the oldest messages will be left out. "
            "A shorter longest reply (/max-tokens) or another conversation (/new) makes room."
        )
