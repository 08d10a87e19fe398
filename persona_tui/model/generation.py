"""One decode loop: a batch of prompts in, one step per token out.

1. The prompts are padded on the left and run once; the keys and values stay in a cache.
2. Each step picks one token for every row, and the next forward pass reads it.
3. Rows that have finished, or that nobody waits for, are dropped once they are an eighth of the batch.
4. One transfer per step brings tokens, log-probabilities and traces of all layers to the CPU.

A row that is guided has a twin at the end of the batch: same prompt, same tokens, nothing done to it. Its
probabilities say which tokens the row may choose from.
"""

from __future__ import annotations

import inspect
import math
import re
import secrets
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from typing import Any, Literal, Self

import torch
from torch import Tensor, nn
from transformers import Cache, DynamicCache, PreTrainedModel, cache_utils
from transformers.cache_utils import StaticLayer

from persona_tui.core.errors import GenerationError, MemoryShortage
from persona_tui.core.ranges import LOWEST_TEMPERATURE, NEW_TOKENS, TEMPERATURE, TOP_P
from persona_tui.model.blocks import context_length, device_of
from persona_tui.model.compiled import CompiledForward
from persona_tui.model.interventions import Interventions
from persona_tui.model.residual import NOT_FINITE, ResidualHooks, StopForward

Finish = Literal["stop", "length", "cancelled", "refused"]  # the last one: by a guard that watched
Poll = Callable[[], Interventions | None]

_NOISE_BLOCK = 64  # tokens for which a row's random numbers are drawn at once
_LIKELY_TOKENS = 256  # tokens that usually hold all of top-p's probability
_DRAW_BLOCK = 256  # neighbouring tokens that are drawn from as one before one of them is
_OUT_OF_MEMORY = re.compile(r"can't allocate memory|out of memory|ALLOC_FAILED", re.IGNORECASE)
_SEED_STEP = 1_000_003  # keeps the rows of neighbouring seeds apart
_DROPPED = 8  # rows go once one in so many has finished: each time, the whole cache is copied


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

    def with_seed(self) -> Self:
        """The same with a seed, drawn now if there is none, so that it can be done again."""
        return self if self.seed is not None else replace(self, seed=secrets.randbits(31))

    def row_seed(self, row: int) -> int:
        """The seed of one row when its request brings none."""
        return secrets.randbits(62) if self.seed is None else self.seed * _SEED_STEP + row


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


def keep_top_p(probabilities: Tensor, top_p: float | Tensor) -> Tensor:
    """Set to zero all but the most probable tokens that together reach `top_p`; `[rows, vocabulary]`.

    Args:
        probabilities: `[rows, vocabulary]`.
        top_p: for all rows, or `[rows, 1]`, one for each.
    """
    vocabulary = probabilities.shape[-1]
    # Sorting a vocabulary can cost more than a small model's forward pass, and a few tokens mostly suffice.
    for size in (min(_LIKELY_TOKENS, vocabulary), vocabulary):
        top = probabilities.topk(size).values
        reached = top.cumsum(-1)
        if size == vocabulary or bool((reached[:, -1:] >= top_p).all()):
            break
    last = (reached - top < top_p).sum(-1, keepdim=True) - 1
    return probabilities.where(probabilities >= top.gather(-1, last), 0)


