"""How much of a conversation a model is given: the newest turns that leave room for a reply."""

from __future__ import annotations

import bisect
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from persona_tui.chat.conversation import Message


@dataclass(frozen=True)
class FittedPrompt:
    """A conversation that leaves room for a reply.

    Attributes:
        messages: the newest, without the system prompt.
        forgotten: how many of the oldest were left out.
        prompt_tokens: what they take, with the system prompt and what the reply begins with.
    """

    messages: list[Message]
    forgotten: int
    prompt_tokens: int


def fit_context(
    messages: Sequence[Message],
    count: Callable[[list[Message]], int],
    context: int | None,
    new_tokens: int,
    system: str | None = None,
    begun: int = 0,
) -> FittedPrompt:
    """Drop the oldest turns, as many as it takes to leave room for a reply. The last message always stays.

    Args:
        messages: the conversation, without the system prompt.
        count: how many tokens a conversation takes (`ModelWrapper.count_tokens`).
        context: how many there may be; None = any number.
        new_tokens: the longest reply that is wanted; half of the context is the most it is given.
        system: the system prompt, which always stays.
        begun: how many tokens of the reply are there already.
    """
    front = [{"role": "system", "content": system}] if system else []

    def size(start: int) -> int:
        return count([*front, *messages[start:]]) + begun

    total = size(0)
    room = total if context is None else context - min(new_tokens, context // 2)
    if total <= room:
        return FittedPrompt(list(messages), 0, total)
    starts = [0, *(place for place, each in enumerate(messages) if place and each["role"] == "user")]
    fits = bisect.bisect_left(starts, True, key=lambda start: size(start) <= room)
    start = starts[min(fits, len(starts) - 1)]
    return FittedPrompt(list(messages[start:]), start, size(start))
