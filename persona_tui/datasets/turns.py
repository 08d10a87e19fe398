"""Turns of conversations, and what is cut from a message before it is one."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from persona_tui.core.errors import DatasetError

ROLES = {
    **dict.fromkeys(("system", "developer"), "system"),
    **dict.fromkeys(("user", "human", "customer", "client", "you", "q", "question"), "user"),
    **dict.fromkeys(("tool", "function", "observation", "ipython"), "user"),
    **dict.fromkeys(("assistant", "gpt", "chatgpt", "claude", "gemini", "copilot", "agent"), "assistant"),
    **dict.fromkeys(("model", "bot", "ai", "chatbot", "a", "answer"), "assistant"),
}

_ENDS = (
    "<|im_end|>",
    "<|endoftext|>",
    "<|eot_id|>",
    "<|eom_id|>",
    "<|end_of_turn|>",
    "<|end_of_text|>",
    "<|end|>",
    "<|return|>",
    "<end_of_turn>",
    "<turn|>",
    "<eos>",
)
BEGINNINGS = ("<|begin_of_text|>", "<bos>", "<s>", "<|endoftext|>")
_THOUGHT = re.compile(r"\s*<(think|thinking)>(.*?)(?:</\1>|\Z)", re.DOTALL)
_THOUGHT_END = re.compile(r"^[ \t]*</(?:think|thinking)>[ \t]*$", re.MULTILINE)


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
        ends = (*_ENDS, "</s>") if "<s>" not in text else _ENDS  # a struck-through word is no end
        end = next((end for end in ends if text.endswith(end)), None)
        if end is None:
            return text
        text = text.removesuffix(end).rstrip()


def _split_thought(text: str) -> tuple[str, str]:
    """The thoughts that a reply begins with, and the rest. Without an end everything is a thought."""
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
