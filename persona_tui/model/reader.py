"""`TextReader`: what a model makes of text that is already there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor

from persona_tui.core.errors import GenerationError
from persona_tui.model import text
from persona_tui.model.distil import Distillation, Lesson
from persona_tui.model.forced import (
    Passage,
    in_batches,
    logit_token_budget,
    read_passages,
    response_logprobs,
    token_budget,
)
from persona_tui.model.forward import check_fits
from persona_tui.model.interventions import Cap, Interventions
from persona_tui.model.loaded import Axes, LoadedModel
from persona_tui.model.request import conversation
from persona_tui.model.reread import Choice, Rereading, read_choices, read_positions
from persona_tui.model.residual import ResidualHooks
from persona_tui.model.results import Activations, Likelihood, Reading, TokenEvent
from persona_tui.model.text import Message


class TextReader(LoadedModel):
    """A loaded model that reads: likelihoods, activations and projections of given text."""

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
            passages.append(answered(self.encode(messages), ids))
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

    def distillation(
        self, lessons: Sequence[tuple[list[Message], list[Message], str]], emphasis: float = 1.0
    ) -> Distillation:
        """Prepare to fit vectors so that replies are as likely without a system prompt as with it.

        Args:
            lessons: a conversation with the system prompt, the same without it, and a reply.
            emphasis: how far the vectors should go: 1 = as far as the system prompt does, 2 = twice as far.

        Raises:
            GenerationError: a reply is empty or does not fit the context.
        """
        found = []
        for taught, bare, reply in lessons:
            ids = text.encode_response(self.tokenizer, reply)
            if not ids:
                raise GenerationError("An empty response teaches nothing.")
            found.append(Lesson(answered(self.encode(taught), ids), answered(self.encode(bare), ids)))
        self._check_lengths([passage for lesson in found for passage in (lesson.taught, lesson.bare)])
        return Distillation(self.model, self._blocks, found, emphasis)

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

    def reply_choices(
        self,
        messages: Sequence[Message],
        reply: str | Sequence[int],
        changes: Mapping[int, Interventions] | None = None,
        likeliest: int = 8,
    ) -> list[Choice]:
        """How probable each token of a reply that is there already was, and what else was likely.

        Args:
            messages: what it answers.
            reply: its text, or its token ids, an end of the turn included.
            changes: by token: the interventions from that one on; None = none.
            likeliest: how many of the likeliest tokens are told at each place.

        Raises:
            GenerationError: it does not fit the context, a vector does not fit this model, or memory ran out.
        """
        prompt = self.encode(messages)
        ids = text.encode_response(self.tokenizer, reply) if isinstance(reply, str) else list(reply)
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
            hooks.apply(_rows_of(interventions, part))
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