def draw(probabilities: Tensor, uniform: Tensor) -> Tensor:
    """A token for each row, `[rows]`, by inverse CDF in vocabulary order.

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
    """Where the running sum over `[rows, n]` exceeds a target `[rows, 1]`, and what of it is left there."""
    cumulative = weights.cumsum(-1, dtype=target.dtype)
    # Rounding may point past the last place with any weight.
    last = (cumulative < cumulative[:, -1:]).sum(-1, keepdim=True)
    chosen = torch.minimum(torch.searchsorted(cumulative, target, right=True), last)
    before = cumulative.gather(1, (chosen - 1).clamp(min=0)).where(chosen > 0, 0)
    return chosen, target - before


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
        self._generators = [torch.Generator().manual_seed(seed % 2**63) for seed in seeds]
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
            drawn = [torch.rand(_NOISE_BLOCK, generator=each, dtype=self._dtype) for each in self._generators]
            self._noise = torch.stack(drawn).to(self._device)
        return self._noise[:, column : column + 1]

    def pick(self, logits: Tensor, index: int) -> Tensor:
        """The token of each row, `[rows]`, from float32 logits `[rows, vocabulary]`; tokens count from 0."""
        best = logits.argmax(-1) if self._greedy is not None else None
        if best is not None and self._all_greedy:
            return best
        below_best = logits - logits.amax(-1, keepdim=True)  # a small temperature overflows without that
        probabilities = below_best.div_(self._temperature).softmax(-1)
        if self._limited is not None and len(self._limited) == len(probabilities):
            probabilities = keep_top_p(probabilities, self._top_p)
        elif self._limited is not None:
            probabilities[self._limited] = keep_top_p(probabilities[self._limited], self._top_p)
        # In vocabulary order, not by probability: two nearly equal tokens that swap ranks change nothing.
        drawn = draw(probabilities, self._uniform(index))
        return drawn if best is None or self._greedy is None else best.where(self._greedy, drawn)

    def select(self, keep: Tensor) -> None:
        """Go on with some of the rows only."""
        rows = keep.tolist()
        self._generators = [self._generators[row] for row in rows]
        self._samplings = [self._samplings[row] for row in rows]
        self._noise = self._noise[keep.to(self._noise.device)]
        self._place()


def check_fits(prompt_tokens: int, context: int | None) -> None:
    """Raise a GenerationError when a prompt leaves no room for a single token."""
    if context is not None and prompt_tokens >= context:
        raise GenerationError(
            f"The prompt has {prompt_tokens} tokens, but the model's context holds {context}: "
            "shorten the conversation."
        )


@contextmanager
def clear_memory_errors() -> Iterator[None]:
    """Turn running out of memory into a MemoryShortage that says what to do."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not isinstance(error, (torch.OutOfMemoryError, MemoryError)) and not _OUT_OF_MEMORY.search(
            str(error)
        ):
            raise
        # Without its cause, whose traceback would hold on to what must be freed before the next attempt.
        problem = MemoryShortage(
            "Out of memory: use a smaller batch, a shorter conversation or quantization."
        )
    else:
        return
    raise problem


def accepted_arguments(model: PreTrainedModel) -> frozenset[str]:
    """The names that a model's forward pass takes; they differ a little between architectures."""
    return frozenset(inspect.signature(model.forward).parameters)


_CACHES = ("cache", "past_key_values", "cache_params", "state")


def cache_argument(module: nn.Module) -> str:
    """Return the name under which a forward pass takes its cache; newer transformers has one for all."""
    names = inspect.signature(module.forward).parameters
    return next((name for name in _CACHES if name in names), _CACHES[0])


def returned_cache(output: Any) -> Any:
    """Return the cache that a forward pass made by itself; None if there is none."""
    known = output.keys() if isinstance(output, Mapping) else ()
    return next((output[name] for name in _CACHES if name in known and output[name] is not None), None)


class Overflow(GenerationError):
    """The numbers of some rows of a batch overflowed.

    Attributes:
        rows: which.
    """

    def __init__(self, rows: Sequence[int]) -> None:
        super().__init__(NOT_FINITE)
        self.rows = tuple(rows)


def check_finite(logits: Tensor) -> None:
    """Raise an Overflow if no token can be chosen by some row of logits, `[rows, vocabulary]`."""
    # A token that cannot come has -inf; NaN is found by both. Where a norm met infinity, all are equal.
    low, high = logits.aminmax(dim=-1)
    good = high.isfinite() & (low < high)
    if not bool(good.all()):
        raise Overflow([place for place, each in enumerate(good.tolist()) if not each])


def _likelihoods(logits: Tensor, tokens: Tensor) -> Tensor:
    """The tokens' log-probabilities and the entropies of the choice, `[rows, 2]`."""
    logprobs = logits.log_softmax(-1)
    chosen = logprobs.gather(1, tokens.unsqueeze(1))
    # A token that cannot come has a log-probability of -inf, and adds nothing to the entropy.
    logprobs = logprobs.clamp_(min=torch.finfo(logprobs.dtype).min)
    entropies = -(logprobs.exp().mul_(logprobs)).sum(-1, keepdim=True)
    return torch.cat([chosen, entropies], dim=1)


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


# What layers of a cache keep row by row. Others keep more, or in another shape. Older releases of
# transformers lack some of them.
_BY_ROW = tuple(
    getattr(cache_utils, name)
    for name in (
        "DummyLayer",
        "DynamicLayer",
        "DynamicSlidingWindowLayer",
        "StaticLayer",
        "StaticSlidingWindowLayer",
        "LinearAttentionLayer",
        "LinearAttentionAndFullAttentionLayer",
        "LinearAttentionAndSlidingWindowAttentionLayer",
    )
    if hasattr(cache_utils, name)
)


