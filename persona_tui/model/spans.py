"""Reading every reply of many conversations, in one pass per conversation.

A position sees only what stands before it. So a reply's activations are the same whether its conversation
ends with it or goes on, and a conversation of ten replies needs one pass and not ten.

1. Each conversation becomes token ids and the spans of its replies. Where a model's template rewrites earlier
   turns (some leave out old thoughts), every reply gets a passage of its own.
2. Passages of like length are read together, up to the last layer that is wanted; without the
   language-model head.
3. Each span's mean is taken on the model's own device.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from persona_tui.core.errors import GenerationError, MemoryShortage
from persona_tui.model import text
from persona_tui.model.architecture import clear_memory_errors, find_blocks, find_decoder
from persona_tui.model.control import control_tokens
from persona_tui.model.forced import Passage, in_batches, token_budget
from persona_tui.model.request import Message, is_continued
from persona_tui.model.residual import StopForward

if TYPE_CHECKING:
    from persona_tui.model.wrapper import ModelWrapper

_MOST_CHARACTERS_PER_TOKEN = 16  # text that has more per token of the context cannot fit


@dataclass(frozen=True)
class ReplyReading:
    """One reply of a conversation.

    Attributes:
        message: its place among the conversation's messages, from 0.
        mean: over its tokens, `[layers, hidden]` float32 on the CPU, in the order of the layers asked for.
        n_tokens: how many tokens it has.
        forgotten: how many of the oldest messages had to be left out, so that it fits the context.
    """

    message: int
    mean: Tensor
    n_tokens: int
    forgotten: int = 0


@dataclass(frozen=True)
class _Span:
    conversation: int
    message: int
    start: int
    stop: int
    forgotten: int = 0


@dataclass(frozen=True)
class _Planned:
    """What one pass reads: token ids, and the replies among them."""

    ids: list[int]
    spans: tuple[_Span, ...]


def read_replies(
    model: ModelWrapper, conversations: Sequence[Sequence[Message]], layers: Sequence[int]
) -> list[list[ReplyReading] | GenerationError]:
    """Return the mean activation of every assistant's message that says something.

    Args:
        model: any model; without a chat template, conversations are written as plain text.
        conversations: each with at least one reply.
        layers: where to read.

    Returns:
        By conversation its replies in order, or the error that says why it cannot be read. One that cannot
        be read does not keep the others from it.
    """
    found: list[list[ReplyReading] | GenerationError] = []
    planned: list[_Planned] = []
    for number, messages in enumerate(conversations):
        try:
            planned += _plan(model, number, messages)
            found.append([])
        except GenerationError as error:
            found.append(error)
    for span, reading in _readings(model, planned, list(layers)):
        place = found[span.conversation]
        if isinstance(reading, GenerationError):
            found[span.conversation] = reading
        elif isinstance(place, list):
            place.append(reading)
    for place in found:
        if isinstance(place, list):
            place.sort(key=lambda reading: reading.message)
    return found


# Planning ---------------------------------------------------------------------------------------------------


def _plan(model: ModelWrapper, number: int, messages: Sequence[Message]) -> list[_Planned]:
    text.check_messages(messages)
    conversation, shift = _begun_by_user(messages)
    replies = [
        place
        for place, message in enumerate(conversation)
        if message["role"] == "assistant" and message["content"].strip()
    ]
    if not replies:
        raise GenerationError("it has no assistant reply")
    plan = _Plan(model, number, conversation, shift)
    together = plan.in_one_pass(replies)
    return [together] if together is not None else [plan.alone(reply) for reply in replies]


def _begun_by_user(messages: Sequence[Message]) -> tuple[Sequence[Message], int]:
    """Return the conversation with an empty message before a greeting of the assistant's, and how many that
    are.
    """
    first = 1 if messages[0]["role"] == "system" else 0
    if first >= len(messages) or messages[first]["role"] != "assistant":
        return messages, 0
    return [*messages[:first], {"role": "user", "content": ""}, *messages[first:]], 1


class _Plan:
    """How the replies of one conversation are read."""

    def __init__(self, model: ModelWrapper, number: int, messages: Sequence[Message], shift: int) -> None:
        self._model = model
        self._tokenizer = model.tokenizer
        self._number = number
        self._messages = messages
        self._shift = shift
        self._chat = text.is_chat_tokenizer(model.tokenizer)
        self._lengths: list[int] | None = None

    def in_one_pass(self, replies: Sequence[int]) -> _Planned | None:
        """Return all replies as spans of the last one's passage; None if the template or the context forbids
        it.

        What is new since the reply before is encoded on its own. That this comes to the same tokens as the
        whole is checked, once for all of them.
        """
        if self._hopelessly_long():
            return None
        ids: list[int] = []
        spans: list[_Span] = []
        written = ""
        for reply in replies:
            before = self._before(self._messages[:reply])
            if not before.startswith(written):
                return None
            if spans:
                ids += text.encode_marked(self._tokenizer, before[len(written) :], special=False)
            else:
                ids += self._encoded(before)
            content = self._messages[reply]["content"]
            response = text.encode_response(self._tokenizer, content)
            spans.append(self._span(reply, len(ids), len(response)))
            ids += response
            marked = control_tokens(self._tokenizer).mark(content, reply=True)
            written = before + (marked if self._chat else f" {marked}")
        return _Planned(ids, tuple(spans)) if self._sound(ids, spans, replies[-1]) else None

    def _hopelessly_long(self) -> bool:
        context = self._model.context_length
        characters = sum(len(message["content"]) for message in self._messages)
        return context is not None and characters > _MOST_CHARACTERS_PER_TOKEN * context

    def _sound(self, ids: Sequence[int], spans: Sequence[_Span], last: int) -> bool:
        if any(span.start == span.stop for span in spans) or not self._fits(len(ids)):
            return False
        whole = self._encoded(self._before(self._messages[:last])) if len(spans) > 1 else None
        return whole is None or list(ids[: spans[-1].start]) == whole

    def alone(self, reply: int) -> _Planned:
        """One reply after as much of what stands before it as fits the context; the oldest turns go first.

        Raises:
            GenerationError: it does not even fit with the message before it alone.
        """
        response = text.encode_response(self._tokenizer, self._messages[reply]["content"])
        if not response:
            raise GenerationError("a reply in it has no tokens")
        opening = 1 if self._messages[0]["role"] == "system" else 0
        first = self._first_that_fits(opening, reply, len(response))
        while True:
            prompt = self._prompt(opening, first, reply)
            length = len(prompt) + len(response)
            if self._fits(length) or first >= reply - 1:
                break
            first = self._next_turn(first, reply)
        if not self._fits(length):
            raise GenerationError(
                f"a reply and the message before it have {length} tokens, and the model's context holds "
                f"{self._model.context_length}"
            )
        span = self._span(reply, len(prompt), len(response), first - opening)
        return _Planned([*prompt, *response], (span,))

    def _prompt(self, opening: int, first: int, reply: int) -> list[int]:
        kept = [*self._messages[:opening], *self._messages[first:reply]]
        return self._encoded(self._before(kept))

    def _before(self, messages: Sequence[Message]) -> str:
        """Return what stands before the reply to some messages, marked; a reply to a reply is part of its
        turn.
        """
        rendered = text.render_marked(self._tokenizer, messages, self._model.rendering)
        return rendered + (text.BETWEEN if is_continued(messages) else "")

    def _encoded(self, marked: str) -> list[int]:
        return text.encode_marked(self._tokenizer, marked, special=not self._chat)

    def _first_that_fits(self, opening: int, reply: int, response: int) -> int:
        """Return the first message after the system's that may be kept, judged by the lengths of the
        messages.
        """
        context = self._model.context_length
        if context is None:
            return opening
        if self._lengths is None:
            self._lengths = [
                len(text.encode(self._tokenizer, message["content"], special=False))
                for message in self._messages
            ]
        total, first = sum(self._lengths[opening:reply]), opening
        room = context - response - sum(self._lengths[:opening])
        while total > room and first < reply - 1:
            following = self._next_turn(first, reply)
            total -= sum(self._lengths[first:following])
            first = following
        return first

    def _next_turn(self, first: int, reply: int) -> int:
        """Return where the next turn begins, at the latest with the message before the reply."""
        users = (place for place in range(first + 1, reply - 1) if self._messages[place]["role"] == "user")
        return next(users, reply - 1)

    def _span(self, reply: int, start: int, length: int, forgotten: int = 0) -> _Span:
        return _Span(self._number, reply - self._shift, start, start + length, forgotten)

    def _fits(self, tokens: int) -> bool:
        return self._model.context_length is None or tokens <= self._model.context_length


# Reading ----------------------------------------------------------------------------------------------------


def _readings(
    model: ModelWrapper, planned: Sequence[_Planned], layers: list[int]
) -> Iterator[tuple[_Span, ReplyReading | GenerationError]]:
    passages = [Passage(each.ids, 0, 0) for each in planned]

    def read(piece: list[int]) -> Tensor | GenerationError:
        try:
            return _means(model, [planned[index] for index in piece], layers)
        except MemoryShortage as error:
            if len(piece) > 1:
                raise  # again with fewer
            return error

    for piece, means in in_batches(passages, token_budget(model.model), read):
        for place, index in enumerate(piece):
            for number, span in enumerate(planned[index].spans):
                if isinstance(means, GenerationError):
                    yield span, means
                    continue
                mean = means[place, number].clone()  # not a view that keeps the whole batch alive
                yield span, ReplyReading(span.message, mean, span.stop - span.start, span.forgotten)


@torch.inference_mode()
def _means(model: ModelWrapper, rows: Sequence[_Planned], layers: list[int]) -> Tensor:
    """`[rows, spans, layers, hidden]`, float32 on the CPU; rows with fewer spans than others end in zeros."""
    decoder, stack = find_decoder(model.model), find_blocks(model.model)
    width = max(len(row.ids) for row in rows)
    # Padding stands behind every real token, so that none of them ever sees it.
    padded = [row.ids + [row.ids[-1]] * (width - len(row.ids)) for row in rows]
    weights = torch.zeros(len(rows), max(len(row.spans) for row in rows), width)
    for place, row in enumerate(rows):
        for number, span in enumerate(row.spans):
            weights[place, number, span.start : span.stop] = 1 / (span.stop - span.start)
    reader = _Reader(weights, max(layers))
    tokens = torch.tensor(padded, device=model.device)
    handles = [stack[layer].register_forward_hook(reader.hook(layer)) for layer in sorted(set(layers))]
    try:
        with clear_memory_errors():
            decoder(input_ids=tokens, use_cache=False)
    except StopForward:
        pass
    finally:
        for handle in handles:
            handle.remove()
    return torch.stack([reader.means[layer] for layer in layers], dim=2)


class _Reader:
    """Takes the means of spans from the outputs of blocks."""

    def __init__(self, weights: Tensor, last: int) -> None:
        self.means: dict[int, Tensor] = {}
        self._weights = weights
        self._last = last

    def hook(self, layer: int) -> Any:
        """Return what is called with a block's output."""

        def read(module: nn.Module, args: Any, output: Any) -> None:
            hidden = output[0] if isinstance(output, tuple) else output
            self._weights = self._weights.to(hidden.device)
            self.means[layer] = torch.bmm(self._weights, hidden.float()).cpu()
            if layer == self._last:
                raise StopForward

        return read
