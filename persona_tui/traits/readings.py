"""Conversations that are read once, however many traits ask for them, and however often the job is begun."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, TypeVar

import torch
from torch import Tensor

from persona_tui.core.errors import GenerationError
from persona_tui.extraction.checkpoints import PartialStore, Tally
from persona_tui.model import Message, Reading
from persona_tui.model.spans import read_replies
from persona_tui.traits.gate import gate_layers

if TYPE_CHECKING:
    from persona_tui.model import ModelWrapper

T = TypeVar("T")

_TOGETHER = 64  # conversations between two checkpoints


class Readings:
    """What a model makes of replies and of messages; kept in memory, by what was said."""

    def __init__(
        self,
        model: ModelWrapper,
        layers: Sequence[int],
        checkpoint: Callable[[], None],
        partial: PartialStore,
    ) -> None:
        """
        Args:
            model: reads.
            layers: where replies are read; messages are where gates read.
            checkpoint: called between batches.
            partial: keeps what is read within its jobs, should they be interrupted.
        """
        self.model = model
        self.layers = tuple(layers)
        self._checkpoint = checkpoint
        self._partial = partial
        self._replies: dict[str, Tensor | None] = {}
        self._messages: dict[str, Reading] = {}

    def replies(self, conversations: Sequence[Sequence[Message]]) -> list[Tensor | None]:
        """Return the mean of each one's last reply, `[layers, hidden]`; None where it cannot be read."""

        def read(chunk: list[list[Message]]) -> list[Tensor | None]:
            found = read_replies(self.model, chunk, self.layers)
            return [None if isinstance(each, GenerationError) else each[-1].mean for each in found]

        new = _new(conversations, self._replies)
        for said, mean in zip(new, self._kept("replies", self.layers, new, read), strict=True):
            self._replies[_key(said)] = mean
        return [self._replies[_key(each)] for each in conversations]

    def remember(self, conversation: Sequence[Message], mean: Tensor) -> None:
        """Keep a reply that was read elsewhere, at the same layers."""
        self._replies[_key(conversation)] = mean

    def messages(self, prompts: Sequence[list[Message]]) -> list[Reading]:
        """Return the last message of each prompt, as a gate reads it.

        Raises:
            GenerationError: one does not fit the context.
        """
        layers = gate_layers(self.model.n_layers)

        def read(chunk: list[list[Message]]) -> list[Tensor | None]:
            found = self.model.read_messages(chunk, layers)
            return [torch.stack([each.mean, _last(each)]) for each in found]

        new = _new(prompts, self._messages)
        for said, both in zip(new, self._kept("messages", layers, new, read), strict=True):
            assert both is not None
            self._messages[_key(said)] = Reading(layers, both[0], both[1], 0)
        return [self._messages[_key(each)] for each in prompts]

    def _kept(
        self,
        what: str,
        layers: Sequence[int],
        conversations: list[list[Message]],
        read: Callable[[list[list[Message]]], list[Tensor | None]],
    ) -> list[Tensor | None]:
        """Return what is read of conversations, in this run or in one that was interrupted."""
        stage = self._partial.stage(
            ["what traits are seen against", what, list(self.model.identity), list(layers), conversations]
        )

        def read_some(items: Sequence[int]) -> Tally:
            self._checkpoint()
            found = dict(zip(items, read([conversations[item] for item in items]), strict=True))
            return Tally(frozenset(items), rows={item: row for item, row in found.items() if row is not None})

        rows = stage.finish(len(conversations), _TOGETHER, read_some).rows
        return [rows.get(item) for item in range(len(conversations))]


def _last(read: Reading) -> Tensor:
    assert read.last is not None  # a message has one
    return read.last


def _new(conversations: Sequence[Sequence[Message]], known: dict[str, T]) -> list[list[Message]]:
    new = {_key(each): list(each) for each in conversations}
    return [each for key, each in new.items() if key not in known]


def _key(conversation: Sequence[Message]) -> str:
    return json.dumps(list(conversation))