def _append(cache: Cache, other: Cache) -> None:
    """Add another cache's rows, of as many positions, to a cache."""
    for own, more in zip(cache.layers, other.layers, strict=True):
        for name in ("keys", "values"):
            if (tensor := getattr(own, name, None)) is not None:
                joined = torch.cat([tensor, getattr(more, name)])
                if isinstance(own, StaticLayer):
                    torch._dynamo.mark_static_address(joined)  # as the layer does, for CUDA graphs
                setattr(own, name, joined)
        for name in ("conv_states", "recurrent_states"):
            states, others = getattr(own, name, {}), getattr(more, name, {})
            states |= {
                key: torch.cat([each, others[key]]) for key, each in states.items() if each is not None
            }


def _thinks(ids: Sequence[int], thoughts: tuple[int, int] | None) -> bool:
    """Whether thoughts were begun and not ended."""
    last = next((each for each in reversed(ids) if thoughts is not None and each in thoughts), None)
    return thoughts is not None and last == thoughts[0]


class _Decoding:
    """The state of one batch between two steps."""

    def __init__(
        self,
        model: PreTrainedModel,
        batch: Batch,
        sampling: Sampling,
        hooks: ResidualHooks,
        likelihoods: bool,
        compiled: CompiledForward | None,
        own_cache: bool,
    ) -> None:
        self.own_cache = own_cache
        self.model, self.batch, self.hooks, self.likelihoods = model, batch, hooks, likelihoods
        self.compiled = compiled
        self.device = device_of(model.get_input_embeddings())
        self.context = context_length(model)
        self.accepted = accepted_arguments(model)
        self.rows = list(range(len(batch.prompts)))
        samplings = batch.samplings or [sampling] * len(batch.prompts)
        self.limits = [
            self._limit(len(prompt), each.max_new_tokens)
            for prompt, each in zip(batch.prompts, samplings, strict=True)
        ]
        self.outputs: list[list[int]] = [[] for _ in batch.prompts]
        self.done = [False] * len(self.rows)  # by place in the present batch, as are the tensors below
        self.twins: list[int] = []  # whose twins are the rows after those, by their place
        self.index = 0
        self.spoken: list[bool] = []
        self.thinking = [_thinks(prompt, batch.thoughts) for prompt in batch.prompts]  # of all rows
        self.sampler = Sampler(samplings, batch.seeds, self.device)
        self._prepare_prompts(max(self.limits))

    def _limit(self, prompt_tokens: int, wanted: int) -> int:
        check_fits(prompt_tokens, self.context)
        return wanted if self.context is None else min(wanted, self.context - prompt_tokens)

    def _prepare_prompts(self, new_tokens: int) -> None:
        lengths = torch.tensor([len(prompt) for prompt in self.batch.prompts])
        width = int(lengths.max())
        padded = [
            [self.batch.pad_token] * (width - len(prompt)) + list(prompt) for prompt in self.batch.prompts
        ]
        self.input = torch.tensor(padded, device=self.device)
        # Of its own, the model makes one in its first pass.
        self.cache: Cache | None = None if self.own_cache else DynamicCache(config=self.model.config)
        positions = torch.arange(width)[None] - (width - lengths)[:, None]
        self.positions = positions.clamp(min=0).to(self.device)
        self.width = width
        # Without padding no mask is needed, and models then use their fastest attention.
        self.mask: Tensor | None = None
        if self.compiled is not None:
            self.cache = self.compiled.cache(width + new_tokens + 1)
            later = torch.zeros(len(lengths), self.compiled.room(width + new_tokens + 1) - width).long()
            self.mask = torch.cat([(positions >= 0).long(), later], dim=1).to(self.device)
        elif int(lengths.min()) < width:
            written = torch.ones(len(lengths), new_tokens + 1, dtype=torch.long)
            self.mask = torch.cat([(positions >= 0).long(), written], dim=1).to(self.device)
        self.row_ids = torch.tensor(self.rows)
        if self.hooks.capture is not None:
            weights = self._span_weights(width) if self.batch.watch is not None else None
            last = torch.full((len(lengths),), width - 1)
            self.hooks.capture.watch(self.row_ids, weights, last, self._padded_parts(width))

    def _padded_parts(self, width: int) -> list[list[range]]:
        """The parts of the prompts that a watch reads, as places in the padded prompts."""
        shifts = (width - len(prompt) for prompt in self.batch.prompts)
        return [
            [range(part.start + shift, part.stop + shift) for part in parts]
            for shift, parts in zip(shifts, self.batch.parts, strict=False)
        ]

    def _span_weights(self, width: int) -> Tensor:
        """`[rows, width]`, 1 at the positions of the prompts that a watch reads."""
        weights = torch.zeros(len(self.batch.prompts), width)
        for row, (prompt, span) in enumerate(zip(self.batch.prompts, self.batch.spans, strict=True)):
            padding = width - len(prompt)
            weights[row, padding + span.start : padding + span.stop] = 1
        return weights

    @torch.inference_mode()
    def guide(self) -> None:
        """Give a twin to each row that is guided and has none."""
        limits = self.hooks.plausibility
        new = [
            place
            for place, row in enumerate(self.rows)
            if limits[row] > 0 and place not in self.twins and not self.done[place]
        ]
        if not new:
            return
        there = torch.tensor(new, device=self.device)
        if self.index:
            self._read_so_far(new)
        self.input = torch.cat([self.input, self.input[there]])
        self.positions = torch.cat([self.positions, self.positions[there]])
        self.mask = None if self.mask is None else torch.cat([self.mask, self.mask[there]])
        self.twins += new
        self.hooks.leave_last(len(self.twins))

    def _read_so_far(self, places: list[int]) -> None:
        """Add rows to the cache that have read what those in some places have, with nothing done to them."""
        if (
            self.own_cache
            or self.cache is None
            or any(type(layer) not in _BY_ROW for layer in self.cache.layers)
        ):
            raise GenerationError(
                "With this model the guide cannot begin in the middle of a reply: have the reply written "
                "again, or set plausibility to 0."
            )
        read = self.width - 1
        ids = []
        for place in places:
            row = self.rows[place]
            text = [*self.batch.prompts[row], *self.outputs[row][:-1]]
            ids.append([self.batch.pad_token] * (read - len(text)) + text)
        padding = [read - len(self.batch.prompts[self.rows[each]]) - self.index + 1 for each in places]
        positions = torch.arange(read)[None] - torch.tensor(padding)[:, None]
        if self.compiled is not None:
            cache: Cache = self.compiled.cache(self.mask.shape[1] if self.mask is not None else read)
        else:
            cache = DynamicCache(config=self.model.config)
        mask = None if self.mask is None else self.mask[torch.tensor(places, device=self.device), :read]
        inputs = torch.tensor(ids, device=self.device)
        self.model(**self._arguments(inputs, positions.clamp(min=0).to(self.device), mask, cache))
        _append(self.cache, cache)

    def _forward(self) -> Tensor:
        """Run the model on the present input; its last position's logits, float32 `[rows, vocabulary]`."""
        compiled = self.compiled if self.index else None  # not for the prompts
        mask = self.mask if compiled is not None or self.mask is None else self.mask[:, : self.width]
        arguments = self._arguments(self.input, self.positions, mask, self.cache)
        with self.hooks:
            if compiled is not None:
                logits: Tensor = compiled(**arguments)
            else:
                output = self.model(**arguments)
                logits = output.logits
                if self.own_cache:
                    self.cache = returned_cache(output)
        return logits[:, -1].to(device=self.device, dtype=torch.float32)

    def _arguments(
        self, ids: Tensor, positions: Tensor, mask: Tensor | None, cache: Cache | None
    ) -> dict[str, Any]:
        """What a forward pass takes, by name; of the logits only the last position's are wanted."""
        arguments: dict[str, Any] = {"input_ids": ids, "use_cache": True}
        if cache is not None:
            arguments[cache_argument(self.model)] = cache
        if mask is not None:
            arguments["attention_mask"] = mask
        if "position_ids" in self.accepted:
            arguments["position_ids"] = positions
        if "logits_to_keep" in self.accepted:
            arguments["logits_to_keep"] = 1
        return arguments

    @torch.inference_mode()
    def advance(self) -> Step:
        """One forward pass and one token for every row."""
        everyone = self._forward()
        self._check_finite(everyone)
        logits, plain = everyone[: len(self.rows)], everyone[len(self.rows) :]
        tokens = self.sampler.pick(self._allowed(logits, plain), self.index)
        likelihoods = _likelihoods(logits, tokens) if self.likelihoods else logits.new_zeros(len(tokens), 2)
        nats = self._nats(likelihoods[:, 0], plain, tokens)
        traces = self.hooks.traces(self.device, len(tokens))
        # Token ids are exact in float32 up to 16 million, so that everything travels at once.
        seen = torch.cat([tokens.unsqueeze(1).float(), likelihoods, nats, traces], dim=1).tolist()
        finish = [self._finish(place, int(values[0])) for place, values in enumerate(seen)]
        step = self._step(seen, finish)
        if self.batch.likeliest:
            step = replace(step, likeliest=self._likeliest(logits))
        if self.batch.watch is not None:
            step = replace(step, **self._read(finish))
        self._go_on(tokens, finish)
        return step

    def _check_finite(self, everyone: Tensor) -> None:
        try:
            check_finite(everyone)
        except Overflow as overflow:
            places = [*range(len(self.rows)), *self.twins]
            raise Overflow([self.rows[places[each]] for each in overflow.rows]) from None

    def _likeliest(self, logits: Tensor) -> list[list[tuple[int, float]]]:
        """The likeliest tokens of the rows that are not done, and their log-probabilities."""
        places = [place for place, done in enumerate(self.done) if not done]
        best = logits[places].log_softmax(-1).topk(min(self.batch.likeliest, logits.shape[-1]))
        return [
            list(zip(ids, values, strict=True))
            for ids, values in zip(best.indices.tolist(), best.values.tolist(), strict=True)
        ]

    def _allowed(self, logits: Tensor, plain: Tensor) -> Tensor:
        """The logits of the rows, −inf where a row's guide does not allow a token."""
        limits = torch.tensor([self.hooks.plausibility[self.rows[place]] for place in self.twins])
        if not limits.any():
            return logits
        there = torch.tensor(self.twins, device=self.device)
        return logits.index_copy(0, there, plausible(logits[there], plain, limits.to(self.device)))

    def _nats(self, logprobs: Tensor, plain: Tensor, tokens: Tensor) -> Tensor:
        """`[rows, 1]`: the tokens' log-probabilities less those under their twins; NaN where none runs."""
        nats = torch.full_like(logprobs, torch.nan)
        if self.twins and self.likelihoods:
            there = torch.tensor(self.twins, device=self.device)
            chosen = plain.log_softmax(-1).gather(1, tokens[there].unsqueeze(1)).squeeze(1)
            nats[there] = logprobs[there] - chosen
        return nats.unsqueeze(1)

    def _read(self, finish: list[Finish | None]) -> dict[str, Any]:
        """What a watch sees after the present pass: means, and in the first one the last prompt token."""
        watch, capture = self.batch.watch, self.hooks.capture
        if watch is None or capture is None:
            return {}
        if self.index == 0:
            prompt = {
                "read": capture.means(),
                "read_last": capture.picked(),
                "read_parts": capture.part_means(),
            }
            capture.reset()
            if watch.reply_layers is not None:
                self.hooks.narrow_capture(watch.reply_layers)
            return prompt
        due = watch.due(self.index) or any(reason is not None for reason in finish)
        return {"read": capture.means()} if due else {}

    def _finish(self, place: int, token: int) -> Finish | None:
        """Take in one row's new token; why the row ends with it, if it does."""
        if self.done[place]:
            return None
        if token in self.batch.end_tokens:
            return "stop"
        output = self.outputs[self.rows[place]]
        output.append(token)
        if self.batch.ended is not None and self.batch.ended(self.rows[place], output):
            return "stop"
        return "length" if len(output) >= self.limits[self.rows[place]] else None

    def _step(self, seen: list[list[float]], finish: list[Finish | None]) -> Step:
        places = [place for place, done in enumerate(self.done) if not done]
        return Step(
            index=self.index,
            rows=[self.rows[place] for place in places],
            tokens=[int(seen[place][0]) for place in places],
            logprobs=[seen[place][1] for place in places],
            entropies=[seen[place][2] for place in places],
            lifts=[seen[place][4] for place in places],
            projections=[seen[place][5:] for place in places],
            finish=[finish[place] for place in places],
            nats=[None if math.isnan(seen[place][3]) else seen[place][3] for place in places],
        )

    def _go_on(self, tokens: Tensor, finish: list[Finish | None]) -> None:
        """Make the tokens just written the next pass' input."""
        spoken = [
            not done and len(self.outputs[row]) > self.index and self._speaks(row)
            for row, done in zip(self.rows, self.done, strict=True)
        ]
        finished_before = self.done
        self.done = [done or reason is not None for done, reason in zip(self.done, finish, strict=True)]
        self.index += 1
        self.width += 1
        self.input = torch.cat([tokens, tokens[self.twins]]).unsqueeze(1)
        self.positions = self.positions[:, -1:] + 1
        if self.context is not None:
            # Only rows that have finished can get there; they stay within what the model can index.
            self.positions = self.positions.clamp(max=self.context - 1)
        if self.compiled is not None and self.mask is not None:
            self.mask[:, self.width - 1] = 1
        elif not self.own_cache and _DROPPED * sum(finished_before) >= len(finished_before):
            keep = [place for place, done in enumerate(finished_before) if not done]
            self._select(keep)
            spoken = [spoken[place] for place in keep]
        self._watch(spoken)

    def _speaks(self, row: int) -> bool:
        """Whether a row's newest token is not a thought, and no tag around one."""
        if self.batch.thoughts is None:
            return True
        begin, end = self.batch.thoughts
        token = self.outputs[row][-1]
        was = self.thinking[row]
        self.thinking[row] = token != end and (was or token == begin)
        return not was and token not in (begin, end)

    def leave(self) -> None:
        """Be done with the rows that were stopped."""
        if self.batch.stops:
            stopped = [each is not None and each.is_set() for each in self.batch.stops]
            self.done = [done or stopped[row] for done, row in zip(self.done, self.rows, strict=True)]

    def _select(self, keep: list[int]) -> None:
        """Go on with some of the rows only. A row stays for one pass after its last token, which reads it."""
        twins = [number for number, place in enumerate(self.twins) if place in keep]
        everyone = torch.tensor(keep + [len(self.rows) + number for number in twins])
        self.twins = [keep.index(self.twins[number]) for number in twins]
        self.hooks.leave_last(len(twins))
        self.rows = [self.rows[place] for place in keep]
        self.done = [self.done[place] for place in keep]
        self.row_ids = torch.tensor(self.rows)
        kept = torch.tensor(keep)
        self.sampler.select(kept)
        self.hooks.select(kept)
        there = everyone.to(self.device)
        self.input, self.positions = self.input[there], self.positions[there]
        self.mask = None if self.mask is None else self.mask[there]
        assert self.cache is not None
        self.cache.reorder_cache(there)  # type: ignore[arg-type]

    def _watch(self, spoken: list[bool]) -> None:
        """Count those of the tokens just written, which the next pass reads, that are part of a response."""
        if self.hooks.capture is None:
            return
        if spoken != self.spoken:
            self.spoken = spoken
            self.weights = torch.tensor(spoken, dtype=torch.float32).unsqueeze(1)
        self.hooks.capture.watch(self.row_ids, self.weights)

    @torch.inference_mode()
    def read_last_tokens(self) -> None:
        """Feed the tokens that ended the rows, so that a capture has seen every token of every response.

        Up to the last layer that is captured: nobody needs what would come next.
        """
        if not any(self.spoken):
            return
        if self.compiled is None:
            self.hooks.stop_after_capture()
        with suppress(StopForward):
            self._forward()


