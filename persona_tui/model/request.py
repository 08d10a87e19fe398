"""What a model is asked for: conversations, how tokens are chosen, what is done to its residual stream."""

from __future__ import annotations

import secrets
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Self

import torch
from torch import Tensor

from persona_tui.core.errors import GenerationError
from persona_tui.core.mix import LOWEST_TEMPERATURE, NEW_TOKENS, SEED, TEMPERATURE, TOP_P

if TYPE_CHECKING:
    from persona_tui.core.config import GenerationSettings

Message = dict[str, str]

_NOISE_BLOCK = 64  # tokens for which a row's random numbers are drawn at once
_FEW_TOKENS = (32, 256)  # how many tokens mostly hold all of top-p's probability, and nearly always
_DRAW_BLOCK = 256  # neighbouring tokens that are drawn from as one before one of them is
_SEED_STEP = 1_000_003  # keeps the rows of neighbouring seeds apart


@dataclass(frozen=True)
class Sampling:
    """How tokens are chosen.

    Attributes:
        max_new_tokens: the longest response.
        temperature: 0 = always the most probable token.
        top_p: choose among the most probable tokens that together have this probability.
        seed: None = another text every time.

    Raises:
        GenerationError: a value out of range.
    """

    max_new_tokens: int = 256
    temperature: float = 0.7
    top_p: float = 0.95
    seed: int | None = None

    def __post_init__(self) -> None:
        NEW_TOKENS.check("max_new_tokens", self.max_new_tokens, GenerationError)
        TEMPERATURE.check("temperature", self.temperature, GenerationError)
        TOP_P.check("top_p", self.top_p, GenerationError)
        if self.seed is not None:
            SEED.check("seed", self.seed, GenerationError)

    @classmethod
    def of(cls, settings: GenerationSettings) -> Self:
        """Return how replies are sampled by default, as the settings have it."""
        return cls(settings.max_new_tokens, settings.temperature, settings.top_p, settings.seed)

    def with_seed(self) -> Self:
        """Return the same with a seed, drawn now if there is none, so that it can be done again."""
        return self if self.seed is not None else replace(self, seed=secrets.randbits(31))

    def row_seed(self, row: int) -> int:
        """Return the seed of one row when its request brings none."""
        return secrets.randbits(62) if self.seed is None else self.seed * _SEED_STEP + row


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
        """Return what a batch needs whose rows are each steered and capped differently.

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

    def of_rows(self, rows: Sequence[int]) -> Interventions:
        """Return what is done to some rows of a batch, in a new order."""
        steering = {
            layer: vector[list(rows)] if vector.dim() == 2 else vector
            for layer, vector in self.steering.items()
        }
        capping = {
            layer: cap if isinstance(cap, Cap) else [cap[row] for row in rows]
            for layer, cap in self.capping.items()
        }
        plausibility = self.plausibility
        if isinstance(plausibility, Sequence):
            plausibility = [plausibility[row] for row in rows]
        return Interventions(steering, capping, plausibility)


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
        """Return whether a reply is read when so many of its tokens have been."""
        return tokens >= self.after and (tokens - self.after) % self.every == 0


def conversation(prompt: str, system: str | None = None) -> list[Message]:
    """Return the messages of a single question."""
    opening = [{"role": "system", "content": system}] if system else []
    return [*opening, {"role": "user", "content": prompt}]


def is_continued(messages: Sequence[Message]) -> bool:
    """Return whether the answer to a conversation goes on with what the assistant said last."""
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
        thoughts: the ids that begin and end thoughts, which are not part of what is captured of a reply.
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


# Choosing tokens -------------------------------------------------------------------------------------------


def keep_top_p(probabilities: Tensor, top_p: float | Tensor) -> Tensor:
    """Set to zero all but the most probable tokens that together reach `top_p`; `[rows, vocabulary]`.

    Args:
        probabilities: `[rows, vocabulary]`.
        top_p: for all rows, or `[rows, 1]`, one for each.
    """
    vocabulary = probabilities.shape[-1]
    least = probabilities.new_empty(len(probabilities), 1)
    left: Tensor | slice = slice(None)  # the rows whose least kept probability is not known yet
    # Sorting a vocabulary can cost more than a small model's forward pass, and a few tokens mostly suffice.
    for size in (*(few for few in _FEW_TOKENS if few < vocabulary), vocabulary):
        top = probabilities[left].topk(size).values
        wanted = top_p[left] if isinstance(top_p, Tensor) else top_p
        reached = top.cumsum(-1)
        last = (reached - top < wanted).sum(-1, keepdim=True) - 1
        least[left] = top.gather(-1, last)
        missing = (reached[:, -1:] < wanted).squeeze(1)
        if size == vocabulary or not bool(missing.any()):
            break
        left = missing.nonzero().squeeze(1) if isinstance(left, slice) else left[missing]
    return (probabilities >= least).to(probabilities.dtype).mul_(probabilities)


def draw(probabilities: Tensor, uniform: Tensor) -> Tensor:
    """Return a token for each row, `[rows]`, by inverse CDF in vocabulary order.

    First a block of neighbouring tokens is found, then a token in it: one running sum over a whole
    vocabulary, as precise as it has to be, can take longer than the model's head.

    Args:
        probabilities: `[rows, vocabulary]`; they need not sum to 1. A token with none is never drawn.
        uniform: `[rows, 1]`, from 0 up to 1, in the precision in which sums are taken.
    """
    blocks = _block_sums(probabilities)
    place, rest = _inverse_cdf(blocks, uniform * blocks.sum(-1, keepdim=True, dtype=uniform.dtype))
    tokens = place * _DRAW_BLOCK + torch.arange(_DRAW_BLOCK, device=probabilities.device)
    vocabulary = probabilities.shape[-1]
    inside = probabilities.gather(1, tokens.clamp(max=vocabulary - 1)).where(tokens < vocabulary, 0)
    return (place * _DRAW_BLOCK + _inverse_cdf(inside, rest)[0]).squeeze(1)


def _block_sums(probabilities: Tensor) -> Tensor:
    """`[rows, blocks]`; the last block may be a short one."""
    whole = probabilities.shape[-1] // _DRAW_BLOCK
    end = whole * _DRAW_BLOCK
    sums = probabilities[:, :end].reshape(len(probabilities), whole, _DRAW_BLOCK).sum(-1)
    return torch.cat([sums, probabilities[:, end:].sum(-1, keepdim=True)], dim=1)


def _inverse_cdf(weights: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Return where the running sum over `[rows, n]` exceeds a target `[rows, 1]`, and what of it is left
    there.
    """
    cumulative = weights.cumsum(-1, dtype=target.dtype)
    # Rounding may point past the last place with any weight.
    last = (cumulative < cumulative[:, -1:]).sum(-1, keepdim=True)
    chosen = torch.minimum(torch.searchsorted(cumulative, target, right=True), last)
    before = cumulative.gather(1, (chosen - 1).clamp(min=0)).where(chosen > 0, 0)
    return chosen, target - before


