"""Finds the JSON items in what a model wrote: fences, prose around them, cut-off arrays, nested objects.

Nothing here guesses at content. What cannot be read as JSON is left out, and the caller asks again.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

# What models write wrongly most often.
_REPAIRS = (
    (re.compile("[\N{LEFT DOUBLE QUOTATION MARK}\N{RIGHT DOUBLE QUOTATION MARK}]"), '"'),
    (re.compile(r",\s*([}\]])"), r"\1"),
)

_DECODER = json.JSONDecoder(strict=False)  # models write line breaks inside strings
_BETWEEN = re.compile(r"[\s,]*")
_OPENING = re.compile(r"[\[{]")
_MAX_DEPTH = 8


def find_items(text: str) -> list[Any]:
    """Return the objects and strings of the arrays in a text, in order, at any depth.

    A lone object counts as an array of one. An object that only holds an array, {"questions": [...]}, stands
    for that array. Of a cut-off array, the whole items are returned.
    """
    readings = (list(_scan(text)), list(_scan(_repaired(text))))
    return max(readings, key=len)  # the text as it is wins a tie


def _repaired(text: str) -> str:
    for pattern, replacement in _REPAIRS:
        text = pattern.sub(replacement, text)
    return text


def _scan(text: str) -> Iterator[Any]:
    place = 0
    while opening := _OPENING.search(text, place):
        place = opening.start()
        if text[place] == "[":
            values, place = _array(text, place + 1)
            for value in values:
                yield from _leaves(value)
            continue
        decoded = _decode(text, place)
        if decoded is None:
            # Perhaps an unfinished object around finished ones.
            place += 1
            continue
        yield from _leaves(decoded[0])
        place = decoded[1]


def _array(text: str, place: int) -> tuple[list[Any], int]:
    """Return the whole values of an array from just after its bracket, and where reading goes on."""
    values: list[Any] = []
    while True:
        place = _BETWEEN.match(text, place).end()  # type: ignore[union-attr]  # matches the empty string
        decoded = _decode(text, place)
        if decoded is None:
            return values, place
        values.append(decoded[0])
        place = decoded[1]


def _decode(text: str, place: int) -> tuple[Any, int] | None:
    try:
        return _DECODER.raw_decode(text, place)
    except (json.JSONDecodeError, RecursionError):
        return None


def _leaves(value: Any, depth: int = 0) -> Iterator[Any]:
    """Yield the strings and the innermost objects of a value."""
    if depth > _MAX_DEPTH:
        return
    if isinstance(value, list):
        for item in value:
            yield from _leaves(item, depth + 1)
    elif isinstance(value, dict):
        inner = [item for item in value.values() if _holds_objects(item)]
        if inner:
            yield from _leaves(inner, depth + 1)
        else:
            yield value
    elif isinstance(value, str):
        yield value


def _holds_objects(value: Any) -> bool:
    return isinstance(value, dict) or (
        isinstance(value, list) and any(isinstance(item, dict) for item in value)
    )
