"""How what went wrong is told: in one line, and with the app's own ways to mend it."""

from __future__ import annotations

import re
from collections.abc import Callable

from persona_tui.core.errors import PersonaTuiError

_MISTAKE = "a bug in persona-tui; see the log"
_COMMAND = re.compile(r"(?:run )?`persona-tui ([a-z-]+)(?: ([a-z-]+))?[^`]*`(?: again| to write some)?")
# What the errors of every front end advise on the command line is done here by these actions.
_CURES = {
    "init": "prepare",
    "extract-axes": "prepare",
    "load": "personas",
    "list": "personas",
    "create": "create",
    "model": "model",
    "monitor": "monitors",
    "trait": "trait_lab",
    "dataset": "dataset",
    "sessions": "sessions",
}


def reason(error: Exception) -> str:
    """What went wrong, and what to do, in one line."""
    text = " ".join(str(error).split())
    if isinstance(error, PersonaTuiError):
        return text
    return f"{type(error).__name__}: {text} ({_MISTAKE})"


def in_app_words(text: str, way_to: Callable[[str], str]) -> str:
    """Return a text with the app's own ways in place of commands for a shell.

    Args:
        text: what may name such commands.
        way_to: given an action's id, its title and its key.
    """

    def own(found: re.Match[str]) -> str:
        action = _CURES.get(found[1])
        return way_to(action) if action is not None else found[0]

    return _COMMAND.sub(own, text)
