"""Reading texts as a monitor will meet them: once each, all layers at a time.

A query is read where a chat reads it: as the user's message, in the model's chat template (or as plain text
for a base model), up to where the reply would begin. That one pass gives two positions:

- `message`: the mean over the message's own tokens, the template left out;
- `prompt_last`: the last token before the reply.

For judging replies the same text is read as something that the assistant says: `reply`, the mean over its
tokens. The monitor's texts are queries only, so what is learned is which subjects are dangerous, not what a
harmful answer looks like.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from persona_tui.jobs import JobContext
from persona_tui.model import Message, ModelWrapper, Reading, conversation
from persona_tui.processes import processes

MESSAGE, PROMPT_LAST, REPLY = "message", "prompt_last", "reply"
POSITIONS = (MESSAGE, PROMPT_LAST)
BEFORE_REPLY = "Please go on."  # what the user says before a text that is read as a reply

_CHUNK = 32  # texts between two reports of progress


@dataclass(frozen=True, eq=False)
class Readings:
    """What was read of some texts.

    Attributes:
        layers: where, ascending.
        at: position -> `[texts, layers, hidden]`, float32.
    """

    layers: tuple[int, ...]
    at: Mapping[str, Tensor]

    def select(self, position: str, layers: Sequence[int]) -> Tensor:
        """`[texts, layers, hidden]` of some of the layers, in the order asked for."""
        rows = [self.layers.index(layer) for layer in layers]
        return self.at[position] if rows == [*range(len(self.layers))] else self.at[position][:, rows]


def read_queries(
    model: ModelWrapper, queries: Sequence[str], layers: Sequence[int], context: JobContext | None = None
) -> Readings:
    """Read texts as a user's messages, at both positions.

    Raises:
        GenerationError: a text does not fit the model's context.
        JobCancelled: the context says so.
    """
    conversations = [conversation(query) for query in queries]
    read = _in_chunks(conversations, lambda some: model.read_messages(some, layers), context, "messages")
    return Readings(
        read[0].layers,
        {
            MESSAGE: torch.stack([each.mean for each in read]),
            PROMPT_LAST: torch.stack([_last(each) for each in read]),
        },
    )


def read_as_replies(
    model: ModelWrapper, texts: Sequence[str], layers: Sequence[int], context: JobContext | None = None
) -> Readings:
    """Read texts as if the assistant said them.

    Raises:
        GenerationError: a text is empty or does not fit the model's context.
        JobCancelled: the context says so.
    """

    def read(some: Sequence[list[Message]]) -> list[Reading]:
        found = model.read(list(some), layers)
        return [Reading(each.layers, each.response, None, each.n_tokens) for each in found]

    before = conversation(BEFORE_REPLY)
    conversations = [[*before, {"role": "assistant", "content": text}] for text in texts]
    found = _in_chunks(conversations, read, context, "replies")
    return Readings(found[0].layers, {REPLY: torch.stack([each.mean for each in found])})


def _in_chunks(
    conversations: Sequence[list[Message]],
    read: Callable[[Sequence[list[Message]]], list[Reading]],
    context: JobContext | None,
    what: str,
) -> list[Reading]:
    done = 0

    def read_some(some: Sequence[list[Message]]) -> list[Reading]:
        nonlocal done
        if context is not None:
            context.checkpoint()
            context.progress(done, len(conversations), f"reading {what}")
        done += len(some)
        return read(some)

    return processes().divide(conversations, _CHUNK, read_some)


def _last(reading: Reading) -> Tensor:
    assert reading.last is not None  # a message has one
    return reading.last
