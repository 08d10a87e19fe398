"""What differs in the words of two texts."""

from __future__ import annotations

import random

from persona_tui.core.wording import differences, in_pieces


def words(text: str, spans: list[tuple[int, int]]) -> list[str]:
    return [text[start:stop] for start, stop in spans]


def test_words_that_the_other_text_lacks_are_found_in_both() -> None:
    one, other = "The old sea\n was calm today.", "The sea was very calm."
    mine, theirs = differences(one, other)
    assert words(one, mine) == ["old", "calm today."] and words(other, theirs) == ["very calm."]
    assert differences(one, one) == ([], []) and differences("", "a b") == ([], [(0, 3)])
    assert differences("a  b", "a b") == ([], []), "white space is no word"


def test_pieces_make_the_text_and_what_is_left_is_the_same_in_both() -> None:
    chance = random.Random(3)
    for _ in range(200):
        texts = ["".join(chance.choices("abc  \n", k=chance.randrange(40))) for _ in range(2)]
        pieces = [in_pieces(text, spans) for text, spans in zip(texts, differences(*texts), strict=True)]
        assert ["".join(piece for piece, _ in side) for side in pieces] == texts
        same = [[word for piece, differs in side if not differs for word in piece.split()] for side in pieces]
        assert same[0] == same[1]
