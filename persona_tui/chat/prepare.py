"""What is decided before a reply is written: what fits the context, the seed, and what a transcript says."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from persona_tui.chat.context import fit_context

if TYPE_CHECKING:  # torch is imported when a reply is written
    from persona_tui.model import Message, Sampling
    from persona_tui.steering import SteeringEngine


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
