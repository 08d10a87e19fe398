"""`VllmModel`: a model that runs inside vLLM and is steered, capped and read as any other is.

Its tokenizer, its chat template and what tells it from others are read from its files, whose weights stay on
the disk; vLLM loads them for itself. Only what runs the model is written again here: answering, likelihoods,
and reading text.
"""

from __future__ import annotations

import os
import secrets
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from persona_tui.core.errors import GenerationError, MemoryShortage, ModelLoadError
from persona_tui.core.mix import LOWEST_TEMPERATURE
from persona_tui.core.sections import VllmSettings
from persona_tui.model import (
    Activations,
    Finish,
    Generation,
    Interventions,
    Reading,
    Request,
    Sampling,
    TokenEvent,
    Watch,
    loader,
    sources,
    text,
)
from persona_tui.model.architecture import check_fits
from persona_tui.model.forced import Passage
from persona_tui.model.request import Batch, Poll
from persona_tui.vllm.driver import LocalDriver
from persona_tui.vllm.orders import Arrival, Driver, Order, Sums
from persona_tui.vllm.reader import Axes, VllmReader, activations_of, stretches
from persona_tui.vllm.wire import Errand, limit_of, slot_of

_REPLY = (0, -1)  # the span of a reply
_CACHE_ON_CPU = 2.0  # GiB


@dataclass
class _Row:
    """A request while it is answered.

    Attributes:
        place: which of the requests.
        order: as vLLM was given it.
        limit: how many tokens it may have.
        output: its tokens so far, without the end of the turn.
        finish: why it has ended; None = it has not.
        twin: the request that reads along; "" = none does.
    """

    place: int
    order: Order
    limit: int
    output: list[int] = field(default_factory=list)
    finish: Finish | None = None
    twin: str = ""

    @property
    def name(self) -> str:
        return self.order.errand.name


