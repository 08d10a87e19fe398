"""`ModelWrapper`: one loaded causal language model, and everything the program does with it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from persona_tui.core.errors import GenerationError
from persona_tui.core.identity import ModelSketch
from persona_tui.core.workspace import model_slug
from persona_tui.model import blocks, loader, sources, text
from persona_tui.model.compiled import CompiledForward
from persona_tui.model.control import thought_tokens
from persona_tui.model.fingerprint import fingerprint
from persona_tui.model.forced import (
    Passage,
    in_batches,
    logit_token_budget,
    read_passages,
    response_logprobs,
    token_budget,
)
from persona_tui.model.generation import Batch, Finish, Poll, Sampling, Step, Watch, check_fits, decode
from persona_tui.model.interventions import Cap, Interventions
from persona_tui.model.parts import message_parts
from persona_tui.model.reread import Rereading, read_positions
from persona_tui.model.residual import ResidualHooks
from persona_tui.model.sketch import sketch
from persona_tui.model.text import Message
from persona_tui.model.trial import tried

Axes = Mapping[str, Mapping[int, Tensor]]

_LONG = 100_000  # characters; from there on it is estimated whether they can fit at all


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
        return self.raw or text.is_continued(self.messages)


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


class ModelWrapper:
    """A causal language model that can be steered, capped and read.

    Layer i is the output of decoder block i, counted from 0. Not for use from several threads at once.

    Attributes:
        rendering: the date and the default system prompt that the chat template writes, fixed when the model
            is wrapped. Record it with what is made, and set it to what was recorded to make that again.
        own_cache: whether the model makes its cache itself, as something else than keys and values is in it.
    """

    def __init__(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, name: str, source: str = ""
    ) -> None:
        """Wrap a model that is already loaded.

        Args:
            model: the model.
            tokenizer: its tokenizer.
            name: what to call it.
            source: where its weights came from, and their SHA-256; see `sources.Source.identity`.

        Raises:
            ModelLoadError: it is not a decoder-only model.
        """
        self.model = model
        model.train(False)
        self.tokenizer = tokenizer
        self.name = name
        self.source = source
        self.slug = model_slug(name)
        self.n_layers = blocks.n_layers(model)
        self.hidden_size = blocks.hidden_size(model)
        self.context_length = blocks.context_length(model)
        self._blocks = blocks.find_blocks(model)
        self._end_tokens = text.end_tokens(model, tokenizer)
        self._stops = () if text.is_chat_tokenizer(tokenizer) else text.PLAIN_STOPS
        self._vocabulary = int(model.get_input_embeddings().num_embeddings)  # type: ignore[arg-type]
        self._compiled: CompiledForward | None = None
        self.rendering = text.Rendering.now(tokenizer)
        self.own_cache = False

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
        wrapper.own_cache = tried(model, tokenizer, chosen, wrapper.identity).own_cache
        return wrapper

    @cached_property
    def fingerprint(self) -> str:
        """Tells this model from others; vectors remember it."""
        return fingerprint(self.model)

    @cached_property
    def sketch(self) -> ModelSketch:
        """Tells near copies of this model from others; vectors remember it."""
        return sketch(self.model)

    @property
    def identity(self) -> tuple[str, str, str]:
        """Tells this model also from itself in another precision, whose numbers are not quite the same."""
        quantization = getattr(self.model.config, "quantization_config", None)
        return self.fingerprint, str(self.model.dtype), str(quantization)

    @property
    def n_parameters(self) -> int:
        """How many weights the model has."""
        return sum(parameter.numel() for parameter in self.model.parameters())

    @property
    def device(self) -> torch.device:
        """Where token ids go in."""
        return blocks.device_of(self.model.get_input_embeddings())

    @property
    def dtype(self) -> torch.dtype:
        """The precision of the weights."""
        return self.model.dtype

    def compile(self, backend: str = "inductor") -> None:
        """From now on, write every token after a reply's first with a compiled pass; see `model/compiled.py`.

        The first reply of a shape takes as long as compiling does.

        Raises:
            GenerationError: the model lies on several devices, or is quantized.
        """
        if self.own_cache:
            raise GenerationError(f"{self.name} cannot be compiled: it makes its cache itself.")
        self._compiled = CompiledForward(self.model, backend)

    def render(self, messages: Sequence[Message]) -> str:
        """The conversation as the model sees it, up to where the assistant's next words begin."""
        return text.render(self.tokenizer, messages, self.rendering)

    def encode(self, messages: Sequence[Message]) -> list[int]:
        """The token ids of `render`; what looks like a control token in a message is text.

        Raises:
            GenerationError: the template refuses it; or it cannot fit the context, which is found out before
                it is rendered if it is long.
        """
        check_fits(self._least_tokens(messages), self.context_length)
        return text.encode_prompt(self.tokenizer, messages, self.rendering)

    def count_tokens(self, messages: Sequence[Message]) -> int:
        """How much of the context a conversation takes; one that cannot fit may take still more."""
        least = self._least_tokens(messages)
        if self.context_length is not None and least > self.context_length:
            return least
        return len(self.encode(messages))

    def _least_tokens(self, messages: Sequence[Message]) -> int:
        """How many tokens a conversation has at least; tokenizing takes a hundred times its size."""
        characters = sum(len(each.get("content") or "") for each in messages)
        return characters // self._longest_token if characters > _LONG else 0

    @cached_property
    def _longest_token(self) -> int:
        return max(map(len, self.tokenizer.get_vocab()), default=1)

    @contextmanager
    def rendered_as(self, record: Mapping[str, Any] | None) -> Iterator[None]:
        """Within, the chat template writes the date and the default system prompt that were recorded, and has
        the model think before it answers if it did so then.

        Args:
            record: what `Rendering.record` gave; without one, nothing changes.
        """
        before = self.rendering
        rendering = text.Rendering.from_record(record) or before
        thinking = rendering.thinking and text.can_think(self.tokenizer)
        self.rendering = replace(rendering, thinking=thinking)
        try:
            yield
        finally:
            self.rendering = before

    def today(self) -> dict[str, Any]:
        """Return the record of what the chat template writes now, with which a conversation begins."""
        return text.Rendering.now(self.tokenizer).record()

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
        outputs: list[list[int]] = [[] for _ in requests]
        finishes: list[Finish] = ["cancelled"] * len(requests)
        steps = 0
        for step in decode(
            self.model,
            batch,
            sampling,
            hooks,
            stop=stop,
            likelihoods=False,
            compiled=self._compiled,
            own_cache=self.own_cache,
        ):
            steps += 1
            for row, token, finish in zip(step.rows, step.tokens, step.finish, strict=True):
                if token not in self._end_tokens:
                    outputs[row].append(token)
                if finish is not None:
                    finishes[row] = finish
            if on_step is not None:
                on_step()
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
        writers = [
            text.TextStream(
                self.tokenizer,
                self._stops_of(each),
                prompt[-1:] if each.continued else (),
                self._opened(each),
            )
            for each, prompt in zip(requests, batch.prompts, strict=True)
        ]
        unfinished = dict.fromkeys(range(len(requests)), 0)  # row -> tokens so far
        for step in decode(
            self.model,
            batch,
            sampling,
            hooks,
            poll,
            stop,
            compiled=self._compiled,
            own_cache=self.own_cache,
        ):
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

    def _message_readings(self, step: Step, batch: Batch) -> Iterator[TokenEvent]:
        """What a watch has read of each row's message, in the pass that has chosen its first token."""
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
            pad_token=text.pad_token(self.tokenizer, self._vocabulary),
            ended=self._spells_stop(requests) if any(map(self._stops_of, requests)) else None,
            watch=watch,
            spans=spans,
            parts=[self._parts(ids, span) for ids, span in zip(prompts, spans, strict=False)],
            samplings=[each.sampling or sampling for each in requests],
            stops=[each.stop for each in requests] if any(each.stop for each in requests) else (),
            likeliest=max(each.likeliest for each in requests),
            thoughts=thought_tokens(self.tokenizer),
        )

    def _opened(self, request: Request) -> str:
        """What the prompt has begun of the answer: its thoughts, or nothing."""
        if request.continued:
            return ""
        return text.opened_thought(self.tokenizer, request.messages, self.rendering)

    def _stops_of(self, request: Request) -> tuple[str, ...]:
        return request.stops if request.raw else (*self._stops, *request.stops)

    def _span(self, messages: Sequence[Message], ids: Sequence[int]) -> range:
        return text.message_span(self.tokenizer, messages, ids, self.rendering)

    def _parts(self, ids: Sequence[int], span: range) -> list[range]:
        return message_parts(ids, span, lambda some: text.decode_ids(self.tokenizer, some))

    def _hooks(
        self,
        rows: int,
        capture_layers: Sequence[int] = (),
        axes: Axes | None = None,
        stop_after: int | None = None,
    ) -> ResidualHooks:
        return ResidualHooks(
            self._blocks,
            self.hidden_size,
            rows,
            capture_layers=capture_layers,
            axes=axes,
            stop_after=stop_after,
            # Given text is read in one pass, which is not compiled.
            fixed=self._compiled is not None and stop_after is None,
        )

    def _spells_stop(self, requests: Sequence[Request]) -> Callable[[int, list[int]], bool]:
        """Whether a row's text has come to one of its stops: its own, or a turn that a base model begins."""
        stops = [self._stops_of(each) for each in requests]
        tails = [-2 * max(map(len, each), default=0) for each in stops]

        def spelled(row: int, ids: list[int]) -> bool:
            if not stops[row]:
                return False
            tail = text.decode_ids(self.tokenizer, ids[tails[row] :])
            return text.first_stop(tail, stops[row]) < len(tail)

        return spelled

    def _without_stop(self, ids: list[int]) -> list[int]:
        """The tokens before a stop text, if there is one."""
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
        activations = _activations(hooks)
        if any(len(short) < len(output) for short, output in zip(kept, outputs, strict=True)):
            passages = [
                _answered(prompt, response) for prompt, response in zip(batch.prompts, kept, strict=True)
            ]
            again = self._read(passages, layers, interventions)
            activations = [
                second if len(short) < len(output) else first
                for first, second, short, output in zip(activations, again, kept, outputs, strict=True)
            ]
        return activations

    # Text that is already there -----------------------------------------------------------------------------

    def score(
        self, pairs: Sequence[tuple[list[Message], str]], interventions: Interventions | None = None
    ) -> list[Likelihood]:
        """How probable each response is after its conversation (teacher-forced).

        Args:
            pairs: conversations, each with the response to it.
            interventions: what is done to the residual stream, at every position; by default nothing.

        Raises:
            GenerationError: a response is empty or does not fit the context.
        """
        passages = []
        for messages, response in pairs:
            ids = text.encode_response(self.tokenizer, response)
            if not ids:
                raise GenerationError("An empty response has no probability per token.")
            passages.append(_answered(self.encode(messages), ids))
        self._check_lengths(passages)
        scored: list[Likelihood] = [Likelihood(0.0, 0)] * len(passages)

        interventions = interventions or Interventions.none()

        def logprobs(part: list[int]) -> list[float]:
            hooks = self._hooks(len(part))
            hooks.apply(_rows_of(interventions, part))
            return response_logprobs(self.model, [passages[index] for index in part], hooks)

        for part, sums in in_batches(passages, logit_token_budget(self.model), logprobs):
            for index, total in zip(part, sums, strict=True):
                count = len(passages[index].ids) - passages[index].start
                scored[index] = Likelihood(total / count, count)
        return scored

    def read(
        self,
        texts: Sequence[str | list[Message]],
        layers: Sequence[int],
        interventions: Interventions | None = None,
    ) -> list[Activations]:
        """Activations of given text, without writing any, batched by length.

        A string is read as it is: the mean is over its tokens, and `prompt_last` is at its last one. A
        conversation that ends with the assistant is a prompt and a response, as in `generate`. One that ends
        with the user has no response: its mean is over the whole prompt.

        Raises:
            GenerationError: a text is empty or does not fit the context.
        """
        passages = [self._passage(each) for each in texts]
        return self._read(passages, layers, interventions or Interventions.none())

    def reread_reply(
        self,
        messages: Sequence[Message],
        reply: str | Sequence[int],
        axes: Axes,
        changes: Mapping[int, Interventions] | None = None,
    ) -> list[TokenEvent]:
        """A reply that is there already, token by token, as `stream` would have reported it: without writing.

        Args:
            messages: what it answers.
            reply: its text, or its token ids, an end of the turn included.
            axes: what the events' projections are about; see `stream`.
            changes: by token: the interventions from that one on. The first is for token 0; None = none.

        Returns:
            One event per token, without log-probability, entropy and finish.

        Raises:
            GenerationError: it does not fit the context, a vector does not fit this model, or memory ran out.
        """
        prompt = self.encode(messages)
        ids = text.encode_response(self.tokenizer, reply) if isinstance(reply, str) else list(reply)
        before = prompt[-1:] if text.is_continued(messages) else ()
        # A token is chosen at the position before it: what holds from a token on holds from there.
        first = len(prompt) - 1
        by_position = {first + at if at else 0: each for at, each in (changes or {}).items()}
        places = range(first, first + len(ids))
        return self._reread([*prompt, *ids[:-1]], places, ids, axes, by_position, before)

    def reread_message(self, messages: Sequence[Message], axes: Axes) -> list[TokenEvent]:
        """The user's last message, token by token, each at its own position: what the model makes of it.

        Args:
            messages: the conversation up to that message.
            axes: what the events' projections are about; see `stream`.

        Raises:
            GenerationError: it does not fit the context, or memory ran out.
        """
        ids = self.encode(messages)
        span = self._span(messages, ids)
        tokens = ids[span.start : span.stop]
        return self._reread(ids[: span.stop], span, tokens, axes, {}, ids[: span.start][-1:])

    def _reread(
        self,
        ids: list[int],
        places: range,
        tokens: Sequence[int],
        axes: Axes,
        changes: Mapping[int, Interventions],
        before: Sequence[int],
    ) -> list[TokenEvent]:
        """Events of tokens; what they report was seen at `places` of `ids`."""
        if not tokens:
            return []
        check_fits(len(ids), None if self.context_length is None else self.context_length + 1)
        layers = {layer for vectors in axes.values() for layer in vectors}
        layers |= {layer for each in changes.values() for layer in each.capping}
        hooks = ResidualHooks(
            self._blocks,
            self.hidden_size,
            1,
            axes=axes,
            stop_after=max(layers, default=0),
            everywhere=True,
        )
        if self.own_cache and len(changes) > 1:
            raise GenerationError(
                f"{self.name} cannot re-read a reply whose mix changed while it was written."
            )
        seen = read_positions(self.model, Rereading(ids, places, changes), hooks).tolist()
        writer = text.TextStream(self.tokenizer, (), before)
        events = []
        for index, (token, values) in enumerate(zip(tokens, seen, strict=True)):
            new = writer.feed(token) if token not in self._end_tokens else ""
            projections = dict(zip(hooks.axis_names, values[1:], strict=True))
            events.append(TokenEvent(0, index, token, new, projections, values[0], 0.0, None))
        return events

    def read_messages(self, conversations: Sequence[list[Message]], layers: Sequence[int]) -> list[Reading]:
        """What a stream's watch would read of the last message of each conversation, without an answer.

        Raises:
            GenerationError: a conversation is empty or does not fit the context.
        """
        passages = []
        for messages in conversations:
            ids = self.encode(messages)
            span = self._span(messages, ids)
            passages.append(Passage(ids, span.start, len(ids) - 1, span.stop, self._parts(ids, span)))
        return [
            Reading(each.layers, each.response, each.prompt_last, each.n_tokens, each.parts)
            for each in self._read(passages, layers, Interventions.none())
        ]

    def _passage(self, item: str | list[Message]) -> Passage:
        if isinstance(item, str):
            ids = text.encode(self.tokenizer, item, special=True)
            bare = text.encode(self.tokenizer, item, special=False)
            if not bare:
                raise GenerationError("An empty text has no activations.")
            # Special tokens before the text are needed by the model but are not part of what is read.
            start = max(0, next((at for at in range(len(ids)) if ids[at : at + len(bare)] == bare), 0))
            ids = ids[: start + len(bare)]
            return Passage(ids, start, len(ids) - 1)
        text.check_messages(item)
        item = text.joined(item)
        if item[-1]["role"] == "assistant":
            response = text.encode_response(self.tokenizer, item[-1]["content"])
            return _answered(self.encode(item[:-1] or conversation("")), response)
        prompt = self.encode(item)
        return Passage(prompt, 0, len(prompt) - 1)

    def _read(
        self, passages: Sequence[Passage], layers: Sequence[int], interventions: Interventions
    ) -> list[Activations]:
        self._check_lengths(passages)
        activations: dict[int, Activations] = {}

        def read(part: list[int]) -> list[Activations]:
            hooks = self._hooks(len(part), capture_layers=layers, stop_after=max(layers))
            hooks.apply(_rows_of(interventions, part))
            read_passages(self.model, [passages[index] for index in part], hooks)
            return _activations(hooks)

        for part, found in in_batches(passages, token_budget(self.model), read):
            activations.update(zip(part, found, strict=True))
        return [activations[index] for index in range(len(passages))]

    def _check_lengths(self, passages: Sequence[Passage]) -> None:
        for passage in passages:
            check_fits(len(passage.ids) - 1, self.context_length)

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


