"""`ModelWrapper`: one loaded causal language model, and everything the program does with it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import replace

from torch import Tensor

from persona_tui.model import loader, sources, text
from persona_tui.model.generation import decode
from persona_tui.model.packed import pack
from persona_tui.model.pool import Pool, Pooled
from persona_tui.model.reader import Axes, LoadedModel, answered, captured_activations
from persona_tui.model.request import Batch, Cap, Interventions, Poll, Request, Sampling, Watch, conversation
from persona_tui.model.residual import ResidualHooks
from persona_tui.model.results import Activations, Finish, Generation, Reading, Step, TokenEvent
from persona_tui.model.trial import tried


class ModelWrapper(LoadedModel):
    """A causal language model that can be steered, capped and read.

    Layer i is the output of decoder block i, counted from 0. Not for use from several threads at once.

    Attributes:
        rendering: the date and the default system prompt that the chat template writes, fixed when the model
            is wrapped. Record it with what is made, and set it to what was recorded to make that again.
        guides: whether a row can have a twin that it is guided by.
        own_cache: whether the model makes its cache itself, which then holds more than keys and values.
    """

    @classmethod
    def load(
        cls,
        name: str,
        device: str = "auto",
        dtype: str = "auto",
        quantization: str = "none",
        trust_remote_code: bool = False,
    ) -> ModelWrapper:
        """Load "starter", "tiny", a folder, a GGUF file, or a model of Ollama's or the hub's; see `sources`.

        A model that is new here is tried: a few short passes, see `model/trial.py`.

        Raises:
            ModelLoadError: one line that says why.
        """
        model, tokenizer = loader.load(name, device, dtype, quantization, trust_remote_code)
        chosen = sources.chosen(name)
        wrapper = cls(model, tokenizer, chosen, sources.resolve(name).identity)
        trial = tried(model, tokenizer, chosen, wrapper.identity)
        wrapper.own_cache = trial.own_cache
        if trial.packs:
            pack(model)
        return wrapper

    # Generation ---------------------------------------------------------------------------------------------

    def generate(
        self,
        requests: Sequence[Request],
        sampling: Sampling | None = None,
        interventions: Interventions | None = None,
        capture_layers: Sequence[int] = (),
        on_step: Callable[[], None] | None = None,
        stop: threading.Event | None = None,
    ) -> list[Generation]:
        """Answer all requests in one batch.

        Args:
            requests: the conversations. The caller decides how many fit into one batch.
            sampling: how tokens are chosen; by default `Sampling()`.
            interventions: what is done to the residual stream, at every position.
            capture_layers: where activations are collected, in the same pass that writes.
            on_step: called after every token; may raise, to give up.
            stop: when set, ends after the present token with what there is.

        Raises:
            GenerationError: a prompt is too long, a vector does not fit this model, or memory ran out.
        """
        if not requests:
            return []
        sampling, interventions = sampling or Sampling(), interventions or Interventions.none()
        batch = self._batch(requests, sampling)
        hooks = self._hooks(len(requests), capture_layers=capture_layers)
        hooks.apply(interventions)
        outputs, finishes, steps = self._written(batch, sampling, hooks, on_step, stop)
        kept = [self._without_stop(output) for output in outputs]
        read: Sequence[Activations | None] = [None] * len(requests)
        if capture_layers and steps:
            read = self._captured(hooks, batch, kept, outputs, capture_layers, interventions)
        return [
            Generation(
                self._opened(requests[row]) + text.decode_ids(self.tokenizer, kept[row]).strip(),
                kept[row],
                len(batch.prompts[row]),
                finishes[row],
                read[row],
            )
            for row in range(len(requests))
        ]

    def foresee(
        self,
        requests: Sequence[Request],
        sampling: Sampling | None = None,
        interventions: Callable[[], Interventions] | None = None,
        captured: bool = False,
    ) -> bool:
        """Do nothing, as one batch is answered after the other here; see `Backend.foresee`."""
        return False

    def pooled(
        self,
        requests: Sequence[Request],
        sampling: Sampling | None = None,
        capture_layers: Sequence[int] = (),
        belongs: Callable[[str], bool] | None = None,
        kept: Collection[int] = (),
        on_step: Callable[[], None] | None = None,
    ) -> Pooled:
        """Answer all requests in one batch, and add up their activations.

        Args:
            requests: as for `generate`, and so are `sampling` and `on_step`.
            sampling: how tokens are chosen.
            capture_layers: where activations are collected.
            belongs: told a reply; whether it is of the first kind. None = all are of the first kind.
            kept: rows whose own activations are wanted as well.
            on_step: called after every token.

        Raises:
            GenerationError: as `generate` does; or an activation is not a usable number.
        """
        replies = self.generate(requests, sampling, None, capture_layers, on_step)
        pools = {kind: Pool(tuple(capture_layers)) for kind in (True, False)}
        for each in replies:
            if each.activations is not None:
                pools[belongs is None or belongs(each.text)].add(each.activations)
        own = [each if row in kept else replace(each, activations=None) for row, each in enumerate(replies)]
        return Pooled(own, pools)

    def _written(
        self,
        batch: Batch,
        sampling: Sampling,
        hooks: ResidualHooks,
        on_step: Callable[[], None] | None,
        stop: threading.Event | None,
    ) -> tuple[list[list[int]], list[Finish], int]:
        """Each row's tokens without the end of the turn, why it ended, and how many steps all took."""
        outputs: list[list[int]] = [[] for _ in batch.prompts]
        finishes: list[Finish] = ["cancelled"] * len(outputs)
        steps = 0
        for step in self._steps(batch, sampling, hooks, stop=stop, likelihoods=False):
            steps += 1
            for row, token, finish in zip(step.rows, step.tokens, step.finish, strict=True):
                if token not in self._end_tokens:
                    outputs[row].append(token)
                if finish is not None:
                    finishes[row] = finish
            if on_step is not None:
                on_step()
        return outputs, finishes, steps

    def _steps(
        self,
        batch: Batch,
        sampling: Sampling,
        hooks: ResidualHooks,
        poll: Poll | None = None,
        stop: threading.Event | None = None,
        likelihoods: bool = True,
    ) -> Iterator[Step]:
        return decode(
            self.model, batch, sampling, hooks, poll, stop, likelihoods, self._compiled, self.own_cache
        )

    def stream(
        self,
        requests: Sequence[Request],
        sampling: Sampling | None = None,
        interventions: Interventions | Poll | None = None,
        axes: Axes | None = None,
        stop: threading.Event | None = None,
        watch: Watch | None = None,
    ) -> Iterator[TokenEvent]:
        """Answer all requests in one batch, token by token.

        A row with a plausibility above 0 gets a twin: a hidden row of the same batch that reads the same
        tokens and is neither steered nor capped. It costs nothing before it is first needed; then it reads
        what there is so far, and runs to the row's end, also while the guide is off again.

        Args:
            requests: the conversations.
            sampling: how tokens are chosen; by default `Sampling()`.
            interventions: what is done to the residual stream; or a function that is asked before every
                token and returns new interventions, or None to leave them as they are.
            axes: name -> layer -> `[hidden]`, what the events' projections are about.
            stop: when set, no further token is written and every unfinished row gets a "cancelled" event. A
                request's own `stop` does that for its row.
            watch: what is read for a monitor, in the passes that write: each row's message in an event
                without a token before its first one, then its reply now and then.

        Raises:
            GenerationError: as `generate`; or a row was first guided in the middle of its reply, and the
                model's cache cannot take in its twin.
        """
        if not requests:
            return
        sampling = sampling or Sampling()
        batch = self._batch(requests, sampling, watch)
        hooks = self._hooks(len(requests), () if watch is None else watch.layers, axes)
        poll = interventions if callable(interventions) else None
        if isinstance(interventions, Interventions):
            hooks.apply(interventions)
        writers = [self._writer(each, prompt) for each, prompt in zip(requests, batch.prompts, strict=True)]
        unfinished = dict.fromkeys(range(len(requests)), 0)  # row -> tokens so far
        for step in self._steps(batch, sampling, hooks, poll, stop):
            yield from self._message_readings(step, batch)
            for event in self._events(step, hooks.axis_names, writers, requests):
                unfinished[event.row] = event.index + 1
                if event.finish is not None:
                    del unfinished[event.row]
                reading = self._reply_reading(step, batch, event.row)
                yield event if reading is None else replace(event, reading=reading)
            left = {row for row in unfinished if (own := requests[row].stop) is not None and own.is_set()}
            for row in left:
                yield _cancelled(row, unfinished.pop(row), writers[row])
        for row, index in unfinished.items():
            yield _cancelled(row, index, writers[row])

    def _writer(self, request: Request, prompt: Sequence[int]) -> text.TextStream:
        before = prompt[-1:] if request.continued else ()
        return text.TextStream(self.tokenizer, self._stops_of(request), before, self._opened(request))

    def _message_readings(self, step: Step, batch: Batch) -> Iterator[TokenEvent]:
        """Yield what a watch has read of each row's message, in the pass that has chosen its first token."""
        if batch.watch is None or step.read is None or step.read_last is None:
            return
        for row in step.rows:
            count, parts = len(batch.spans[row]), step.read_parts[row]
            reading = Reading(batch.watch.layers, step.read[row], step.read_last[row], count, parts)
            yield TokenEvent(row, 0, -1, "", {}, 0.0, 0.0, None, reading=reading)

    def _reply_reading(self, step: Step, batch: Batch, row: int) -> Reading | None:
        if batch.watch is None or step.read is None or step.index == 0:
            return None
        if not step.read[row].any():  # so far, it has only been thought
            return None
        watch = batch.watch
        return Reading(watch.reply_layers or watch.layers, step.read[row], None, step.index)

    def _events(
        self,
        step: Step,
        axis_names: Sequence[str],
        writers: Sequence[text.TextStream],
        requests: Sequence[Request],
    ) -> Iterator[TokenEvent]:
        for place, row in enumerate(step.rows):
            token, finish = step.tokens[place], step.finish[place]
            new = writers[row].feed(token) if token not in self._end_tokens else ""
            if finish is not None:
                new += writers[row].finish()
            projections = dict(zip(axis_names, step.projections[place], strict=True))
            yield TokenEvent(
                row,
                step.index,
                token,
                new,
                projections,
                step.lifts[place],
                step.logprobs[place],
                finish,
                step.entropies[place],
                nats=step.nats[place],
                likeliest=step.likeliest[place][: requests[row].likeliest] if step.likeliest else (),
            )

    def _batch(self, requests: Sequence[Request], sampling: Sampling, watch: Watch | None = None) -> Batch:
        seeds = [
            sampling.row_seed(row) if each.seed is None else each.seed for row, each in enumerate(requests)
        ]
        prompts = [
            self.encode(each.messages) if each.prompt is None else list(each.prompt) for each in requests
        ]
        spans: list[range] = []
        if watch is not None:
            spans = [
                range(len(ids)) if each.raw else self._span(each.messages, ids)
                for each, ids in zip(requests, prompts, strict=True)
            ]
        return Batch(
            prompts=prompts,
            seeds=seeds,
            end_tokens=self._end_tokens,
            pad_token=self._pad_token,
            ended=self._spells_stop(requests) if any(map(self._stops_of, requests)) else None,
            watch=watch,
            spans=spans,
            parts=[self._parts(ids, span) for ids, span in zip(prompts, spans, strict=False)],
            samplings=[each.sampling or sampling for each in requests],
            stops=[each.stop for each in requests] if any(each.stop for each in requests) else (),
            likeliest=max(each.likeliest for each in requests),
            thoughts=self._thoughts,
        )

    def _opened(self, request: Request) -> str:
        """Return what the prompt has begun of the answer: its thoughts, or nothing."""
        if request.continued:
            return ""
        return text.opened_thought(self.tokenizer, request.messages, self.rendering)

    def _stops_of(self, request: Request) -> tuple[str, ...]:
        return request.stops if request.raw else (*self._stops, *request.stops)

    def _spells_stop(self, requests: Sequence[Request]) -> Callable[[int, list[int]], bool]:
        """Return whether a row's text has come to one of its stops: its own, or a turn that a base model
        begins.
        """
        stops = [self._stops_of(each) for each in requests]
        tails = [-2 * max(map(len, each), default=0) for each in stops]

        def spelled(row: int, ids: list[int]) -> bool:
            if not stops[row]:
                return False
            tail = text.decode_ids(self.tokenizer, ids[tails[row] :])
            return text.first_stop(tail, stops[row]) < len(tail)

        return spelled

    def _without_stop(self, ids: list[int]) -> list[int]:
        """Return the tokens before a stop text, if there is one."""
        if not self._stops:
            return ids
        whole = text.decode_ids(self.tokenizer, ids)
        end = text.first_stop(whole, self._stops)
        if end == len(whole):
            return ids
        kept = len(ids)
        while kept and len(text.decode_ids(self.tokenizer, ids[: kept - 1])) >= end:
            kept -= 1
        return ids[:kept]

    def _captured(
        self,
        hooks: ResidualHooks,
        batch: Batch,
        kept: Sequence[list[int]],
        outputs: Sequence[list[int]],
        layers: Sequence[int],
        interventions: Interventions,
    ) -> list[Activations]:
        """Each row's activations. A response that was cut at a stop text is read again, without that text."""
        assert hooks.capture is not None
        activations = captured_activations(hooks)
        if any(len(short) < len(output) for short, output in zip(kept, outputs, strict=True)):
            passages = [
                answered(prompt, response) for prompt, response in zip(batch.prompts, kept, strict=True)
            ]
            again = self._read(passages, layers, interventions)
            activations = [
                second if len(short) < len(output) else first
                for first, second, short, output in zip(activations, again, kept, outputs, strict=True)
            ]
        return activations

    # The plan's three methods -------------------------------------------------------------------------------

    def generate_with_activations(
        self,
        prompt: str,
        system: str | None = None,
        layers: Sequence[int] | None = None,
        sampling: Sampling | None = None,
    ) -> tuple[str, dict[int, Tensor]]:
        """Answer a prompt; also the response activation `[hidden]` by layer (all layers by default)."""
        wanted = range(self.n_layers) if layers is None else layers
        request = Request(conversation(prompt, system))
        generation = self.generate([request], sampling, capture_layers=wanted)[0]
        read = generation.activations
        assert read is not None
        return generation.text, dict(zip(read.layers, read.response, strict=True))

    def generate_with_steering(
        self,
        prompt: str,
        system: str | None,
        steering_vector: Tensor | Mapping[int, Tensor],
        strength: float,
        layers: Sequence[int],
        sampling: Sampling | None = None,
    ) -> str:
        """Answer a prompt with `strength` times a vector added at some layers.

        The vector is `[hidden]`, the same for all layers, or one for each layer.
        """
        by_layer = {
            layer: strength
            * (steering_vector if isinstance(steering_vector, Tensor) else steering_vector[layer])
            for layer in layers
        }
        request = Request(conversation(prompt, system))
        return self.generate([request], sampling, Interventions(steering=by_layer))[0].text

    def generate_with_capping(
        self,
        prompt: str,
        system: str | None,
        axis: Tensor | Mapping[int, Tensor],
        floor: float | Mapping[int, float],
        layers: Sequence[int],
        sampling: Sampling | None = None,
    ) -> str:
        """Answer a prompt with the projection onto a unit axis kept above a floor at some layers."""
        caps = {
            layer: Cap(
                axis if isinstance(axis, Tensor) else axis[layer],
                floor[layer] if isinstance(floor, Mapping) else floor,
            )
            for layer in layers
        }
        request = Request(conversation(prompt, system))
        return self.generate([request], sampling, Interventions(capping=caps))[0].text


def _cancelled(row: int, index: int, writer: text.TextStream) -> TokenEvent:
    return TokenEvent(row, index, -1, writer.finish(), {}, 0.0, 0.0, "cancelled")
