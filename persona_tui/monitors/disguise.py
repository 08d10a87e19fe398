"""A message as it would be written plainly: codes read, spelling put right, padding said once.

A monitor knows what a request is about, not how one spells to hide it: to the one of the starter model,
harmless questions in capitals or in base64 looked as odd as dangerous ones. So a message in disguise is
judged by what it says without. No word is ever left out: of one that is said over and over, once is kept.
What is written plainly stays as it is, letter by letter. What looks like a code is read as one only if that
gives words where there were none.
"""

from __future__ import annotations

import base64
import binascii
import codecs
import re
import unicodedata
from collections.abc import Mapping

from persona_tui.monitors.spelling import unswapped

_INVISIBLE = dict.fromkeys((0x00AD, 0x200B, 0x200C, 0x200D, 0x2060, 0xFEFF))
_DIGITS = str.maketrans("013457@$", "oieastas")
_FOR_LETTERS = re.compile(r"(?<![\w@$.])[a-z]+(?:[013457@$]+[a-z]+)+(?!\.?[\w@$])", re.IGNORECASE)
_MIXED = re.compile(r"(?:[a-z][013457@$]|[013457@$][a-z])[\w@$]*", re.IGNORECASE)  # of letters and digits
_SENTENCE = re.compile(r"(?:[^.!?\n]|[.!?](?=\S))+")
_CODE = re.compile(r"(?<![A-Za-z0-9+/])[A-Za-z0-9+/]{16,}={0,2}")
_LINKED = re.compile(r"(?<!\w)[^\W\d_](?:[-._*][^\W\d_])+(?!\w)")
_FILLER = re.compile(r"(?<!\w)([^\W\d_]+(?:\W+\w+){0,2}?)(?:\W+\1(?!\w)){3,}", re.IGNORECASE)  # "la la la la"
_MARKS = re.compile(r"([^\w\s])(?:\s*\1){7,}")  # "........"
_WORDS = """
about all am an and are at be been but by can could do does explain for from get give had has have he help
her his how if in into is it make me much my need no not of on only or our please say she should show so
some tell than that the their them there they this to us want was we what when where which who why will
with without would write you your
"""
_COMMON = frozenset(_WORDS.split())
_WORD = re.compile(r"[^\W\d_]+")
_AROUND = 3  # words from which on something else is a sentence
_NO_WORDS: Mapping[str, int] = {}
_FEWEST = 2  # common words that a decoded sentence must have


def plainly(text: str, words: Mapping[str, int] = _NO_WORDS) -> str:
    """Return a message without its disguise.

    Args:
        text: the message.
        words: what `spelling.words_of` knows, to put swapped letters right.
    """
    found = unicodedata.normalize("NFKC", text).translate(_INVISIBLE)
    found = _CODE.sub(_decoded, found)
    found = _unpadded(_joined(found))
    found = _SENTENCE.sub(lambda sentence: _read(sentence[0]), found)
    found = unswapped(found, words)
    return found if found != unicodedata.normalize("NFC", text) else text


def _read(sentence: str) -> str:
    """Return a sentence, read another way if that gives words where there are none; never in capitals."""
    known = _common(sentence)
    if not known:
        best = max(sentence[::-1], codecs.encode(sentence, "rot13"), key=_common)
        sentence = best if _common(best) >= _FEWEST else sentence
    if len(_MIXED.findall(sentence)) >= _FEWEST and _common(read := sentence.translate(_DIGITS)) > known:
        sentence = read
    sentence = _FOR_LETTERS.sub(lambda digits: digits[0].translate(_DIGITS), sentence)
    letters = [each for each in sentence if each.isalpha()]
    if len(letters) >= 8 and sum(each.isupper() for each in letters) > 0.7 * len(letters):
        start = len(sentence) - len(sentence.lstrip())
        return sentence[: start + 1] + re.sub(r"\bi\b", "I", sentence[start + 1 :].lower())
    return sentence


def _common(text: str) -> int:
    return sum(word in _COMMON for word in re.findall(r"[^\W\d_]+", text.lower()))


def _decoded(code: re.Match[str]) -> str:
    """Return what base64 decodes to, if that can be read."""
    try:
        said = base64.b64decode(code[0] + "=" * (-len(code[0]) % 4), validate=True).decode("utf-8")
    except (binascii.Error, UnicodeDecodeError):
        return code[0]
    readable = sum(each.isalpha() or each.isspace() for each in said)
    return said if said.isprintable() and readable >= 0.7 * len(said) else code[0]


def _joined(text: str) -> str:
    """Letters that stand alone, as the words that they make."""
    linked = _LINKED.findall(text)
    if sum(len(each) // 2 + 1 for each in linked) >= 6:
        text = _LINKED.sub(lambda letters: letters[0][::2], text)
    lines = text.split("\n")
    return "\n".join(_unspaced(line) for line in lines)


def _unpadded(text: str) -> str:
    """Say once what is repeated around a sentence; by itself it is nobody's disguise."""
    rest = _MARKS.sub(" ", _FILLER.sub(" ", text))
    return _MARKS.sub(r"\1", _FILLER.sub(r"\1", text)) if len(_WORD.findall(rest)) >= _AROUND else text


def _unspaced(line: str) -> str:
    pieces = line.split()
    alone = sum(len(piece) == 1 and piece.isalpha() for piece in pieces)
    if len(pieces) < 6 or alone < 0.7 * len(pieces):
        return line
    return " ".join(word.replace(" ", "") for word in re.split(r"\s{2,}", line.strip()))
