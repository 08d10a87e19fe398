"""What a slash command is, and how the text after its name is read."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from persona_tui.core.errors import PersonaTuiError

if TYPE_CHECKING:
    from persona_tui.chat.chat import Chat

OFF = ("off", "none", "no")
ON = ("on", "yes")


class CommandError(PersonaTuiError):
    """A slash command is unknown, or cannot be used like that."""


@dataclass(frozen=True)
class Command:
    """A slash command.

    Attributes:
        name: without the slash.
        usage: how it is typed.
        help: what it does, in one line.
        handler: does it; given the chat and the text after the name, returns what to show.
        words: given the chat, what may follow the name, for completion.
    """

    name: str
    usage: str
    help: str
    handler: Callable[[Chat, str], str]
    words: Callable[[Chat], Iterable[str]] = lambda chat: ()


def is_command(line: str) -> bool:
    """Return whether a line asks for a command. Two slashes begin a message that begins with one."""
    return line.startswith("/") and not line.startswith("//")


def message_of(line: str) -> str:
    """Return the message that a line which is no command stands for."""
    return line[1:] if line.startswith("//") else line


def needed(text: str, usage: str) -> str:
    if not text:
        raise CommandError(f"something is missing: {usage}")
    return text


def number(text: str, what: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise CommandError(f'{what} must be a number, not "{text}"')
    return value


def whole(text: str, what: str) -> int:
    if not text.isdecimal():
        raise CommandError(f'{what} must be a whole number, not "{text}"')
    return int(text)


def switch(text: str, usage: str) -> bool:
    if text.casefold() not in (*ON, *OFF):
        raise CommandError(f'on or off, not "{text}": {usage}')
    return text.casefold() in ON
