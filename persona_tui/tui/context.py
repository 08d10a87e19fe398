"""How full the model's context is, and saying so before it overflows."""

from __future__ import annotations

from typing import TYPE_CHECKING

from persona_tui.chat import Node
from persona_tui.chat.replies import ChatReply

if TYPE_CHECKING:
    from persona_tui.tui.stage import AppStage

NEARLY = 0.85  # of the room for a prompt


class Context:
    """Keeps count, and warns once each time that it gets nearly full, and when messages are left out."""

    def __init__(self, app: AppStage) -> None:
        self._app = app
        self.size: int | None = None
        self.reply: ChatReply | None = None  # the latest one
        self._used: int | None = None
        self._warned = False
        self._forgotten = 0

    @property
    def used(self) -> int | None:
        """Tokens of the conversation so far, as of the last reply; None = not counted yet."""
        if self.reply is not None and self.reply.prompt_tokens:
            return self.reply.prompt_tokens + self.reply.count
        return self._used

    @property
    def room(self) -> int | None:
        """Tokens that a prompt may have, so that the longest reply still fits; None = any number."""
        if self.size is None:
            return None
        chat = self._app.chat
        longest = (
            chat.sampling_changes.get("max_new_tokens") or chat.project.settings.generation.max_new_tokens
        )
        return self.size - min(int(longest), self.size // 2)

    @property
    def nearly_full(self) -> bool:
        """Whether the next message may push the oldest ones out."""
        return self.room is not None and self.used is not None and self.used > self.room * NEARLY

    def opened(self, last: Node | None) -> None:
        """Begin with another conversation."""
        self.moved(last)
        self._warned, self._forgotten = False, 0

    def moved(self, last: Node | None) -> None:
        """Count what the reply that the path ends with now was written after."""
        stats = last.runs[-1].stats if last is not None and last.runs else {}
        counted = stats.get("prompt_tokens", 0) + stats.get("tokens", 0)
        self._used, self.reply = counted or None, None

    def ended(self, reply: ChatReply) -> None:
        """Warn if the next prompt will hardly fit, or this one did not."""
        if reply.forgotten > self._forgotten:
            self._app.say(
                f"The context is full: the model no longer sees the oldest {reply.forgotten} messages. "
                f"/new starts another conversation."
            )
        elif self.nearly_full and not self._warned:
            self._app.say(self._warning())
        self._warned = self.nearly_full
        self._forgotten = reply.forgotten

    def _warning(self) -> str:
        return (
            f"The context is nearly full: {self.used} of {self.size} tokens, and a reply may need "
            f"{(self.size or 0) - (self.room or 0)}. Soon the oldest messages will be left out. "
            "A shorter longest reply (/max-tokens) or another conversation (/new) makes room."
        )