def drawn_from(
    logits: Tensor, temperature: Tensor, limited: Tensor | None, top_p: Tensor, uniform: Tensor
) -> Tensor:
    """Return a token for each row, `[rows]`.

    Args:
        logits: `[rows, vocabulary]`, float32.
        temperature: `[rows, 1]`, none of them 0.
        limited: the rows that have a top-p; None = none has.
        top_p: theirs, `[limited, 1]`.
        uniform: as `draw` takes it.
    """
    below_best = logits - logits.amax(-1, keepdim=True)  # a small temperature overflows without that
    probabilities = below_best.div_(temperature).softmax(-1)
    if limited is not None and len(limited) == len(probabilities):
        probabilities = keep_top_p(probabilities, top_p)
    elif limited is not None:
        probabilities[limited] = keep_top_p(probabilities[limited], top_p)
    # In vocabulary order, not by probability: two nearly equal tokens that swap ranks change nothing.
    return draw(probabilities, uniform)


def _generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed % 2**63)


def _noise(generator: torch.Generator, dtype: torch.dtype) -> Tensor:
    return torch.rand(_NOISE_BLOCK, generator=generator, dtype=dtype)


class Noise:
    """The random numbers of one row, where rows are at different tokens; the same as `Sampler` draws."""

    def __init__(self, seed: int) -> None:
        self._generator = _generator(seed)
        self._drawn: list[float] = []

    def at(self, index: int) -> float:
        """Return the number for a token; tokens count from 0."""
        while index >= len(self._drawn):
            self._drawn += _noise(self._generator, torch.float64).tolist()
        return self._drawn[index]


