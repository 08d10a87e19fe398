"""`LoadedModel`: what a model with its tokenizer is, how it encodes conversations, and how it reads text."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from persona_tui.core.errors import GenerationError
from persona_tui.core.identity import ModelSketch
from persona_tui.core.workspace import model_slug
from persona_tui.model import text
from persona_tui.model.architecture import (
    check_fits,
    context_length,
    device_of,
    find_blocks,
    hidden_size,
    n_layers,
)
from persona_tui.model.compiled import CompiledForward
from persona_tui.model.control import thought_tokens
from persona_tui.model.distil import Distillation, Lesson
from persona_tui.model.fingerprint import fingerprint, sketch
from persona_tui.model.forced import (
    Passage,
    in_batches,
    logit_token_budget,
    read_passages,
    response_logprobs,
    token_budget,
)
from persona_tui.model.packed import unpack
from persona_tui.model.parts import message_parts
from persona_tui.model.request import Interventions, Message, conversation, is_continued
from persona_tui.model.reread import Choice, Rereading, read_choices, read_positions
from persona_tui.model.residual import ResidualHooks
from persona_tui.model.results import Activations, Likelihood, Reading, TokenEvent

Axes = Mapping[str, Mapping[int, Tensor]]

_LONG = 100_000  # characters; from there on it is estimated whether they can fit at all


class LoadedModel:
    """A causal language model and its tokenizer; `ModelWrapper` says what the attributes are."""

    guides = True

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
        self.n_layers = n_layers(model)
        self.hidden_size = hidden_size(model)
        self.context_length = context_length(model)
        self._blocks = find_blocks(model)
        self._end_tokens = text.end_tokens(model, tokenizer)
        self._stops = () if text.is_chat_tokenizer(tokenizer) else text.PLAIN_STOPS
        self._vocabulary = int(model.get_input_embeddings().num_embeddings)  # type: ignore[arg-type]
        self._pad_token = text.pad_token(tokenizer, self._vocabulary)
        self._thoughts = thought_tokens(tokenizer)
        self._compiled: CompiledForward | None = None
        self.rendering = text.Rendering.now(tokenizer)
        self.own_cache = False

    @property
    def learns(self) -> bool:
        """Whether it computes gradients, so that vectors can be fitted."""
        return True

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
        return device_of(self.model.get_input_embeddings())

    @property
    def dtype(self) -> torch.dtype:
        """The precision of the weights."""
        return self.model.dtype

    def need_weights(self, purpose: str) -> None:
        """Raise a GenerationError, which names the purpose, if something else has the model's weights."""

    def compile(self, backend: str = "inductor") -> None:
        """From now on, write every token after a reply's first with a compiled pass; see `model/compiled.py`.

        The first reply of a shape takes as long as compiling does.

        Raises:
            GenerationError: the model lies on several devices, or is quantized.
        """
        if self.own_cache:
            raise GenerationError(f"{self.name} cannot be compiled: it makes its cache itself.")
        unpack(self.model)
        self._compiled = CompiledForward(self.model, backend)

    def render(self, messages: Sequence[Message]) -> str:
        """Return the conversation as the model sees it, up to where the assistant's next words begin."""
        return text.render(self.tokenizer, messages, self.rendering)

    def encode(self, messages: Sequence[Message]) -> list[int]:
        """Return the token ids of `render`; what looks like a control token in a message is text.

        Raises:
            GenerationError: the template refuses it; or it cannot fit the context, which is found out before
                it is rendered if it is long.
        """
        check_fits(self._least_tokens(messages), self.context_length)
        return text.encode_prompt(self.tokenizer, messages, self.rendering)

    def count_tokens(self, messages: Sequence[Message]) -> int:
        """Return how much of the context a conversation takes; one that cannot fit may take still more."""
        least = self._least_tokens(messages)
        if self.context_length is not None and least > self.context_length:
            return least
        return len(self.encode(messages))

    def _least_tokens(self, messages: Sequence[Message]) -> int:
        """Return how many tokens a conversation has at least; tokenizing takes a hundred times its size."""
        characters = sum(len(each.get("content") or "") for each in messages)
        return characters // self._longest_token if characters > _LONG else 0

    @cached_property
    def _longest_token(self) -> int:
        return max(map(len, self.tokenizer.get_vocab()), default=1)

    def today(self) -> dict[str, Any]:
        """Return the record of what the chat template writes now, with which a conversation begins."""
        return text.Rendering.now(self.tokenizer).record()

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

    # What it makes of text that is there --------------------------------------------------------------------

    def score(
        self, pairs: Sequence[tuple[list[Message], str]], interventions: Interventions | None = None
    ) -> list[Likelihood]:
        """Return how probable each response is after its conversation (teacher-forced).

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
            passages.append(answered(self.encode(messages), ids))
        self._check_lengths(passages)
        scored: list[Likelihood] = [Likelihood(0.0, 0)] * len(passages)

        interventions = interventions or Interventions.none()

        def logprobs(part: list[int]) -> list[float]:
            hooks = self._hooks(len(part))
            hooks.apply(interventions.of_rows(part))
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

    def distillation(
        self,
        lessons: Sequence[tuple[list[Message], list[Message], str]],
        emphasis: float = 1.0,
        focus: float = 0.0,
        own: bool = False,
    ) -> Distillation:
        """Prepare to fit vectors so that replies are as likely without a system prompt as with it.

        Args:
            lessons: a conversation with the system prompt, the same without it, and a reply.
            emphasis: how far the vectors should go: 1 = as far as the system prompt does, 2 = twice as far.
            focus: how much more than the model itself they should be led by the question: 0 = no more, 1 =
                twice as much. What a question does is told from the next lesson's, which should be another.
            own: whether the replies were written with such vectors; then what is unlikely with the system
                prompt is unlearned.

        Raises:
            GenerationError: a reply is empty or does not fit the context.
        """
        found = []
        for at, (taught, bare, reply) in enumerate(lessons):
            ids = text.encode_response(self.tokenizer, reply)
            if not ids:
                raise GenerationError("An empty response teaches nothing.")
            _, other, _ = lessons[(at + 1) % len(lessons)]
            found.append(Lesson(*(answered(self.encode(each), ids) for each in (taught, bare, other))))
        self._check_lengths(
            [each for lesson in found for each in (lesson.taught, lesson.bare, lesson.strange)]
        )
        return Distillation(self.model, self._blocks, found, emphasis, focus, own)

    def reread_reply(
        self,
        messages: Sequence[Message],
        reply: str | Sequence[int],
        axes: Axes,
        changes: Mapping[int, Interventions] | None = None,
    ) -> list[TokenEvent]:
        """Return a reply that is there already, token by token, as `stream` would have reported it.

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
        ids = self._reply_ids(reply)
        before = prompt[-1:] if is_continued(messages) else ()
        # A token is chosen at the position before it: what holds from a token on holds from there.
        first = len(prompt) - 1
        by_position = {first + at if at else 0: each for at, each in (changes or {}).items()}
        places = range(first, first + len(ids))
        return self._reread([*prompt, *ids[:-1]], places, ids, axes, by_position, before)

    def _reply_ids(self, reply: str | Sequence[int]) -> list[int]:
        """Return the tokens of a reply that is there already; a GenerationError if the model lacks one."""
        ids = text.encode_response(self.tokenizer, reply) if isinstance(reply, str) else list(reply)
        if wrong := [each for each in ids if not 0 <= each < self._vocabulary]:
            raise GenerationError(f"{wrong[0]} is not a token: this model's are 0 to {self._vocabulary - 1}.")
        return ids

    def reply_choices(
        self,
        messages: Sequence[Message],
        reply: str | Sequence[int],
        changes: Mapping[int, Interventions] | None = None,
        likeliest: int = 8,
    ) -> list[Choice]:
        """Return how probable each token of a reply that is there already was, and what else was likely.

        Args:
            messages: what it answers.
            reply: its text, or its token ids, an end of the turn included.
            changes: by token: the interventions from that one on; None = none.
            likeliest: how many of the likeliest tokens are told at each place.

        Raises:
            GenerationError: it does not fit the context, a vector does not fit this model, or memory ran out.
        """
        prompt = self.encode(messages)
        ids = self._reply_ids(reply)
        if not ids:
            return []
        check_fits(len(prompt) + len(ids) - 1, self.context_length)
        if self.own_cache and len(changes or {}) > 1:
            raise GenerationError(
                f"{self.name} cannot re-read a reply whose mix changed while it was written."
            )
        first = len(prompt) - 1
        by_position = {first + at if at else 0: each for at, each in (changes or {}).items()}
        asked = Rereading([*prompt, *ids[:-1]], range(first, first + len(ids)), by_position)
        return read_choices(self.model, asked, ids, self._hooks(1), likeliest)

    def reread_message(self, messages: Sequence[Message], axes: Axes) -> list[TokenEvent]:
        """Return what the model makes of the user's last message, token by token, each at its position.

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
        """Return what a stream's watch would read of each conversation's last message, without an answer.

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
            return answered(self.encode(item[:-1] or conversation("")), response)
        prompt = self.encode(item)
        return Passage(prompt, 0, len(prompt) - 1)

    def _read(
        self, passages: Sequence[Passage], layers: Sequence[int], interventions: Interventions
    ) -> list[Activations]:
        self._check_lengths(passages)
        activations: dict[int, Activations] = {}

        def read(part: list[int]) -> list[Activations]:
            hooks = self._hooks(len(part), capture_layers=layers, stop_after=max(layers))
            hooks.apply(interventions.of_rows(part))
            read_passages(self.model, [passages[index] for index in part], hooks)
            return captured_activations(hooks)

        for part, found in in_batches(passages, token_budget(self.model), read):
            activations.update(zip(part, found, strict=True))
        return [activations[index] for index in range(len(passages))]

    def _check_lengths(self, passages: Sequence[Passage]) -> None:
        for passage in passages:
            check_fits(len(passage.ids) - 1, self.context_length)


def answered(prompt: Sequence[int], response: Sequence[int]) -> Passage:
    """Return a prompt and its answer, of which the answer counts."""
    return Passage([*prompt, *response], start=len(prompt), pick=len(prompt) - 1)


def captured_activations(hooks: ResidualHooks) -> list[Activations]:
    """Return what the hooks have captured of each row."""
    capture = hooks.capture
    assert capture is not None
    parts: Sequence[Tensor | None] = capture.part_means() or [None] * len(capture.counts)
    rows = zip(capture.means(), capture.picked(), capture.counts.tolist(), parts, strict=True)
    return [Activations(capture.layers, mean, last, int(count), part) for mean, last, count, part in rows]
