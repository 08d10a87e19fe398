"""Conversations that are read once, however many traits ask for them."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

from torch import Tensor

from persona_tui.core.errors import GenerationError
from persona_tui.model import Message, ModelWrapper, Reading
from persona_tui.model.spans import read_replies
from persona_tui.traits.gate import gate_layers

T = TypeVar("T")

_TOGETHER = 64  # conversations between two checkpoints


class Readings:
    """What a model makes of replies and of messages; kept in memory, by what was said."""

    def __init__(self, model: ModelWrapper, layers: Sequence[int], checkpoint: Callable[[], None]) -> None:
        """
        Args:
            model: reads.
            layers: where replies are read; messages are where gates read.
            checkpoint: called between batches.
        """
        self.model = model
        self.layers = tuple(layers)
        self._checkpoint = checkpoint
        self._replies: dict[str, Tensor | None] = {}
        self._messages: dict[str, Reading] = {}

    def replies(self, conversations: Sequence[Sequence[Message]]) -> list[Tensor | None]:
        """The mean over each conversation's last reply, `[layers, hidden]`; None where it cannot be read."""
        for chunk in _chunks(_new(conversations, self._replies)):
            self._checkpoint()
            for said, read in zip(chunk, read_replies(self.model, chunk, self.layers), strict=True):
                self._replies[_key(said)] = None if isinstance(read, GenerationError) else read[-1].mean
        return [self._replies[_key(each)] for each in conversations]

    def remember(self, conversation: Sequence[Message], mean: Tensor) -> None:
        """Keep a reply that was read elsewhere, at the same layers."""
        self._replies[_key(conversation)] = mean

    def messages(self, prompts: Sequence[list[Message]]) -> list[Reading]:
        """The last message of each prompt.

        Raises:
            GenerationError: one does not fit the context.
        """
        layers = gate_layers(self.model.n_layers)
        for chunk in _chunks(_new(prompts, self._messages)):
            self._checkpoint()
            for said, read in zip(chunk, self.model.read_messages(chunk, layers), strict=True):
                self._messages[_key(said)] = read
        return [self._messages[_key(each)] for each in prompts]


def _new(conversations: Sequence[Sequence[Message]], known: dict[str, T]) -> list[list[Message]]:
    return [list(each) for each in conversations if _key(each) not in known]


def _key(conversation: Sequence[Message]) -> str:
    return json.dumps(list(conversation))


def _chunks(items: Sequence[T]) -> Iterator[list[T]]:
    for at in range(0, len(items), _TOGETHER):
        yield list(items[at : at + _TOGETHER])
