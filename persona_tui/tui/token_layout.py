"""Tokens in rows: wrapped at words, every token with at least one cell of its own."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from rich.cells import cell_len, set_cell_size

from persona_tui.core.documents import printable

_EMPTY = "·"  # a token that adds nothing to the text: part of a character, or the end of the turn
_NEWLINE = "↵"
_TAB = "→"
_PARTS = re.compile(r"\n|[^\S\n]+|\S+")


@dataclass(frozen=True)
class Piece:
    """Part of a row that belongs to one token.

    Attributes:
        token: its place.
        text: what stands there.
        start: the first of its cells.
    """

    token: int
    text: str
    start: int

    @property
    def width(self) -> int:
        """How many cells it has."""
        return cell_len(self.text)


def rows_of(texts: Sequence[str], width: int) -> list[list[Piece]]:
    """Return the rows that tokens take up, each of at most `width` cells.

    Args:
        texts: what each token adds to the text.
        width: of a row.
    """
    layout = _Layout(max(width, 2))
    word: list[tuple[int, str]] = []
    for token, part in _parts(texts):
        if part.isspace() or part == _NEWLINE:
            layout.place(word)
            word = []
            layout.end_row(token) if part == _NEWLINE else layout.space(token, part)
        else:
            word.append((token, part))
    layout.place(word)
    return layout.rows


def _parts(texts: Sequence[str]) -> Iterator[tuple[int, str]]:
    """Tokens in parts: line ends, blanks, and everything else."""
    for token, text in enumerate(texts):
        if not text:
            yield token, _EMPTY
        for part in _PARTS.findall(printable(text).replace("\t", _TAB)):
            yield token, _NEWLINE if part == "\n" else part


class _Layout:
    """The rows so far."""

    def __init__(self, width: int) -> None:
        self._width = width
        self._used = 0
        self.rows: list[list[Piece]] = []

    def _add(self, token: int, text: str) -> None:
        if not self.rows:
            self.rows.append([])
        row = self.rows[-1]
        if row and row[-1].token == token:
            before = row.pop()
            row.append(Piece(token, before.text + text, before.start))
        else:
            row.append(Piece(token, text, self._used))
        self._used += cell_len(text)

    def _begin_row(self) -> None:
        self.rows.append([])
        self._used = 0

    def place(self, word: Sequence[tuple[int, str]]) -> None:
        """Put a word into the row if it fits there, else into the next one, or into several."""
        size = sum(cell_len(part) for _, part in word)
        if self._used and self._used + size > self._width:
            self._begin_row()
        for token, part in word:
            while part:
                room = self._width - self._used
                if room <= 0:
                    self._begin_row()
                    continue
                fits = part if cell_len(part) <= room else set_cell_size(part, room).rstrip()
                if not fits:  # a wide character at the end of a row
                    self._begin_row()
                    continue
                self._add(token, fits)
                part = part[len(fits) :]

    def space(self, token: int, blanks: str) -> None:
        """Put blanks into the row; what does not fit is left out, but for one cell."""
        room = self._width - self._used
        if room <= 0:
            self._begin_row()
        self._add(token, blanks[: max(room, 1)])

    def end_row(self, token: int) -> None:
        """Mark the end of a line, and begin another row."""
        if self._used >= self._width:
            self._begin_row()
        self._add(token, _NEWLINE)
        self._begin_row()
