"""What is decided before a reply is written: what fits the context, the seed, and what a transcript says."""

from __future__ import annotations

import bisect
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from persona_tui.chat.conversation import Message

if TYPE_CHECKING:  # torch is imported when a reply is written
    from persona_tui.model import Sampling
    from persona_tui.steering import SteeringEngine


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


@dataclass(frozen=True)
class PreparedReply:
    """A reply that is about to be written.

    Attributes:
        messages: what fits the model's context, without the system prompt.
        system: the system prompt, if any.
        sampling: with the seed that will be used.
        forgotten: how many of the oldest messages had to be left out.
        prompt_tokens: the length of the prompt.
        settings: all of that and the mix, as a transcript has it.
    """

    messages: list[Message]
    system: str | None
    sampling: Sampling
    forgotten: int
    prompt_tokens: int
    settings: dict[str, Any]


def prepare(
    engine: SteeringEngine, messages: Sequence[Message], system: str | None, sampling: Sampling
) -> PreparedReply:
    """Decide how a reply is written.

    Args:
        engine: writes it, with its present mix.
        messages: see `Conversation.prompt`.
        system: the system prompt, if any.
        sampling: as wanted. Without a seed, one is drawn.

    Returns:
        What to give the engine, and the `settings` for `Conversation.begin_reply` or `settle`. A reply that
        is one of several rows also has `rows`, the mixes of all rows as `SteeringEngine.describe` has them;
        `row_changes`, for each of them, where another mix took effect (`index` and `mix`), if that was the
        case in any; and `row`, which of them it is.
    """
    model, sampling = engine.model, sampling.with_seed()
    fitted = fit_context(
        messages, model.count_tokens, model.context_length, sampling.max_new_tokens, system or None
    )
    settings = {
        "model": model.name,
        "fingerprint": model.fingerprint,
        **engine.circumstances(),
        "rendering": model.rendering.record(),
        "system": system or None,
        "sampling": asdict(sampling),
        "forgotten": fitted.forgotten,
        "prompt_tokens": fitted.prompt_tokens,
        "mix": engine.describe(engine.mix),
    }
    return PreparedReply(
        fitted.messages, system or None, sampling, fitted.forgotten, fitted.prompt_tokens, settings
    )
