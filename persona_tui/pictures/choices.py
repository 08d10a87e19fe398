"""A reply token by token: how probable each was, what else was likely, and what steering changed in that."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from persona_tui.core.mix import Mix

if TYPE_CHECKING:
    from persona_tui.model import Message, ModelWrapper
    from persona_tui.model.reread import Choice
    from persona_tui.steering.engine import SteeringEngine

ALTERNATIVES = 8  # that are told of every token


@dataclass(frozen=True)
class Alternative:
    """A token that could have been chosen: its text ("" ends the turn) and its log-probability in nats."""

    text: str
    logprob: float


@dataclass(frozen=True)
class TokenChoice:
    """A token of a reply, as steered and as the unsteered model has it.

    Attributes:
        logprob, plain_logprob: of the token, in nats, at temperature 1.
        rank, plain_rank: 1 = none was likelier.
        likeliest, plain_likeliest: the likeliest tokens there, the best first.
    """

    logprob: float
    rank: int
    likeliest: Sequence[Alternative]
    plain_logprob: float
    plain_rank: int
    plain_likeliest: Sequence[Alternative]

    @property
    def surprise(self) -> float:
        """How improbable it was as it was spoken, in nats."""
        return -self.logprob

    @property
    def nats(self) -> float:
        """How much more probable steering made it, in nats."""
        return self.logprob - self.plain_logprob


def token_choices(
    model: ModelWrapper,
    engine: SteeringEngine,
    messages: Sequence[Message],
    reply: str | Sequence[int],
    mixes: Mapping[int, Mix] | None = None,
) -> list[TokenChoice]:
    """Ask, in a pass or two, how probable every token of a reply was.

    Args:
        model: the model.
        engine: of that model, with its personas.
        messages: what the reply answers.
        reply: its text, or its token ids.
        mixes: by token: what it was spoken with from that one on; None = unsteered.

    Raises:
        PersonaNotFoundError: a mix names a persona that does not exist.
        GenerationError: the reply does not fit the context, or memory ran out.
    """
    changes = {index: engine.interventions(mix) for index, mix in (mixes or {}).items()}
    plain = model.reply_choices(messages, reply, None, ALTERNATIVES)
    steered = model.reply_choices(messages, reply, changes, ALTERNATIVES) if changes else plain

    def told(choice: Choice) -> list[Alternative]:
        return [
            Alternative(str(model.tokenizer.decode([at], skip_special_tokens=True)), value)
            for at, value in choice.likeliest
        ]

    return [
        TokenChoice(one.logprob, one.rank, told(one), other.logprob, other.rank, told(other))
        for one, other in zip(steered, plain, strict=True)
    ]