class Sampler:
    """Chooses tokens by inverse CDF: one uniform number per row and token, from that row's own generator."""

    def __init__(self, samplings: Sequence[Sampling], seeds: Sequence[int], device: torch.device) -> None:
        """
        Args:
            samplings: one per row.
            seeds: one per row.
            device: where logits are.
        """
        self._device = device
        # In float32 the sum over a large vocabulary jitters enough to reach tokens that top-p has excluded.
        self._dtype = torch.float32 if device.type == "mps" else torch.float64
        self._generators = [_generator(seed) for seed in seeds]
        self._noise = torch.empty(len(seeds), 0)
        self._samplings = list(samplings)
        self._place()

    def _place(self) -> None:
        """Put the rows' temperatures and top-p where the logits are."""
        greedy = [each.temperature < LOWEST_TEMPERATURE for each in self._samplings]
        heat = [1.0 if cold else each.temperature for cold, each in zip(greedy, self._samplings, strict=True)]
        limited = [place for place, each in enumerate(self._samplings) if each.top_p < 1]
        self._all_greedy = all(greedy)
        self._greedy = torch.tensor(greedy, device=self._device) if any(greedy) else None
        self._temperature = torch.tensor(heat, device=self._device).unsqueeze(1)
        self._limited = torch.tensor(limited, device=self._device) if limited else None
        self._top_p = torch.tensor([self._samplings[place].top_p for place in limited]).unsqueeze(1)
        self._top_p = self._top_p.to(self._device)

    def _uniform(self, index: int) -> Tensor:
        """`[rows, 1]`, the random numbers of one token."""
        column = index % _NOISE_BLOCK
        if column == 0:
            drawn = [_noise(each, self._dtype) for each in self._generators]
            self._noise = torch.stack(drawn).to(self._device)
        return self._noise[:, column : column + 1]

    def pick(self, logits: Tensor, index: int) -> Tensor:
        """Return the token of each row, `[rows]`, from float32 logits `[rows, vocabulary]`; tokens count from
        0.
        """
        best = logits.argmax(-1) if self._greedy is not None else None
        if best is not None and self._all_greedy:
            return best
        drawn = drawn_from(logits, self._temperature, self._limited, self._top_p, self._uniform(index))
        return drawn if best is None or self._greedy is None else best.where(self._greedy, drawn)

    def select(self, keep: Tensor) -> None:
        """Go on with some of the rows only."""
        rows = keep.tolist()
        self._generators = [self._generators[row] for row in rows]
        self._samplings = [self._samplings[row] for row in rows]
        self._noise = self._noise[keep.to(self._noise.device)]
        self._place()


def plausible(logits: Tensor, plain: Tensor, plausibility: Tensor) -> Tensor:
    """Logits with −inf for every token that an unsteered model finds less plausible than is asked.

    The adaptive plausibility constraint of contrastive decoding (Li et al. 2023, arXiv:2210.15097).

    Args:
        logits: `[rows, vocabulary]`, of the steered rows.
        plain: `[rows, vocabulary]`, of their twins.
        plausibility: `[rows]`, the least share of the twin's best probability; 0 = any token may come.
    """
    least = plain.amax(-1, keepdim=True) + plausibility.log().unsqueeze(1)
    return logits.where(plain >= least, -torch.inf)
