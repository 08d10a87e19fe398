"""Words with two letters swapped, put right by the words that a model's tokenizer knows.

A byte-pair vocabulary has the frequent words of a language as single tokens, the more frequent ones first. So
"abuot" is no word to it, and "about" is: no word list has to come with the program. A small vocabulary knows
too few words to say what is none, and is not used.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_FEWEST = 10_000  # words that a vocabulary has to know
_COMMON = 15_000  # the more frequent ones, which a word is taken for
_BEGINS = ("Ġ", "▁", " ")  # of tokens that begin a word
_WORD = re.compile(r"(?<![\w@/.'-])[A-Za-z]{4,}(?![\w@/'-])")

_known: WeakKeyDictionary[PreTrainedTokenizerBase, Mapping[str, int]] = WeakKeyDictionary()


def words_of(tokenizer: PreTrainedTokenizerBase) -> Mapping[str, int]:
    """Return the words that a tokenizer has a token for, in small letters, with their rank from 0.

    Empty if they are too few to tell what is no word.
    """
    if tokenizer not in _known:
        _known[tokenizer] = _words(tokenizer)
    return _known[tokenizer]


def _words(tokenizer: PreTrainedTokenizerBase) -> Mapping[str, int]:
    tokens = sorted(tokenizer.get_vocab().items(), key=lambda token: token[1])
    words = [token[1:].lower() for token, _ in tokens if token.startswith(_BEGINS)]
    unique = dict.fromkeys(word for word in words if len(word) > 1 and word.isascii() and word.isalpha())
    return {word: rank for rank, word in enumerate(unique)} if len(unique) >= _FEWEST else {}


def unswapped(text: str, words: Mapping[str, int]) -> str:
    """Return a text with each unknown word put right that is a frequent one with two letters swapped."""

    def put_right(found: re.Match[str]) -> str:
        word = found[0]
        if word.lower() in words:
            return word
        swapped = (word[:at] + word[at + 1] + word[at] + word[at + 2 :] for at in range(1, len(word) - 1))
        likely = [each for each in swapped if words.get(each.lower(), _COMMON) < _COMMON]
        return min(likely, key=lambda each: words[each.lower()], default=word)

    return _WORD.sub(put_right, text) if words else text
