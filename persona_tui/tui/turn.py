"""One reply while it is being written: filled by the model's thread, emptied by the screen's."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from persona_tui.core.errors import SessionError

if TYPE_CHECKING:  # torch is not imported before the first paint
    from persona_tui.chat import Conversation, Run
    from persona_tui.model.wrapper import TokenEvent
    from persona_tui.project.project import Project


@dataclass(eq=False)
class Turn:
    """A reply to be written, and what came of it so far.

    Attributes:
        conversation: where it belongs; the model's thread writes into it, too.
        reply: its number there.
        sampling: what differs from the settings, by name of the engine's sampling fields.
        stop: set to end the reply after the present token.
        tokens: written and not yet shown.
        count: tokens written.
        finish: "stop", "length" or "cancelled" once it has ended.
    """

    conversation: Conversation
    reply: int
    sampling: Mapping[str, Any] = field(default_factory=dict)
    stop: threading.Event = field(default_factory=threading.Event)
    tokens: deque[TokenEvent] = field(default_factory=deque)
    count: int = 0
    finish: str | None = None
    _first_at: float | None = None
    _last_at: float | None = None

    def take(self, event: TokenEvent) -> None:
        """Keep a token; called on the model's thread."""
        self._last_at = time.perf_counter()
        if self._first_at is None:
            self._first_at = self._last_at
        if event.token_id >= 0:
            self.count += 1
        self.finish = event.finish
        self.tokens.append(event)

    def drain(self) -> list[TokenEvent]:
        """Return the tokens that came since the last time."""
        drained = []
        while self.tokens:
            drained.append(self.tokens.popleft())
        return drained

    @property
    def run(self) -> Run | None:
        """How the reply is written, as the conversation has it; None if it was taken back."""
        try:
            return self.conversation.node(self.reply).runs[-1]
        except (SessionError, IndexError):
            return None

    @property
    def prompt_tokens(self) -> int:
        """The length of the prompt; 0 until it was counted."""
        return int(self.run.settings.get("prompt_tokens", 0)) if self.run is not None else 0

    @property
    def forgotten(self) -> int:
        """How many of the oldest messages had to be left out, so that the reply has room."""
        return int(self.run.settings.get("forgotten", 0)) if self.run is not None else 0

    @property
    def speed(self) -> float | None:
        """Tokens per second since the first one; None until that can be said."""
        if self._first_at is None or self._last_at is None or self.count < 2:
            return None
        seconds = self._last_at - self._first_at
        return (self.count - 1) / seconds if seconds > 0 else None


def write(project: Project, turn: Turn) -> None:
    """Write the reply; runs on the model's thread.

    Raises:
        PersonaTuiError: the model could not be loaded, or not answer.
    """
    from persona_tui.chat.replies import speak

    engine = project.engine
    sampling = replace(engine.sampling, **turn.sampling)
    for event in speak(engine, turn.conversation, turn.reply, sampling, turn.stop):
        turn.take(event)
