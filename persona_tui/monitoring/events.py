"""Token events that a guard has something to say with."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

from persona_tui.model import TokenEvent
from persona_tui.monitoring.verdict import Verdict


@dataclass(frozen=True)
class JudgedEvent(TokenEvent):
    """An event with a verdict, about the message if it has no token, else about the reply so far."""

    verdict: Verdict | None = None


def judged(event: TokenEvent, verdict: Verdict, **changes: Any) -> JudgedEvent:
    """The event with a verdict, and other fields changed."""
    values = {each.name: getattr(event, each.name) for each in fields(TokenEvent)}
    return JudgedEvent(**{**values, "verdict": verdict, **changes})


def refusal(event: TokenEvent, verdict: Verdict) -> JudgedEvent:
    """The last event of a stream that is ended because of a verdict: it has no text any more."""
    return judged(event, verdict, token_id=-1, text="", finish="refused")
