"""Turns of conversations: what is cut from a message before it is one, and how they stand in labelled text.

The ways to label turns are a table; a new way is one more row: what opens a turn.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from persona_tui.core.errors import DatasetError

ROLES = {
    **dict.fromkeys(("system", "developer"), "system"),
    **dict.fromkeys(("user", "human", "customer", "client", "you", "q", "question"), "user"),
    **dict.fromkeys(("tool", "function", "observation", "ipython"), "user"),
    **dict.fromkeys(("assistant", "gpt", "chatgpt", "claude", "gemini", "copilot", "agent"), "assistant"),
    **dict.fromkeys(("model", "bot", "ai", "chatbot", "a", "answer"), "assistant"),
    **dict.fromkeys(("patient", "instruction", "input", "[inst]", "<</sys>>"), "user"),
    **dict.fromkeys(("therapist", "counselor", "counsellor", "response", "[/inst]"), "assistant"),
    "<<sys>>": "system",
}

# `<|im_end|>`, `<|eot_id|>`, DeepSeek's with wide bars, ...; `</s>` is told apart below.
_END = re.compile(
    r"(?:<[|｜][^<>|｜\n]*(?:end|eo[stm]|return)[^<>|｜\n]*[|｜]>|<end_of_turn>|<turn\|>|<eos>)\Z",
    re.IGNORECASE,
)
BEGINNINGS = ("<|begin_of_text|>", "<bos>", "<s>", "<|endoftext|>")
_THOUGHT = re.compile(r"\s*<(think|thinking)>(.*?)(?:</\1>|\Z)", re.DOTALL)
# Alone on a line, or joined to a sentence: in "the </think> tag", somebody only speaks of it.
_THOUGHT_END = re.compile(
    r"^[ \t]*</(?:think|thinking)>[ \t]*$|(?<=[\w.!?…])</(?:think|thinking)>|</(?:think|thinking)>(?=\w)",
    re.MULTILINE,
)


class TranscriptError(DatasetError):
    """Something is not a conversation."""


@dataclass(frozen=True)
class Turn:
    """One message: its role, what it says, and what was thought before it was said."""

    role: str
    content: str
    thought: str = ""


def turn(role: str, content: str, thought: str = "") -> Turn:
    """Make a turn of a raw text: without end tokens behind it, and a reply's thoughts apart."""
    content = _without_ends(content)
    if role == "assistant":
        found, content = _split_thought(content)
        thought = joint(thought.strip(), found)
    return Turn(role, content, thought)


def _without_ends(text: str) -> str:
    text = text.strip()
    while True:
        shorter = _END.sub("", text)
        if "<s>" not in text:  # else it is a struck-through word, and no end
            shorter = shorter.removesuffix("</s>")
        if shorter == text:
            return text
        text = shorter.rstrip()


def _split_thought(text: str) -> tuple[str, str]:
    """Return the thoughts that a reply begins with, and the rest. Without an end everything is a thought."""
    if opened := _THOUGHT.match(text):
        return opened[2].strip(), text[opened.end() :].strip()
    if closed := _THOUGHT_END.search(text):  # some templates write the opening tag themselves
        return text[: closed.start()].strip(), text[closed.end() :].strip()
    return "", text


def joined(turns: Iterable[Turn]) -> list[Turn]:
    """Return neighbours of one role as one turn, with an empty line between them."""
    found: list[Turn] = []
    for each in turns:
        if found and found[-1].role == each.role:
            last = found.pop()
            each = Turn(each.role, joint(last.content, each.content), joint(last.thought, each.thought))
        found.append(each)
    return found


def joint(*texts: str) -> str:
    """Return texts with an empty line between them, without those that are empty."""
    return "\n\n".join(filter(None, texts))


_WORDS = (
    r"(?P<who>system|user|human|customer|client|patient|you|assistant|agent|chatbot|bot|ai|chatgpt|gpt|model|"
    r"claude|gemini|copilot|therapist|counsell?or)"
)
_TIME = r"(?:\[[^\]\n]{1,30}\][ \t]*)?"  # when it was said
_SEPARATOR = re.compile(r"(?:^|\n)[ \t]*-{3,}\s*\Z")


@dataclass(frozen=True)
class Style:
    """A way to write a text's turns: what opens one, with the speaker as the group `who`."""

    opener: re.Pattern[str]

    def matches(self, text: str) -> bool:
        """Return whether a text begins with a turn, and both a user and an assistant speak in it."""
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
    _style(r"(?:</s>\s*)?(?:<s>\s*)?(?:\[INST\]\s*(?=<<SYS>>))?(?P<who>\[/?INST\]|<</?SYS>>)\s*"),
    _style(rf"^[ \t]*{_TIME}WHO[ \t]*:[ \t]*"),
    _style(r"^[ \t]*(?:\*\*|__)WHO[ \t]*(?::(?:\*\*|__)|(?:\*\*|__)[ \t]*:)[ \t]*"),
    _style(r"^#{1,6}[ \t]+(?:\*\*)?WHO[ \t]*:?(?:\*\*)?[ \t]*$"),
    _style(
        r"^(?:Below is an instruction[^#]*)?#{1,6}[ \t]+(?P<who>instruction|input|response)[ \t]*:?[ \t]*$"
    ),
    _style(r"^[ \t]*(?:#{1,6}[ \t]+)?(?P<who>you|chatgpt|claude|gemini|copilot)[ \t]+said:[ \t]*"),
    _style(r"^[ \t]*(?:\*\*)?(?P<who>question|answer|q|a)[ \t]*:(?:\*\*)?[ \t]*"),
)


def style_of(text: str) -> Style | None:
    """Return the way in which a text's turns are written, or None if it has none that we know."""
    return next((style for style in STYLES if style.matches(text)), None)
