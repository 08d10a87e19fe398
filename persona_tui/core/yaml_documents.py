"""YAML that other people or programs wrote, with limits on depth and on what aliases stand for.

Aliases of aliases can ask for a billion nodes in a few hundred bytes. JSON has a module of its own, which
starts without the YAML library.
"""

from __future__ import annotations

import re
from typing import Any, NoReturn

from ruamel.yaml import YAML
from ruamel.yaml.composer import Composer, ComposerError
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.events import AliasEvent
from ruamel.yaml.nodes import Node
from ruamel.yaml.reader import ReaderError

from persona_tui.core.documents import DEEPEST, TOO_DEEP, TOO_LONG, is_too_long

MOST_NODES = 1_000_000  # of a YAML document, with every alias written out
MOST_YAML = 1 << 20  # characters; reading it takes seconds for each hundred thousand


class NotYaml(ValueError):
    """A text is not YAML, or not YAML that is read here. The message is one line.

    Attributes:
        line: where, counted from 1; None if the library does not say.
    """

    def __init__(self, problem: object, line: int | None = None) -> None:
        super().__init__(" ".join(str(problem).split()) or "a value in it cannot be")
        self.line = line


_OPENED = re.compile(rf"(?:[\[{{]\s*){{{DEEPEST + 1}}}")


def yaml_value(text: str, round_trip: bool = False) -> Any:
    """Return what a YAML document stands for.

    Args:
        text: one document.
        round_trip: keep comments, quotes, order and line numbers; else plain Python values.

    Raises:
        NotYaml: it is not YAML, too long, more than `DEEPEST` levels deep, its aliases stand for themselves
            or for more than `MOST_NODES` values, or a value in it cannot be.
    """
    if len(text) > MOST_YAML:
        raise NotYaml(f"it is too long ({len(text):,} characters of at most {MOST_YAML:,})")
    if _OPENED.search(text):  # found before the scanner looks for the end of each
        raise NotYaml(TOO_DEEP)
    yaml = YAML() if round_trip else YAML(typ="safe", pure=True)
    yaml.preserve_quotes = True
    yaml.Composer = _LimitedComposer
    try:
        return yaml.load(text)
    except MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else None
        raise NotYaml(error.problem or error.context, line) from error
    except ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise NotYaml(f"the character U+{error.character:04X} is not allowed", line) from error
    except (YAMLError, ValueError) as error:
        too_long = isinstance(error, ValueError) and is_too_long(error)
        raise NotYaml(TOO_LONG if too_long else error) from error
    except (AttributeError, IndexError, KeyError, TypeError) as error:  # `!!bool maybe`, `!!float ""`, ...
        raise NotYaml("a tag does not match its value") from error


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
            self._refuse("an alias that contains itself")
        if id(node) not in self._sizes:
            self._sizes[id(node)] = size = 1 + sum(self._sizes.get(id(each), 1) for each in _below(node))
            if size > MOST_NODES:
                self._refuse(f"aliases that expand to more than {MOST_NODES:,} values")
        return node

    def _refuse(self, problem: str) -> NoReturn:
        raise ComposerError(None, None, problem, self.parser.peek_event().start_mark)


def _below(node: Node) -> list[Node]:
    if not isinstance(node.value, list):
        return []
    return [each for item in node.value for each in (item if isinstance(item, tuple) else (item,))]
