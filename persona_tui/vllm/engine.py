"""`VllmModel`: a model that runs inside vLLM and is steered, capped and read as any other is.

Its tokenizer, its chat template and what tells it from others are read from its files, whose weights stay on
the disk; vLLM loads them for itself. Only what runs the model is written again here: answering, likelihoods,
and reading text.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch

from persona_tui.core.errors import GenerationError, MemoryShortage, ModelLoadError
from persona_tui.core.sections import VllmSettings
from persona_tui.model import (
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
from persona_tui.model.forced import Passage
from persona_tui.model.request import Batch, Poll
from persona_tui.vllm.driver import LocalDriver
from persona_tui.vllm.orders import Arrival, Driver
from persona_tui.vllm.reader import Axes, activations_of, stretches
from persona_tui.vllm.wire import Errand, limit_of
from persona_tui.vllm.writer import REPLY, VllmRow, VllmWriter, twin_of

_CACHE_ON_CPU = 2.0  # GiB
# Tokens that are in the prefix cache together: vLLM takes 128 on a CPU, and most system prompts are shorter.
BLOCK_ON_CPU = 32


class VllmModel(VllmWriter):
    """A causal language model inside vLLM.

    See `VllmReader` for what is read of text that is there, and `VllmWriter` for answers in one piece.
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
            **({} if torch.cuda.is_available() else {"block_size": BLOCK_ON_CPU}),
        }
        found.driver = LocalDriver(loader.where(name), found.hidden_size, arguments)
        # A reply that may fill the context is read to its end by one more step.
        found.context_length = found.driver.about.context - 1
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
    ) -> list[VllmRow]:
        keys, traces = self._held(present, len(requests)), self._traces(axes)
        rows = []
        for place, (request, key) in enumerate(zip(requests, keys, strict=True)):
            spans: Sequence[tuple[int, int]] = ()
            if batch.watch is not None:
                spans = [REPLY, *stretches(_message(batch, place))]
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
        rows: list[VllmRow],
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
        row: VllmRow,
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

    def _readings(self, row: VllmRow, batch: Batch) -> Iterator[TokenEvent]:
        """Yield what a watch has read of a row's message, before its first token."""
        if batch.watch is None or row.output:
            return
        layers = batch.watch.layers
        found, _ = self.driver.take([row.name], layers, keep=True)
        own = found[row.name]
        assert own.sums is not None
        each = activations_of(_message(batch, row.place), own.counts[1:], own.sums[1:], layers)
        reading = Reading(layers, each.response, each.prompt_last, each.n_tokens, each.parts)
        yield TokenEvent(row.place, 0, -1, "", {}, 0.0, 0.0, None, reading=reading)

    def _reply_so_far(self, row: VllmRow, batch: Batch, index: int) -> Reading | None:
        """Return what a watch has read of a reply, now and then."""
        watch = batch.watch
        if watch is None or not index or not (watch.due(index) or row.finish is not None):
            return None
        layers = watch.reply_layers or watch.layers
        found, _ = self.driver.take([row.name], layers, keep=True)
        own = found[row.name]
        if own.sums is None or not own.counts[0]:
            return None
        return Reading(tuple(layers), own.sums[0] / own.counts[0], None, index)

    def _change(self, rows: Sequence[VllmRow], change: Interventions) -> None:
        """Do something else to rows from their next token on."""
        keys = self._held(change, 1 + max(row.place for row in rows))
        limits = {row.name: limit_of(change, row.place) for row in rows}
        twins = {}
        for row in rows:
            if limits[row.name] and not row.twin:  # it reads what there is so far, and along from there on
                if not self.driver.joins:
                    raise GenerationError(
                        "A server turns the guide on with a reply's first token only: say something new."
                    )
                row.twin = twins[row.name] = Driver.new_name()
                left = row.order.tokens - len(row.output)
                so_far = replace(row.order, prompt=[*row.order.prompt, *row.output], tokens=left)
                twin = twin_of(replace(row, order=so_far))
                self.driver.add(replace(twin, errand=replace(twin.errand, of="")))
        self.driver.change({row.name: keys[row.place] for row in rows}, limits, twins)


def _message(batch: Batch, place: int) -> Passage:
    """Return what a watch reads of a prompt."""
    ids, span = list(batch.prompts[place]), batch.spans[place]
    return Passage(ids, span.start, len(ids) - 1, span.stop, batch.parts[place])


def _cancelled(row: VllmRow, writer: text.TextStream) -> TokenEvent:
    return TokenEvent(row.place, len(row.output), -1, writer.finish(), {}, 0.0, 0.0, "cancelled")