def decode(
    model: PreTrainedModel,
    batch: Batch,
    sampling: Sampling,
    hooks: ResidualHooks,
    poll: Poll | None = None,
    stop: threading.Event | None = None,
    likelihoods: bool = True,
    compiled: CompiledForward | None = None,
    own_cache: bool = False,
) -> Iterator[Step]:
    """Write one response per prompt, a step per token.

    Args:
        model: any decoder-only causal language model, on its device(s).
        batch: the prompts and their seeds.
        sampling: how tokens are chosen.
        hooks: what is done to the residual stream, what is captured and traced.
        poll: asked before every token; what it returns (unless None) is applied from that token on. A
            row gets its twin when it is first guided.
        stop: when set, no further token is written.
        likelihoods: whether the steps have log-probabilities and entropies; with a large vocabulary and many
            rows they take time.
        compiled: the model's compiled step, if it is to be used; the hooks are then `fixed`.
        own_cache: whether the model makes its cache itself: it keeps something else than keys and values.

    Raises:
        GenerationError: a prompt does not fit the context, memory ran out, or numbers overflowed.
    """
    with clear_memory_errors():
        state = _Decoding(model, batch, sampling, hooks, likelihoods, compiled, own_cache)
    while not (stop is not None and stop.is_set()):
        state.leave()
        if all(state.done):
            break
        change = poll() if poll is not None else None
        with clear_memory_errors():
            if change is not None:
                hooks.apply(change)
            if state.index == 0 or change is not None:
                state.guide()
            step = state.advance()
        yield step
    if hooks.capture is not None and batch.watch is None:  # a watch costs no pass of its own
        with clear_memory_errors():
            state.read_last_tokens()