class VllmModel(VllmReader):
    """A causal language model inside vLLM.

    See `VllmReader` for what is read of text that is there.
    """

    @classmethod
    def start(
        cls,
        name: str,
        device: str = "auto",
        dtype: str = "auto",
        quantization: str = "none",
        trust_remote_code: bool = False,
        settings: VllmSettings | None = None,
    ) -> VllmModel:
        """Start vLLM with a model; see `ModelWrapper.load` for what it may be called.

        Raises:
            ModelLoadError: one line that says why.
        """
        settings = settings or VllmSettings()
        if quantization != "none":
            raise ModelLoadError("vLLM takes no --quantization: give it a model that is quantised already.")
        if device not in ("auto", "cpu", "cuda"):
            raise ModelLoadError(
                f"vLLM chooses its devices itself, and not {device}: see CUDA_VISIBLE_DEVICES and "
                "vllm.tensor_parallel."
            )
        model, tokenizer = loader.load(name, loader.ON_DISK, dtype, "none", trust_remote_code)
        chosen = sources.chosen(name)
        found = cls(model, tokenizer, chosen, sources.resolve(name).identity)
        cache = settings.cache
        if cache is None and not torch.cuda.is_available() and not os.environ.get("VLLM_CPU_KVCACHE_SPACE"):
            cache = _CACHE_ON_CPU
        arguments: dict[str, Any] = {
            "dtype": str(model.dtype).removeprefix("torch."),
            "trust_remote_code": trust_remote_code,
            "max_num_seqs": settings.requests,
            "max_model_len": settings.context,
            "tensor_parallel_size": settings.tensor_parallel,
            "pipeline_parallel_size": settings.pipeline_parallel,
            "gpu_memory_utilization": settings.memory,
            "kv_cache_memory_bytes": None if cache is None else int(cache * 2**30),
            "enforce_eager": settings.eager,
        }
        found.driver = LocalDriver(loader.where(name), found.hidden_size, arguments)
        # A reply that may fill the context is read to its end by one more step.
        found.context_length = found.driver.about.context - 1
        return found

    # Answering ----------------------------------------------------------------------------------------------

    def generate(
        self,
        requests: Sequence[Request],
        sampling: Sampling | None = None,
        interventions: Interventions | None = None,
        capture_layers: Sequence[int] = (),
        on_step: Callable[[], None] | None = None,
        stop: threading.Event | None = None,
    ) -> list[Generation]:
        """See `ModelWrapper.generate`; vLLM divides the requests into passes itself."""
        if not requests:
            return []
        sampling, interventions = sampling or Sampling(), interventions or Interventions.none()
        batch = self._batch(requests, sampling)
        keys = self._held(interventions, len(requests))
        rows = []
        for place, key in enumerate(keys):
            last = len(batch.prompts[place]) - 1
            spans = (_REPLY, (last, last + 1)) if capture_layers else ()
            limit = limit_of(interventions, place)
            errand = Errand(Driver.new_name(), key, spans, batch.thoughts or (), limit=limit)
            rows.append(self._row(place, batch, errand))
        sums: dict[str, Sums] = {}
        for group in self._groups(rows):
            sums |= self._answer(group, batch, capture_layers, on_step, stop)
        outputs = [row.output for row in rows]
        kept = [self._without_stop(output) for output in outputs]
        read: Sequence[Activations | None] = [None] * len(rows)
        if capture_layers:
            read = self._sums_of_replies(rows, batch, kept, capture_layers, sums, interventions)
        return [
            Generation(
                self._opened(requests[row.place]) + text.decode_ids(self.tokenizer, ids).strip(),
                ids,
                len(batch.prompts[row.place]),
                row.finish or "cancelled",
                activations,
            )
            for row, ids, activations in zip(rows, kept, read, strict=True)
        ]

    def _row(
        self, place: int, batch: Batch, errand: Errand, likeliest: int | None = None, alone: bool = False
    ) -> _Row:
        """A request for vLLM: `alone` if nothing may share its cache, as what is done to it may change."""
        if errand.limit:
            self._check_guides()
        own, prompt = batch.samplings[place], batch.prompts[place]
        check_fits(len(prompt), self.context_length)
        limit = min(own.max_new_tokens, (self.context_length or 0) - len(prompt))
        temperature = own.temperature if own.temperature >= LOWEST_TEMPERATURE else 0.0
        order = Order(
            prompt,
            errand,
            limit + bool(errand.spans),  # a token is read when the next one is chosen
            temperature,
            own.top_p,
            batch.seeds[place],
            batch.end_tokens,
            likeliest,
            salt=secrets.token_hex(8) if alone else "",
            fresh=any(span != _REPLY and span[1] < len(prompt) for span in errand.spans),
        )
        return _Row(place, order, limit)

    def _check_guides(self) -> None:
        if not self.guides:
            raise GenerationError(
                "The guide needs a reply and its twin in one pass, which a server does not promise: set "
                "steering.plausibility to 0."
            )

    def _groups(self, rows: Sequence[_Row]) -> list[list[_Row]]:
        """Rows that can be answered together. A guided one and its twin must be in the same passes."""
        groups: list[list[_Row]] = [[]]
        for row in rows:
            if groups[-1] and not self._fit([*groups[-1], row]):
                groups.append([])
            groups[-1].append(row)
        return groups

    def _fit(self, rows: Sequence[_Row]) -> bool:
        about = self.driver.about
        if sum(len(row.order.errand.spans) for row in rows) > about.places:
            return False
        if not any(row.order.errand.limit for row in rows):
            return True
        twice = [row for row in rows for _ in range(1 + bool(row.order.errand.limit))]
        room = sum(-(-(len(each.order.prompt) + each.order.tokens) // about.block) + 1 for each in twice)
        return (
            len(twice) <= about.requests
            and sum(len(each.order.prompt) for each in twice) <= about.tokens
            and room * about.block <= about.room
        )

    def _answer(
        self,
        rows: Sequence[_Row],
        batch: Batch,
        layers: Sequence[int],
        on_step: Callable[[], None] | None,
        stop: threading.Event | None,
    ) -> dict[str, Sums]:
        """Answer a group; what was summed up by the names of rows."""
        orders = self._with_twins(rows)
        by_name = {row.name: row for row in rows}
        names = [order.errand.name for order in orders]
        try:
            for written in self.driver.run(orders):
                for each in written:
                    if (row := by_name.get(each.name)) is not None:
                        for token in each.tokens:
                            self._accept(row, token, batch)
                self._leave(rows, batch, stop)
                if on_step is not None:
                    on_step()
            found, broken = self.driver.take([row.name for row in rows], layers)
        finally:
            self.driver.take(names)
        if broken:
            raise MemoryShortage("vLLM's cache is too small for so many guided replies: use a smaller batch.")
        return found

    def _with_twins(self, rows: Sequence[_Row]) -> list[Order]:
        """The orders of rows, each guided one followed by its twin's."""
        orders = []
        for row in rows:
            if row.order.errand.limit and not self._fit([row]):
                raise GenerationError(
                    "vLLM has no room for this reply and its twin: shorten it, or set plausibility to 0."
                )
            if row.order.errand.limit:
                row.twin = Driver.new_name()
                row.order = replace(row.order, errand=replace(row.order.errand, twin=row.twin))
            orders.append(row.order)
            if row.twin:
                orders.append(_twin(row))
        return orders

    def _accept(self, row: _Row, token: int, batch: Batch) -> None:
        """Take in a row's new token."""
        if row.finish is not None:
            return
        if token in batch.end_tokens:
            row.finish = "stop"
            return
        row.output.append(token)
        if batch.ended is not None and batch.ended(row.place, row.output):
            row.finish = "stop"
        elif len(row.output) >= row.limit:
            row.finish = "length"

    def _leave(self, rows: Sequence[_Row], batch: Batch, stop: threading.Event | None) -> list[_Row]:
        """Be done with rows that were stopped, or have said what they were to stop at; those stopped now."""
        stopped = []
        for row in rows:
            own = batch.stops[row.place] if batch.stops else None
            if row.finish is None and ((stop and stop.is_set()) or (own and own.is_set())):
                row.finish = "cancelled"
                stopped.append(row)
        ended = [row for row in rows if row.finish in ("stop", "cancelled")]
        self.driver.abort([name for row in ended for name in (row.name, row.twin) if name])
        return stopped

    def _sums_of_replies(
        self,
        rows: Sequence[_Row],
        batch: Batch,
        kept: Sequence[list[int]],
        layers: Sequence[int],
        sums: Mapping[str, Sums],
        interventions: Interventions,
    ) -> list[Activations | None]:
        """Each row's activations. A reply that was cut at a stop text is read again, without that text."""
        found: list[Activations | None] = []
        for row, ids in zip(rows, kept, strict=True):
            own = sums.get(row.name)
            if own is None or own.sums is None or not own.counts[1]:
                found.append(None)
            elif len(ids) < len(row.output):
                prompt = batch.prompts[row.place]
                passage = Passage([*prompt, *ids], len(prompt), len(prompt) - 1)
                slot = slot_of(interventions, row.place)
                found += self._read([passage], layers, Interventions(slot.added, slot.caps))
            else:
                mean = own.sums[0] / max(1, own.counts[0])
                found.append(Activations(tuple(layers), mean, own.sums[1], own.counts[0]))
        return found

    def stream(
        self,
        requests: Sequence[Request],
        sampling: Sampling | None = None,
        interventions: Interventions | Poll | None = None,
        axes: Axes | None = None,
        stop: threading.Event | None = None,
        watch: Watch | None = None,
    ) -> Iterator[TokenEvent]:
        """See `ModelWrapper.stream`."""
        if not requests:
            return
        self.driver.check_idle()
        batch = self._batch(requests, sampling or Sampling(), watch)
        poll = interventions if callable(interventions) else None
        first = interventions if isinstance(interventions, Interventions) else None
        present = first or (poll() if poll is not None else None) or Interventions.none()
        rows = self._streamed_rows(requests, batch, present, dict(axes or {}), alone=poll is not None)
        yield from self._streamed(rows, requests, batch, poll, list(axes or {}), stop)

    def _streamed_rows(
        self, requests: Sequence[Request], batch: Batch, present: Interventions, axes: Axes, alone: bool
    ) -> list[_Row]:
        keys, traces = self._held(present, len(requests)), self._traces(axes)
        rows = []
        for place, (request, key) in enumerate(zip(requests, keys, strict=True)):
            spans: Sequence[tuple[int, int]] = ()
            if batch.watch is not None:
                spans = [_REPLY, *stretches(_message(batch, place))]
            limit = limit_of(present, place)
            errand = Errand(
                Driver.new_name(), key, spans, batch.thoughts or (), limit=limit, traces=traces, told=True
            )
            rows.append(self._row(place, batch, errand, request.likeliest, alone))
        if len(self._groups(rows)) > 1:
            raise MemoryShortage("vLLM has no room for so many guided replies at once.")
        return rows

    def _streamed(
        self,
        rows: list[_Row],
        requests: Sequence[Request],
        batch: Batch,
        poll: Poll | None,
        axes: Sequence[str],
        stop: threading.Event | None,
    ) -> Iterator[TokenEvent]:
        writers = [self._writer(each, prompt) for each, prompt in zip(requests, batch.prompts, strict=True)]
        try:
            for order in self._with_twins(rows):
                self.driver.add(order)
            while any(row.finish is None for row in rows):
                for row in self._leave(rows, batch, stop):
                    yield _cancelled(row, writers[row.place])
                if all(row.finish is not None for row in rows):
                    break
                written = {each.name: each for each in self.driver.step()}
                if not any(row.name in written for row in rows):
                    continue  # only a part of the prompts was read
                traced = self.driver.traced([row.name for row in rows if row.name in written])
                for row in rows:
                    if row.finish is None and row.name in written and written[row.name].tokens:
                        yield from self._readings(row, batch)
                        event = self._event(row, written, traced, axes, batch, writers[row.place])
                        wanted = requests[row.place].likeliest
                        yield replace(event, likeliest=event.likeliest[:wanted])
                change = poll() if poll is not None else None
                if change is not None:
                    self._change([row for row in rows if row.finish is None], change)
        finally:
            names = [name for row in rows for name in (row.name, row.twin) if name]
            self.driver.abort(names)
            _, broken = self.driver.take(names)
        if broken:
            raise GenerationError("vLLM's cache has become too full for the guide: set plausibility to 0.")

    def _event(
        self,
        row: _Row,
        written: Mapping[str, Arrival],
        traced: Mapping[str, list[list[float]]],
        names: Sequence[str],
        batch: Batch,
        writer: text.TextStream,
    ) -> TokenEvent:
        """One token, as our other engine tells it."""
        own = written[row.name]
        token, told, index = own.tokens[0], own.logprobs[0], len(row.output)
        self._accept(row, token, batch)
        new = writer.feed(token) if token not in batch.end_tokens else ""
        if row.finish is not None:
            new += writer.finish()
        found = traced[row.name][-1]
        twin = written.get(row.twin)
        return TokenEvent(
            row.place,
            index,
            token,
            new,
            dict(zip(names, found[2:], strict=False)),
            found[1],
            told[token],
            row.finish,
            found[0],
            reading=self._reply_so_far(row, batch, index),
            nats=None if twin is None or not twin.logprobs else told[token] - twin.logprobs[0][token],
            likeliest=sorted(told.items(), key=lambda each: -each[1]),
        )

    def _readings(self, row: _Row, batch: Batch) -> Iterator[TokenEvent]:
        """What a watch has read of a row's message, before its first token."""
        if batch.watch is None or row.output:
            return
        layers = batch.watch.layers
        found, _ = self.driver.take([row.name], layers, keep=True)
        own = found[row.name]
        assert own.sums is not None
        each = activations_of(_message(batch, row.place), own.counts[1:], own.sums[1:], layers)
        reading = Reading(layers, each.response, each.prompt_last, each.n_tokens, each.parts)
        yield TokenEvent(row.place, 0, -1, "", {}, 0.0, 0.0, None, reading=reading)

    def _reply_so_far(self, row: _Row, batch: Batch, index: int) -> Reading | None:
        """What a watch has read of a reply, now and then."""
        watch = batch.watch
        if watch is None or not index or not (watch.due(index) or row.finish is not None):
            return None
        layers = watch.reply_layers or watch.layers
        found, _ = self.driver.take([row.name], layers, keep=True)
        own = found[row.name]
        if own.sums is None or not own.counts[0]:
            return None
        return Reading(tuple(layers), own.sums[0] / own.counts[0], None, index)

    def _change(self, rows: Sequence[_Row], change: Interventions) -> None:
        """Do something else to rows from their next token on."""
        keys = self._held(change, 1 + max(row.place for row in rows))
        limits = {row.name: limit_of(change, row.place) for row in rows}
        twins = {}
        if any(limits.values()):
            self._check_guides()
        for row in rows:
            if limits[row.name] and not row.twin:  # it reads what there is so far, and along from there on
                row.twin = twins[row.name] = Driver.new_name()
                left = row.order.tokens - len(row.output)
                so_far = replace(row.order, prompt=[*row.order.prompt, *row.output], tokens=left)
                self.driver.add(_twin(replace(row, order=so_far)))
        self.driver.change({row.name: keys[row.place] for row in rows}, limits, twins)


def _twin(row: _Row) -> Order:
    """What reads a row's tokens with nothing done to it."""
    order = row.order
    return replace(
        order, errand=Errand(row.twin), temperature=0.0, top_p=1.0, likeliest=0, salt="", fresh=False
    )


def _message(batch: Batch, place: int) -> Passage:
    """What a watch reads of a prompt."""
    ids, span = list(batch.prompts[place]), batch.spans[place]
    return Passage(ids, span.start, len(ids) - 1, span.stop, batch.parts[place])


def _cancelled(row: _Row, writer: text.TextStream) -> TokenEvent:
    return TokenEvent(row.place, len(row.output), -1, writer.finish(), {}, 0.0, 0.0, "cancelled")
