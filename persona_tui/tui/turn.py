"""One reply while it is being written: filled by the model's thread, emptied by the screen's."""

from __future__ import annotations

import threading
import time
from collections import deque
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # torch is not imported before the first paint
    from persona_tui.model.wrapper import ModelWrapper, TokenEvent
    from persona_tui.runtime import Runtime


@dataclass(eq=False)
class Turn:
    """A conversation to answer and what came of it so far.

    Attributes:
        messages: the conversation, without system prompt.
        system: the system prompt, if any.
        sampling: what differs from the settings, by name of the engine's sampling fields.
        stop: set to end the reply after the present token.
        tokens: written and not yet shown.
        prompt_tokens: 0 until they are counted.
        forgotten: how many of the oldest messages had to be left out, so that the reply has room.
        count: tokens written.
        finish: "stop", "length" or "cancelled" once it has ended.
    """

    messages: list[dict[str, str]]
    system: str | None = None
    sampling: dict[str, Any] = field(default_factory=dict)
    stop: threading.Event = field(default_factory=threading.Event)
    tokens: deque[TokenEvent] = field(default_factory=deque)
    prompt_tokens: int = 0
    forgotten: int = 0
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

    def forget_oldest(self, model: ModelWrapper, new_tokens: int) -> None:
        """Drop the oldest turns until the reply has room; called on the model's thread.

        Args:
            model: counts the tokens.
            new_tokens: the longest reply that is wanted; half of the context is the most it is given.
        """
        system = [{"role": "system", "content": self.system}] if self.system else []
        self.prompt_tokens = model.count_tokens([*system, *self.messages])
        if model.context_length is None:
            return
        room = model.context_length - min(new_tokens, model.context_length // 2)
        while self.prompt_tokens > room and len(self.messages) > 2:
            self.messages = self.messages[2:]
            self.forgotten += 2
            self.prompt_tokens = model.count_tokens([*system, *self.messages])

    def drain(self) -> list[TokenEvent]:
        """Return the tokens that came since the last time."""
        drained = []
        while self.tokens:
            drained.append(self.tokens.popleft())
        return drained

    @property
    def speed(self) -> float | None:
        """Tokens per second since the first one; None until that can be said."""
        if (
            self._first_at is None
            or self._last_at is None
            or self.count < 2
            or self._last_at <= self._first_at
        ):
            return None
        return (self.count - 1) / (self._last_at - self._first_at)


def speak(runtime: Runtime, turn: Turn) -> None:
    """Write the reply; runs on the model's thread.

    Raises:
        PersonaTuiError: the model could not be loaded, or not answer.
    """
    engine = runtime.engine
    sampling = replace(engine.sampling, **turn.sampling)
    turn.forget_oldest(engine.model, sampling.max_new_tokens)
    for event in engine.stream(turn.messages, system=turn.system, sampling=sampling, stop=turn.stop):
        turn.take(event)
