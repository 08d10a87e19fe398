"""What comes back from a model: answers, tokens as they are written, activations, likelihoods."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Literal

from torch import Tensor

Finish = Literal["stop", "length", "cancelled", "refused"]  # the last one: by a guard that watched


@dataclass(frozen=True)
class Activations:
    """What was read from one row, float32 on the CPU.

    Attributes:
        layers: where it was read, ascending.
        response: mean over the response's tokens, `[layers, hidden]`; zero if there are none.
        prompt_last: at the last prompt token, `[layers, hidden]`.
        n_tokens: how many tokens are in the mean.
        parts: means over the parts that were asked for, `[parts, layers, hidden]`.
    """

    layers: tuple[int, ...]
    response: Tensor
    prompt_last: Tensor
    n_tokens: int
    parts: Tensor | None = None


@dataclass(frozen=True)
class Generation:
    """One answer.

    Attributes:
        text: without surrounding white space.
        token_ids: the response's tokens, without the end of the turn.
        prompt_tokens: the length of the prompt.
        finish: "stop" (the model ended its turn), "length" or "cancelled".
        activations: None if none were asked for, or if it was cancelled before it began.
    """

    text: str
    token_ids: list[int]
    prompt_tokens: int
    finish: Finish
    activations: Activations | None


@dataclass(frozen=True)
class Reading:
    """What was read of a user's last message, or of a reply so far; float32 on the CPU.

    Attributes:
        layers: where it was read, ascending.
        mean: over the tokens of the message or the reply, `[layers, hidden]`.
        last: at the last prompt token, `[layers, hidden]`; None for a reply.
        n_tokens: how many tokens are in the mean.
        parts: means over a message's parts, the whole first, `[parts, layers, hidden]`; None for a reply.
    """

    layers: tuple[int, ...]
    mean: Tensor
    last: Tensor | None
    n_tokens: int
    parts: Tensor | None = None


@dataclass(frozen=True)
class TokenEvent:
    """One token of one row, as it was written.

    Attributes:
        row: which request.
        index: the token's place in its response, from 0.
        token_id: -1 in an event without a token: the row was cancelled, or its prompt has been read.
        text: the new text, whole characters only; often a word, sometimes empty.
        projections: by axis, at the position that chose this token, averaged over the axis' layers.
        capped: how far the floors lifted that position, summed over the layers; 0 if they did not.
        logprob: of the token under the model, in nats.
        finish: why the row ends here, or None.
        entropy: of the model's choice of this token, in nats; 0 = it was certain.
        reading: for a watch: of the message in an event before the first token, later of the reply so far.
        nats: how much more probable steering made this token: its log-probability under the model as it is
            steered, less that under the model as it is, in nats (at temperature 1, before top-p). None while
            no twin runs; see `ModelWrapper.stream`.
        likeliest: the likeliest tokens there with their log-probabilities, the best first, if asked for.
    """

    row: int
    index: int
    token_id: int
    text: str
    projections: dict[str, float]
    capped: float
    logprob: float
    finish: Finish | None
    entropy: float = 0.0
    reading: Reading | None = None
    nats: float | None = None
    likeliest: Sequence[tuple[int, float]] = ()


@dataclass(frozen=True)
class Likelihood:
    """How probable a response is: mean log-probability per token, in nats, and the number of tokens."""

    logprob: float
    n_tokens: int


@dataclass(frozen=True)
class Step:
    """One token for every row that was still being written.

    Attributes:
        index: the token's place in the response, from 0.
        rows: which rows of the batch the other lists are about.
        tokens: the token ids; a row with finish "stop" has its end-of-turn token here.
        logprobs: of those tokens, in nats, under the model (before temperature and top-p); 0 if not wanted.
        entropies: of the model's choice at that place, in nats: 0 = it was certain, or not wanted.
        lifts: how far the floors lifted the position that chose the token, summed over the layers.
        projections: per row, in the order of the hooks' axes, at that same position.
        finish: why a row ends with this token, or None.
        read: what a watch has read, by row of the whole batch: the mean `[rows, layers, hidden]` over the
            prompt's spans (first step) or over the reply's tokens so far, the one chosen now left out.
        read_last: in the first step also the last prompt token, `[rows, layers, hidden]`.
        likeliest: the likeliest tokens at each place with their log-probabilities, the best first; None if
            not wanted.
        read_parts: in the first step also the parts of each row's message, `[parts, layers, hidden]` each.
        nats: of those tokens, log-probability less that under the row's twin; None without a twin, or
            where log-probabilities are not wanted.
    """

    index: int
    rows: list[int]
    tokens: list[int]
    logprobs: list[float]
    entropies: list[float]
    lifts: list[float]
    projections: list[list[float]]
    finish: list[Finish | None]
    nats: list[float | None]
    read: Tensor | None = None
    read_last: Tensor | None = None
    likeliest: list[list[tuple[int, float]]] | None = None
    read_parts: Sequence[Tensor] = ()


def mean_nats(events: Iterable[TokenEvent]) -> float | None:
    """Return the mean of log p_steered − log p_plain over a reply's tokens, in nats: its nats from plain.

    None if no twin has read along. (This is no loss of fluency, which is measured against prompted replies.)
    """
    nats = [event.nats for event in events if event.nats is not None]
    return fmean(nats) if nats else None
