"""What differs in the words of two texts."""

from __future__ import annotations

import re
from collections.abc import Sequence
from difflib import SequenceMatcher

_WORD = re.compile(r"\S+")
Span = tuple[int, int]


def differences(one: str, other: str) -> tuple[list[Span], list[Span]]:
    """Return the parts of two texts that the other one does not have there, word by word.

    Returns:
        For each text its parts as places of characters, from and up to; words that follow each other are one.
    """
    words = [list(_WORD.finditer(text)) for text in (one, other)]
    said = [[word[0] for word in side] for side in words]
    matcher = SequenceMatcher(None, said[0], said[1])
    found: tuple[list[Span], list[Span]] = ([], [])
    for kind, a, a_end, b, b_end in matcher.get_opcodes():
        if kind != "equal":
            for side, start, stop in ((0, a, a_end), (1, b, b_end)):
                if start < stop:
                    found[side].append((words[side][start].start(), words[side][stop - 1].end()))
    return found


def in_pieces(text: str, spans: Sequence[Span]) -> list[tuple[str, bool]]:
    """Return a text in pieces, each with whether it is one of the spans."""
    pieces, done = list[tuple[str, bool]](), 0
    for start, stop in spans:
        pieces += [(text[done:start], False), (text[start:stop], True)]
        done = stop
    return [(piece, differs) for piece, differs in [*pieces, (text[done:], False)] if piece]
