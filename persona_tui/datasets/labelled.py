"""Turns in labelled text: a table, a row for each way to write them.

A new way is one more row: what opens a turn.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from persona_tui.datasets.turns import BEGINNINGS, ROLES, Turn, joined, turn

_WORDS = r"(?P<who>system|user|human|customer|client|assistant|agent|chatbot|bot|ai|chatgpt|gpt|model)"
_SEPARATOR = re.compile(r"(?:^|\n)[ \t]*-{3,}\s*\Z")


@dataclass(frozen=True)
class Style:
    """A way to write a text's turns: what opens one, with the speaker as the group `who`."""

    opener: re.Pattern[str]

    def matches(self, text: str) -> bool:
        """Whether a text begins with a turn, and both a user and an assistant speak in it."""
        roles: set[str] = set()
        for place, match in enumerate(self.opener.finditer(text)):
            if place == 0 and text[: match.start()].strip() not in ("", *BEGINNINGS):
                return False
            roles.add(_role(match))
            if {"user", "assistant"} <= roles:
                return True
        return False

    def read(self, text: str) -> Iterator[tuple[int, list[Turn]]]:
        """Yield conversations, each with its first line, from 1.

        A line of dashes stands between two, where a user or a system prompt follows it.
        """
        openers = list(self.opener.finditer(text))
        turns: list[Turn] = []
        line, begun, counted = 1, 1, 0
        for match, after in zip(openers, [*openers[1:], None], strict=True):
            line += text.count("\n", counted, match.start())
            counted = match.start()
            begun = begun if turns else line
            content = text[match.end() : after.start() if after else len(text)]
            ends = after is not None and _role(after) != "assistant" and _SEPARATOR.search(content)
            turns.append(turn(_role(match), content[: ends.start()] if ends else content))
            if ends:
                yield begun, joined(turns)
                turns = []
        yield begun, joined(turns)


def _role(match: re.Match[str]) -> str:
    return ROLES[match["who"].casefold()]


def _style(pattern: str) -> Style:
    return Style(re.compile(pattern.replace("WHO", _WORDS), re.IGNORECASE | re.MULTILINE))


STYLES = (
    _style(r"<\|im_start\|>WHO[ \t]*\n?"),
    _style(r"<\|start_header_id\|>WHO<\|end_header_id\|>\s*"),
    _style(r"<start_of_turn>WHO[ \t]*\n?"),
    _style(r"<\|turn>WHO[ \t]*\n?"),
    _style(r"<\|WHO\|>[ \t]*\n?"),
    _style(r"^[ \t]*WHO[ \t]*:[ \t]*"),
    _style(r"^[ \t]*(?:\*\*|__)WHO[ \t]*(?::(?:\*\*|__)|(?:\*\*|__)[ \t]*:)[ \t]*"),
    _style(r"^#{1,6}[ \t]+(?:\*\*)?WHO[ \t]*:?(?:\*\*)?[ \t]*$"),
    _style(r"^[ \t]*(?:#{1,6}[ \t]+)?(?P<who>you|chatgpt|claude|gemini|copilot)[ \t]+said:[ \t]*"),
    _style(r"^[ \t]*(?:\*\*)?(?P<who>question|answer|q|a)[ \t]*:(?:\*\*)?[ \t]*"),
)


def style_of(text: str) -> Style | None:
    """Return the way in which a text's turns are written, or None if it has none that we know."""
    return next((style for style in STYLES if style.matches(text)), None)
