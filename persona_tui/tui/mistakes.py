"""How what went wrong is told."""

from __future__ import annotations

from persona_tui.core.errors import PersonaTuiError

_MISTAKE = "a bug in persona-tui; see the log"


def reason(error: Exception) -> str:
    """What went wrong, and what to do, in one line."""
    if isinstance(error, PersonaTuiError):
        return str(error)
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text} ({_MISTAKE})"