def conversation(prompt: str, system: str | None = None) -> list[Message]:
    """The messages of a single question."""
    opening = [{"role": "system", "content": system}] if system else []
    return [*opening, {"role": "user", "content": prompt}]


def _cancelled(row: int, index: int, writer: text.TextStream) -> TokenEvent:
    return TokenEvent(row, index, -1, writer.finish(), {}, 0.0, 0.0, "cancelled")


def _answered(prompt: Sequence[int], response: Sequence[int]) -> Passage:
    return Passage([*prompt, *response], start=len(prompt), pick=len(prompt) - 1)


def _activations(hooks: ResidualHooks) -> list[Activations]:
    capture = hooks.capture
    assert capture is not None
    parts: Sequence[Tensor | None] = capture.part_means() or [None] * len(capture.counts)
    rows = zip(capture.means(), capture.picked(), capture.counts.tolist(), parts, strict=True)
    return [Activations(capture.layers, mean, last, int(count), part) for mean, last, count, part in rows]


def _rows_of(interventions: Interventions, rows: Sequence[int]) -> Interventions:
    """The interventions of some rows of a batch, in a new order."""
    steering = {
        layer: vector[list(rows)] if vector.dim() == 2 else vector
        for layer, vector in interventions.steering.items()
    }
    capping = {
        layer: cap if isinstance(cap, Cap) else [cap[row] for row in rows]
        for layer, cap in interventions.capping.items()
    }
    plausibility = interventions.plausibility
    if isinstance(plausibility, Sequence):
        plausibility = [plausibility[row] for row in rows]
    return Interventions(steering, capping, plausibility)
