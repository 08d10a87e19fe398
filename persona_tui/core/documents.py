"""JSON and YAML that other people or programs wrote, with limits on depth and on what aliases stand for.

A few hundred bytes can ask for a tree a thousand levels deep, or, with aliases of aliases, for one of a
billion nodes. Whoever walks through that runs out of stack or of time; so it is refused where it is read.
"""

from __future__ import annotations

import json
import re
from typing import Any, NoReturn

from ruamel.yaml import YAML
from ruamel.yaml.composer import Composer, ComposerError
from ruamel.yaml.error import YAMLError
from ruamel.yaml.events import AliasEvent
from ruamel.yaml.nodes import Node

DEEPEST = 100  # levels
MOST_NODES = 1_000_000  # of a YAML document, with every alias written out
MOST_YAML = 1 << 20  # characters; reading it takes seconds for each hundred thousand

_OPENED = re.compile(rf"(?:[\[{{]\s*){{{DEEPEST + 1}}}")

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


def yaml_value(text: str, round_trip: bool = False) -> Any:
    """Return what a YAML document stands for.

    Args:
        text: one document.
        round_trip: keep comments, order and line numbers; else plain Python values.

    Raises:
        YAMLError: it is not YAML, too long, more than `DEEPEST` levels deep, or its aliases stand for
            themselves or for more than `MOST_NODES` values.
        ValueError: a value in it cannot be.
    """
    if len(text) > MOST_YAML:
        raise YAMLError(f"it is too long ({len(text):,} characters of at most {MOST_YAML:,})")
    if _OPENED.search(text):  # found before the scanner looks for the end of each
        raise YAMLError(TOO_DEEP)
    yaml = YAML() if round_trip else YAML(typ="safe", pure=True)
    yaml.Composer = _LimitedComposer
    return yaml.load(text)


class _LimitedComposer(Composer):
    """Composes nodes while it counts levels and nodes: what is too large is never built."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._level = 0
        self._sizes: dict[int, int] = {}  # by id of the node, which lives as long as its document

    def compose_node(self, parent: Any, index: Any) -> Any:
        """Compose one node, and those below it."""
        self._level += 1
        if self._level > DEEPEST:
            self._refuse(TOO_DEEP)
        alias = self.parser.check_event(AliasEvent)
        node = super().compose_node(parent, index)
        self._level -= 1
        if alias and id(node) not in self._sizes:
            self._refuse("an alias that stands for what it lies in")
        if id(node) not in self._sizes:
            self._sizes[id(node)] = size = 1 + sum(self._sizes.get(id(each), 1) for each in _below(node))
            if size > MOST_NODES:
                self._refuse(f"aliases that stand for more than {MOST_NODES:,} values")
        return node

    def _refuse(self, problem: str) -> NoReturn:
        raise ComposerError(None, None, problem, self.parser.peek_event().start_mark)


def _below(node: Node) -> list[Node]:
    if not isinstance(node.value, list):
        return []
    return [each for item in node.value for each in (item if isinstance(item, tuple) else (item,))]
