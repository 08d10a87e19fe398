"""One decode loop: a batch of prompts in, one step per token out.

1. The prompts are padded on the left and run once; the keys and values stay in a cache.
2. Each step picks one token for every row, and the next forward pass reads it.
3. Rows that have finished, or that nobody waits for, are dropped once they are an eighth of the batch.
4. One transfer per step brings tokens, log-probabilities and traces of all layers to the CPU.

A row that is guided has a twin at the end of the batch: same prompt, same tokens, nothing done to it. Its
probabilities say which tokens the row may choose from.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from transformers import Cache, PreTrainedModel

from persona_tui.core.errors import GenerationError
from persona_tui.model.architecture import (
    Overflow,
    accepted_arguments,
    append_rows,
    cache_argument,
    check_finite,
    check_fits,
    clear_memory_errors,
    context_length,
    device_of,
    grows,
    new_cache,
    returned_cache,
)
from persona_tui.model.compiled import CompiledForward
from persona_tui.model.request import Batch, Poll, Sampler, Sampling, plausible
from persona_tui.model.residual import ResidualHooks, StopForward
from persona_tui.model.results import Finish, Step

_DROPPED = 8  # rows go once one in so many has finished: each time, the whole cache is copied


def _likelihoods(logits: Tensor, tokens: Tensor) -> Tensor:
    """Return the tokens' log-probabilities and the entropies of the choice, `[rows, 2]`."""
    logprobs = logits.log_softmax(-1)
    chosen = logprobs.gather(1, tokens.unsqueeze(1))
    # A token that cannot come has a log-probability of -inf, and adds nothing to the entropy.
    logprobs = logprobs.clamp_(min=torch.finfo(logprobs.dtype).min)
    entropies = -(logprobs.exp().mul_(logprobs)).sum(-1, keepdim=True)
    return torch.cat([chosen, entropies], dim=1)


def _thinks(ids: Sequence[int], thoughts: tuple[int, int] | None) -> bool:
    """Return whether thoughts were begun and not ended."""
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
        self.accepted, self.cache_name = accepted_arguments(model), cache_argument(model)
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
        self.cache: Cache | None = None if self.own_cache else new_cache(self.model.config)
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
        """Return the parts of the prompts that a watch reads, as places in the padded prompts."""
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
        if self.own_cache or self.cache is None or not grows(self.cache):
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
            cache = new_cache(self.model.config)
        mask = None if self.mask is None else self.mask[torch.tensor(places, device=self.device), :read]
        inputs = torch.tensor(ids, device=self.device)
        self.model(**self._arguments(inputs, positions.clamp(min=0).to(self.device), mask, cache))
        append_rows(self.cache, cache)

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
        """Return what a forward pass takes, by name; of the logits only the last position's are wanted."""
        arguments: dict[str, Any] = {"input_ids": ids, "use_cache": True}
        if cache is not None:
            arguments[self.cache_name] = cache
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
        """Return the likeliest tokens of the rows that are not done, and their log-probabilities."""
        places = [place for place, done in enumerate(self.done) if not done]
        best = logits[places].log_softmax(-1).topk(min(self.batch.likeliest, logits.shape[-1]))
        return [
            list(zip(ids, values, strict=True))
            for ids, values in zip(best.indices.tolist(), best.values.tolist(), strict=True)
        ]

    def _allowed(self, logits: Tensor, plain: Tensor) -> Tensor:
        """Return the logits of the rows, −inf where a row's guide does not allow a token."""
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
        """Return what a watch sees after the present pass: means, and at first the last prompt token."""
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
        """Return whether a row's newest token is not a thought, and no tag around one."""
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
        own_cache: whether the model makes its cache itself: it keeps something other than keys and values.

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
