"""Fitting added vectors so that a model says without a system prompt what it says with one.

The teacher is the model with the system prompt, the student the same model without it and with one vector
added to the residual stream at every layer of a band. Over the tokens of replies that are there already, the
divergence of the student's next-token distribution from the teacher's is made small by gradient descent on
the vectors alone: context distillation (Askell et al. 2021, "A General Language Assistant as a Laboratory for
Alignment", section 2.2; Snell et al. 2022, "Learning by Distilling Context") into a steering vector rather
than into the weights.

A vector recovers only part of what a system prompt does, so the teacher may exaggerate: where the system
prompt moves a token's log-probability, it moves `emphasis` times as far (context-aware decoding, Shi et al.
2023, arXiv:2305.14739), among the tokens that the prompted model itself finds plausible (Li et
al. 2023, "Contrastive Decoding", section 3.2). So the student learns to be loud and fluent at once; vectors
that were fitted to the plain teacher and are added twice are loud only.

Loud vectors drift: a reply opens on the question and goes over to what the persona always talks about. So the
teacher exaggerates the question as well. Where a token is likelier after this question than after that of
another lesson, both without the system prompt, it becomes likelier still, by `focus` times that difference:
context-aware decoding once more, with the question as the context.

Replies that the teacher wrote do not show where the student's own lead. So it also learns from what it wrote
itself. There the divergence is taken the other way round: what counts is what the student finds likely and
the teacher does not (on-policy distillation: Agarwal et al. 2024, arXiv:2306.13649; Gu et al. 2024,
arXiv:2306.08543).

What the blocks below the band make of a lesson never changes, since nothing is added there: it is computed
once and kept, and every pass starts above it.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from statistics import fmean
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedModel

from persona_tui.core.errors import GenerationError
from persona_tui.model.architecture import (
    NOT_FINITE,
    clear_memory_errors,
    device_of,
    find_decoder,
    text_config,
)
from persona_tui.model.batching import MemoryLimit
from persona_tui.model.forced import Passage, padded, response_logits
from persona_tui.model.residual import StopForward

# Of the teacher's distribution the likeliest tokens are kept one by one, and what is left as one: together
# they have nearly all of what a system prompt changes, in a thousandth of the memory.
_KEPT = 64
_PLAUSIBLE = (
    7.0  # nats below its likeliest token: what the prompted model finds less likely, nobody exaggerates
)
_NEVER = -30.0  # log-probability of a token that the teacher rules out
_UNLIKELY = -10.0  # and the least that counts where the student wrote the replies
_ROWS = 3  # lessons in one step
_BETAS = (0.9, 0.99)  # a pass over the lessons has few steps, too few for Adam's usual 0.999


@dataclass(frozen=True)
class Lesson:
    """A reply as the teacher reads it, after the system prompt, and as the student does, without one.

    Attributes:
        taught: after the system prompt and the question.
        bare: after the question.
        strange: after another question; what the teacher's focus is about.
    """

    taught: Passage
    bare: Passage
    strange: Passage


@dataclass(frozen=True)
class _Target:
    """What the teacher expects after every token: its likeliest tokens, `[tokens, kept]`, and the rest."""

    ids: Tensor
    logprobs: Tensor
    rest: Tensor


class Distillation:
    """Lessons for one model; each pass over them improves the vectors.

    Attributes:
        emphasis: how far the teacher goes: 1 = as far as the system prompt does, 2 = twice as far.
        focus: how much more than the model itself it is led by the question: 0 = as much, 1 = twice as much.
        own: whether the student wrote the replies.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        blocks: nn.ModuleList,
        lessons: Sequence[Lesson],
        emphasis: float = 1.0,
        focus: float = 0.0,
        own: bool = False,
    ) -> None:
        """
        Args:
            model: whose weights stay as they are.
            blocks: its decoder blocks.
            lessons: what it learns from.
            emphasis: see above.
            focus: see above.
            own: see above.
        """
        self._model = model
        self._blocks = blocks
        self._lessons = lessons
        self.emphasis = emphasis
        self.focus = focus
        self.own = own
        self._targets: dict[int, _Target] = {}
        self._first = -1  # the first block that a vector is added to
        self._below: dict[int, Tensor] = {}  # by lesson `[tokens, hidden]`: what that block makes of it
        # Not where higher blocks take more from lower ones than hidden states: their keys and values.
        self._keeps = not getattr(text_config(model), "num_kv_shared_layers", 0)
        self._memory = MemoryLimit()

    def improved(
        self,
        vectors: Mapping[int, Tensor],
        rate: float,
        seed: int,
        without: Mapping[int, Tensor] | None = None,
        on_step: Callable[[int], None] | None = None,
    ) -> tuple[dict[int, Tensor], float]:
        """Go over all lessons once, in an order that the seed decides.

        Args:
            vectors: by layer, `[hidden]`, what is added at every position.
            rate: how far a step moves a vector: at most about this share of the vectors' mean length.
            seed: decides the order; the same seed gives the same vectors.
            without: by layer, a unit vector `[hidden]` that the vectors stay orthogonal to.
            on_step: told after every step how many lessons it was about; may raise, to give up.

        Returns:
            The vectors, float32 on the CPU, and the mean divergence met on the way, nats per token.

        Raises:
            GenerationError: the model's numbers overflowed, it computes no gradients, or memory ran out.
        """
        lent = {
            layer: vector.to(device=device_of(self._blocks[layer]), dtype=torch.float32, copy=True)
            for layer, vector in vectors.items()
        }
        length = fmean(float(each.norm()) for each in lent.values())
        learned = {layer: each.requires_grad_() for layer, each in lent.items()}
        if self._first != min(learned):
            self._first = min(learned)
            self._below.clear()
        step = rate * length / math.sqrt(next(iter(lent.values())).numel())
        optimizer = torch.optim.Adam(list(learned.values()), lr=step, betas=_BETAS)
        order = list(range(len(self._lessons)))
        random.Random(seed).shuffle(order)
        met = 0.0
        with _frozen(self._model):
            for start in range(0, len(order), _ROWS):
                items = order[start : start + _ROWS]
                met += self._step(items, learned, optimizer)
                _project(learned, without or {})
                if on_step is not None:
                    on_step(len(items))
        return {layer: each.detach().cpu() for layer, each in learned.items()}, met / max(1, len(order))

    def _step(
        self, items: Sequence[int], learned: Mapping[int, Tensor], optimizer: torch.optim.Optimizer
    ) -> float:
        """Move the vectors once; the divergence that was found, summed over lessons."""
        lengths = [len(lesson.bare.ids) for lesson in self._lessons]
        met, slopes = 0.0, [torch.zeros_like(each) for each in learned.values()]
        # In pieces, where memory is short: gradients add up.
        for _, (found, parts) in self._memory.run(items, lengths, lambda piece: self._slopes(piece, learned)):
            met += found
            for slope, part in zip(slopes, parts, strict=True):
                slope.add_(part, alpha=1 / len(items))
        for each, slope in zip(learned.values(), slopes, strict=True):
            each.grad = slope
        optimizer.step()
        return met

    def _slopes(
        self, items: Sequence[int], learned: Mapping[int, Tensor]
    ) -> tuple[float, tuple[Tensor, ...]]:
        """Return the divergence summed over some lessons, and its gradient at every vector."""
        targets = [self._ask(item) for item in items]
        with torch.enable_grad(), _added(self._blocks, learned), clear_memory_errors():
            rows = self._bare_logits(items)
            measure = _excess if self.own else _divergence
            found = [measure(target, row) for target, row in zip(targets, rows, strict=True)]
            total = torch.stack([each.to(found[0].device) for each in found]).sum()
            if not total.isfinite():
                raise GenerationError(NOT_FINITE)
            if not total.requires_grad:
                raise GenerationError("This model computes no gradients.")
            return float(total.detach()), torch.autograd.grad(total, list(learned.values()))

    def _bare_logits(self, items: Sequence[int]) -> list[Tensor]:
        """Return what the model expects in some lessons without the system prompt."""
        passages = [self._lessons[item].bare for item in items]
        if self._keeps and any(item not in self._below for item in items):
            self._keep(items)
        if not self._keeps:
            return response_logits(self._model, passages)
        kept = pad_sequence([self._below[item] for item in items], batch_first=True)
        with _started(self._blocks, self._first, kept):
            return response_logits(self._model, passages)

    @torch.no_grad()
    def _keep(self, items: Sequence[int]) -> None:
        """Run the blocks up to the first steered one, without what is added to it."""

        def keep(module: nn.Module, args: Any, output: Any) -> None:
            # Blocks of a model's own code may return a tuple, Gemma 3n's several streams.
            self._keeps = isinstance(output, Tensor) and output.shape[:-1] == tokens.shape
            if self._keeps:
                for row, item in zip(output, items, strict=True):
                    self._below[item] = row[: len(self._lessons[item].bare.ids)].clone()
            raise StopForward

        tokens = padded(
            [self._lessons[item].bare for item in items], device_of(self._model.get_input_embeddings())
        )
        # Before what a pass over the lessons adds to the block's output.
        handle = self._blocks[self._first].register_forward_hook(keep, prepend=True)
        try:
            find_decoder(self._model)(input_ids=tokens, use_cache=False)
        except StopForward:
            pass
        finally:
            handle.remove()

    @torch.no_grad()
    def _ask(self, item: int) -> _Target:
        """Return what the teacher expects in a lesson: asked once, always together with the same other
        lessons.
        """
        if item not in self._targets:
            first = item - item % _ROWS
            group = range(first, min(first + _ROWS, len(self._lessons)))
            lengths = [len(lesson.taught.ids) for lesson in self._lessons]
            for piece, targets in self._memory.run(group, lengths, self._taught):
                self._targets.update(zip(piece, targets, strict=True))
        return self._targets[item]

    def _taught(self, items: Sequence[int]) -> list[_Target]:
        with clear_memory_errors():
            lessons = [self._lessons[item] for item in items]
            taught = response_logits(self._model, [each.taught for each in lessons])
            if self.emphasis == 1 and not self.focus:
                return [_target(each.float().log_softmax(-1)) for each in taught]
            bare = self._bare_logits(items)
            strange = bare
            if self.focus:
                strange = response_logits(self._model, [each.strange for each in lessons])
            return [
                _target(self._exaggerated(*(side.float().log_softmax(-1) for side in sides)))
                for sides in zip(taught, bare, strange, strict=True)
            ]

    def _exaggerated(self, taught: Tensor, bare: Tensor, strange: Tensor) -> Tensor:
        """Return the log-probabilities of a teacher of such emphasis and focus.

        Args:
            taught: log-probabilities after the system prompt and the question.
            bare: the same after the question.
            strange: the same after another question.
        """
        moved = bare + self.emphasis * (taught - bare) + self.focus * (bare - strange)
        unlikely = taught < taught.amax(-1, keepdim=True) - _PLAUSIBLE
        return moved.masked_fill(unlikely, -math.inf).log_softmax(-1)


