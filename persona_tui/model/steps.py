"""What the decode loop is given (`Batch`, `Watch`) and what it yields (`Step`)."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from persona_tui.model.interventions import Interventions
from persona_tui.model.sampling import Sampling

Finish = Literal["stop", "length", "cancelled", "refused"]  # the last one: by a guard that watched
Poll = Callable[[], Interventions | None]


@dataclass(frozen=True)
class Watch:
    """What is read for a monitor while a batch is written, from the passes that write it.

    Attributes:
        layers: where a message is read.
        reply_layers: where a reply is read; some of `layers`. None = at all of them.
        after: how many tokens of a reply there are at its first reading.
        every: how many more at each one after that. The end of a reply is always read.
    """

    layers: tuple[int, ...]
    reply_layers: tuple[int, ...] | None = None
    after: int = 8
    every: int = 4

    def due(self, tokens: int) -> bool:
        """Whether a reply is read when so many of its tokens have been."""
        return tokens >= self.after and (tokens - self.after) % self.every == 0


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
        nats: of those tokens, log-probability less that under the row's twin; None where there is none, or
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


@dataclass(frozen=True)
class Batch:
    """What to write, and when each row is done.

    Attributes:
        prompts: token ids, one list per row.
        seeds: one per row; a row's text depends on its own seed only.
        end_tokens: ids that end a turn.
        pad_token: any valid id.
        ended: if given, whether a row's tokens so far contain the end of the turn, spelled as text.
        watch: what is read along the way, if anything; the hooks then capture at its layers.
        spans: for a watch, which of each prompt's positions it reads.
        samplings: how each row's tokens are chosen; empty = all alike.
        stops: for each row what, once set, ends it without another token; empty = none has that.
        likeliest: how many of the likeliest tokens the steps tell.
        parts: for a watch, the parts of these that are read on their own.
        thoughts: the ids that begin and end thoughts, which are no part of what is captured of a reply.
    """

    prompts: Sequence[Sequence[int]]
    seeds: Sequence[int]
    end_tokens: frozenset[int]
    pad_token: int
    ended: Callable[[int, list[int]], bool] | None = None
    watch: Watch | None = None
    spans: Sequence[range] = ()
    samplings: Sequence[Sampling] = ()
    stops: Sequence[threading.Event | None] = ()
    likeliest: int = 0
    parts: Sequence[Sequence[range]] = ()
    thoughts: tuple[int, int] | None = None
