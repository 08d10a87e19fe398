"""What a model is asked for: conversations, what is done to its residual stream, what is read meanwhile."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from persona_tui.core.errors import GenerationError
from persona_tui.model.sampling import Sampling

Message = dict[str, str]


@dataclass(frozen=True)
class Cap:
    """A floor under the projection onto an axis: `h <- h + max(0, floor - h.axis) * axis`.

    Attributes:
        axis: unit vector `[hidden]`.
        floor: the lowest projection allowed, in the units of the residual stream.
    """

    axis: Tensor
    floor: float


@dataclass(frozen=True)
class Interventions:
    """What is done to the residual stream, by layer. Steering comes first, then the floor.

    Attributes:
        steering: the vector added at a layer: `[hidden]` for all rows, or `[rows, hidden]`, one for each.
        capping: the floor at a layer: one `Cap` for all rows, or one per row (None = no floor for that row).
        plausibility: the guide, for all rows or one per row: a token may be chosen only if the model as it
            is, reading the same text, gives it at least so many times the probability of its own best token
            (at temperature 1, before top-p). 0 = off. It acts where text is written.
    """

    steering: Mapping[int, Tensor] = field(default_factory=dict)
    capping: Mapping[int, Cap | Sequence[Cap | None]] = field(default_factory=dict)
    plausibility: float | Sequence[float] = 0.0

    @staticmethod
    def none() -> Interventions:
        """Leave the model as it is."""
        return Interventions()

    @staticmethod
    def by_row(rows: Sequence[Interventions]) -> Interventions:
        """What a batch needs whose rows are each steered and capped differently.

        Args:
            rows: each row's own, with vectors `[hidden]` and single floors. A layer where a row has none
                leaves that row as it is.
        """
        steered = sorted({layer for each in rows for layer in each.steering})
        capped = sorted({layer for each in rows for layer in each.capping})
        return Interventions(
            {layer: _stacked([each.steering.get(layer) for each in rows]) for layer in steered},
            {layer: [_single(each.capping.get(layer)) for each in rows] for layer in capped},
            [_number(each.plausibility) for each in rows] if any(each.plausibility for each in rows) else 0.0,
        )


def _stacked(vectors: Sequence[Tensor | None]) -> Tensor:
    """Vectors `[hidden]` as `[rows, hidden]`, zero where there is none."""
    nothing = torch.zeros_like(next(vector for vector in vectors if vector is not None))
    return torch.stack([nothing if vector is None else vector for vector in vectors])


def _single(cap: Cap | Sequence[Cap | None] | None) -> Cap | None:
    if cap is None or isinstance(cap, Cap):
        return cap
    raise GenerationError("a row's floor cannot itself be one per row")


def _number(plausibility: float | Sequence[float]) -> float:
    if isinstance(plausibility, Sequence):
        raise GenerationError("a row's plausibility cannot itself be one per row")
    return plausibility


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


def conversation(prompt: str, system: str | None = None) -> list[Message]:
    """The messages of a single question."""
    opening = [{"role": "system", "content": system}] if system else []
    return [*opening, {"role": "user", "content": prompt}]


def is_continued(messages: Sequence[Message]) -> bool:
    """Whether the answer to a conversation goes on with what the assistant said last."""
    return len(messages) > 1 and messages[-1]["role"] == "assistant"


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
        return self.raw or is_continued(self.messages)


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
