"""`Request`: a conversation that a model is to answer."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass

from persona_tui.model import text
from persona_tui.model.sampling import Sampling
from persona_tui.model.text import Message


@dataclass(frozen=True)
class Request:
    """A conversation to answer.

    Attributes:
        messages: the conversation; its last message is what the answer follows, or, if it is the assistant's,
            goes on with.
        seed: this row's own seed. None = one that follows from the sampling's seed and the row's place.
        sampling: how this row's tokens are chosen; None = as those of the whole batch.
        prompt: the conversation's token ids, if somebody has encoded it already (see `PromptEncoder`).
        raw: whether the prompt is a text to be continued, and no conversation.
        stops: texts that end the answer, besides the end of the turn; they are not part of it.
        stop: when set, this row gets no further token.
        likeliest: how many of the likeliest tokens its events tell.
    """

    messages: list[Message]
    seed: int | None = None
    sampling: Sampling | None = None
    prompt: Sequence[int] | None = None
    raw: bool = False
    stops: tuple[str, ...] = ()
    stop: threading.Event | None = None
    likeliest: int = 0

    @property
    def continued(self) -> bool:
        """Whether the answer goes on with a text, and so may begin with a space."""
        return self.raw or text.is_continued(self.messages)


def conversation(prompt: str, system: str | None = None) -> list[Message]:
    """The messages of a single question."""
    opening = [{"role": "system", "content": system}] if system else []
    return [*opening, {"role": "user", "content": prompt}]
