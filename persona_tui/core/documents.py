"""JSON that other people or programs wrote, with a limit on depth; `yaml_documents` does the same for YAML.

A few hundred bytes can ask for a tree a thousand levels deep. Whoever walks through that runs out of stack;
so it is refused where it is read.
"""

from __future__ import annotations

import json
import re
from typing import Any, NoReturn

DEEPEST = 100  # levels
TOO_DEEP = f"more than {DEEPEST} levels deep"
HALF = "half a character in a text (a lone surrogate, for example half an emoji)"
_ESCAPED_HALF = re.compile(r"\\u[dD][89a-fA-F]")
_HALF = re.compile("[\ud800-\udfff]")


def json_value(text: str | bytes, constants: bool = True, halves: bool = False) -> Any:
    """Return the value that JSON stands for.

    Args:
        text: one document.
        constants: whether NaN and Infinity are taken, which JSON does not have.
        halves: whether texts may have one of two surrogates alone, which no encoding writes.

    Raises:
        ValueError: it is not JSON, more than `DEEPEST` levels deep, or has half a character.
    """
    try:
        value = json.loads(text) if constants else json.loads(text, parse_constant=_no_constant)
    except RecursionError:
        raise ValueError(TOO_DEEP) from None
    if _may_be_deep(text) and _deeper_than(value, DEEPEST):
        raise ValueError(TOO_DEEP)
    if not halves and _may_have_half(text) and _HALF.search(json.dumps(value, ensure_ascii=False)):
        raise ValueError(HALF)
    return value


def _may_have_half(text: str | bytes) -> bool:
    found = _ESCAPED_HALF.search(text if isinstance(text, str) else text.decode("latin-1"))
    return found is not None or (isinstance(text, str) and _HALF.search(text) is not None)


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


def _may_be_deep(text: str | bytes) -> bool:
    if isinstance(text, str):
        return text.count("[") + text.count("{") > DEEPEST
    return text.count(b"[") + text.count(b"{") > DEEPEST


def _deeper_than(value: Any, levels: int) -> bool:
    """Whether containers lie in each other deeper than that; level by level, without recursion."""
    level = [value]
    for _ in range(levels):
        level = [
            inner
            for each in level
            if isinstance(each, (list, dict))
            for inner in (each.values() if isinstance(each, dict) else each)
        ]
    return any(isinstance(each, (list, dict)) for each in level)
