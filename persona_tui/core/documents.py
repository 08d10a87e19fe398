"""JSON that other people or programs wrote, with a limit on depth; `yaml_documents` does the same for YAML.

A few hundred bytes can ask for a tree a thousand levels deep. Whoever walks through that runs out of stack; so
it is refused where it is read.
"""

from __future__ import annotations

import json
from typing import Any, NoReturn

DEEPEST = 100  # levels
TOO_DEEP = f"more than {DEEPEST} levels deep"


def json_value(text: str | bytes, constants: bool = True) -> Any:
    """Return the value that JSON stands for.

    Args:
        text: one document.
        constants: whether NaN and Infinity are taken, which JSON does not have.

    Raises:
        ValueError: it is not JSON, or more than `DEEPEST` levels deep.
    """
    try:
        value = json.loads(text) if constants else json.loads(text, parse_constant=_no_constant)
    except RecursionError:
        raise ValueError(TOO_DEEP) from None
    if _may_be_deep(text) and _deeper_than(value, DEEPEST):
        raise ValueError(TOO_DEEP)
    return value


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