def _target(logprobs: Tensor) -> _Target:
    """Return what of a teacher's log-probabilities is kept."""
    top = logprobs.topk(min(_KEPT, logprobs.shape[-1] - 1))
    # A token that the teacher rules out must count nothing; 0 times infinity is no number.
    return _Target(top.indices, top.values.clamp(min=_NEVER), _rest(top.values))


def _rest(logprobs: Tensor) -> Tensor:
    """Return the logarithm of what is left beside some tokens, `[tokens]`; never of nothing."""
    left = 1 - logprobs.exp().sum(-1)
    return left.clamp(min=1e-6).log()


def _divergence(target: _Target, logits: Tensor) -> Tensor:
    """Kullback–Leibler divergence of the student from the teacher, mean over tokens, nats."""
    logits = logits.float()
    ids = target.ids.to(logits.device)
    chosen = logits.gather(-1, ids) - logits.logsumexp(-1, keepdim=True)
    theirs, rest = target.logprobs.to(logits.device), target.rest.to(logits.device)
    kept = (theirs.exp() * (theirs - chosen)).sum(-1)
    return (kept + rest.exp() * (rest - _rest(chosen))).mean()


def _excess(target: _Target, logits: Tensor) -> Tensor:
    """The divergence of the teacher from the student, mean over tokens, nats."""
    logits = logits.float()
    ids = target.ids.to(logits.device)
    chosen = logits.gather(-1, ids) - logits.logsumexp(-1, keepdim=True)
    # What the teacher rules out weighs much, but not all there is.
    theirs = target.logprobs.to(logits.device).clamp(min=_UNLIKELY)
    rest, ours = target.rest.to(logits.device).clamp(min=_UNLIKELY), _rest(chosen)
    return ((chosen.exp() * (chosen - theirs)).sum(-1) + ours.exp() * (ours - rest)).mean()


