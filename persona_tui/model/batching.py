"""How many texts are written or read at a time: by length, by tokens, and by what memory allows."""

from __future__ import annotations

import gc
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

import torch

from persona_tui.core.errors import MemoryShortage

T = TypeVar("T")

TOKEN_BUDGET = 2**16  # prompts and responses of one batch, padding included
_PATIENCE = 4  # batches that have to fit before a larger one is tried


def batches(
    lengths: Sequence[int], most_rows: int | None = None, most_tokens: int = TOKEN_BUDGET
) -> list[list[int]]:
    """Items of like length together, the longest first: running out of memory then happens at once.

    The same lengths give the same batches; so that work which is taken up again is done in the batches in
    which it would have been done, to the last bit.

    Args:
        lengths: of each item, in tokens, with the response that it may get, if any.
        most_rows: in one batch; None = as many as the tokens allow.
        most_tokens: in one batch, padding included; a single item may have more.
    """
    order = sorted(range(len(lengths)), key=lambda item: (-lengths[item], item))
    planned: list[list[int]] = []
    while order:
        rows = max(1, most_tokens // max(1, lengths[order[0]]))
        rows = rows if most_rows is None else max(1, min(most_rows, rows))
        planned.append(order[:rows])
        order = order[rows:]
    return planned


class MemoryLimit:
    """How many tokens a batch may have by experience: half as many after memory ran out, later more again.

    Attributes:
        tokens: the present limit; None while memory has never run out.
    """

    def __init__(self, on_shortage: Callable[[int, int], None] | None = None) -> None:
        """
        Args:
            on_shortage: told how many rows did not fit, and how many are tried now.
        """
        self.tokens: int | None = None
        self._on_shortage = on_shortage
        self._fitted = 0
        self._grown = False
        self._patience = _PATIENCE

    def run(
        self, batch: Sequence[int], lengths: Sequence[int], do: Callable[[list[int]], T]
    ) -> Iterator[tuple[list[int], T]]:
        """Do a batch, in several pieces if it has to be; each piece and its result.

        Raises:
            MemoryShortage: a single item does not fit.
        """
        waiting = deque([list(batch)])
        while waiting:
            piece = self._cut(waiting, lengths)
            result = self._attempt(piece, lengths, do)
            if result is None:
                waiting.appendleft(piece)
            else:
                self._fits()
                yield piece, result[0]

    def _cut(self, waiting: deque[list[int]], lengths: Sequence[int]) -> list[int]:
        """As much of the first waiting piece as may be tried."""
        piece = waiting.popleft()
        if self.tokens is None:
            return piece
        rows = max(1, self.tokens // max(1, max(lengths[item] for item in piece)))
        if piece[rows:]:
            waiting.appendleft(piece[rows:])
        return piece[:rows]

    def _attempt(
        self, piece: list[int], lengths: Sequence[int], do: Callable[[list[int]], T]
    ) -> tuple[T] | None:
        """Return the result of a piece; None if it did not fit."""
        try:
            return (do(piece),)
        except MemoryShortage:
            if len(piece) == 1:
                raise
        self._shrink(piece, lengths)
        return None

    def _shrink(self, piece: list[int], lengths: Sequence[int]) -> None:
        rows = len(piece) // 2
        self.tokens = rows * max(lengths[item] for item in piece)
        self._fitted = 0
        if self._grown:  # what failed once will mostly fail again: try less and less often
            self._patience, self._grown = self._patience * 2, False
        if self._on_shortage is not None:
            self._on_shortage(len(piece), rows)
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def _fits(self) -> None:
        if self.tokens is None:
            return
        self._fitted += 1
        if self._fitted >= self._patience:
            self.tokens, self._fitted, self._grown = self.tokens * 2, 0, True