@contextmanager
def _added(blocks: nn.ModuleList, vectors: Mapping[int, Tensor]) -> Iterator[None]:
    """Within, the vectors are added to the output of their blocks, so that gradients reach them."""

    def adder(vector: Tensor) -> Callable[..., Any]:
        def add(module: nn.Module, args: Any, output: Any) -> Any:
            hidden = output[0] if isinstance(output, tuple) else output
            changed = (hidden + vector).to(hidden.dtype)
            return (changed, *output[1:]) if isinstance(output, tuple) else changed

        return add

    handles = [blocks[layer].register_forward_hook(adder(vector)) for layer, vector in vectors.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def _started(blocks: nn.ModuleList, first: int, hidden: Tensor) -> Iterator[None]:
    """Within, a pass starts at the output of block `first`: blocks below compute nothing."""

    def passed_on(*args: Any, **kwargs: Any) -> Any:
        return args[0] if args else kwargs["hidden_states"]

    # A model that is spread over devices has forwards of its own on the blocks.
    before = [vars(block).get("forward") for block in blocks[: first + 1]]
    for layer, block in enumerate(blocks[: first + 1]):
        block.forward = passed_on if layer < first else lambda *args, **kwargs: hidden
    try:
        yield
    finally:
        for block, own in zip(blocks, before, strict=False):
            if own is None:
                del block.forward
            else:
                block.forward = own


@contextmanager
def _frozen(model: nn.Module) -> Iterator[None]:
    """Within, no gradient is computed for the weights."""
    wanted = [each for each in model.parameters() if each.requires_grad]
    for each in wanted:
        each.requires_grad_(False)
    try:
        yield
    finally:
        for each in wanted:
            each.requires_grad_(True)


@torch.no_grad()
def _project(vectors: Mapping[int, Tensor], without: Mapping[int, Tensor]) -> None:
    """Take a direction out of each vector, in place."""
    for layer, unit in without.items():
        unit = unit.to(vectors[layer].device)
        vectors[layer].sub_((vectors[layer] @ unit) * unit)
