"""Token events that a guard, or a policy, has something to say with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

from persona_tui.model import TokenEvent
from persona_tui.monitors.verdict import Verdict

if TYPE_CHECKING:
    from persona_tui.traits.policy import Breach


@dataclass(frozen=True)
class JudgedEvent(TokenEvent):
    """An event with a judgement.

    Attributes:
        verdict: a guard's, about the message if the event has no token, else about the reply so far.
        breaches: the limits of a policy that the reply is found to break with this token.
    """

    verdict: Verdict | None = None
    breaches: Sequence[Breach] = ()


def judged(event: TokenEvent, verdict: Verdict, **changes: Any) -> JudgedEvent:
    """Return the event with a verdict, and other fields changed."""
    values = {each.name: getattr(event, each.name) for each in fields(TokenEvent)}
    return JudgedEvent(**{**values, "verdict": verdict, **changes})


def breaching(event: TokenEvent, breaches: Sequence[Breach]) -> JudgedEvent:
    """Return the event with what a policy has to say."""
    values = {each.name: getattr(event, each.name) for each in fields(event)}
    return JudgedEvent(**{**values, "breaches": breaches})


def refusal(event: TokenEvent, verdict: Verdict) -> JudgedEvent:
    """Return the last event of a stream that is ended because of a verdict: it has no text any more."""
    return judged(event, verdict, token_id=-1, text="", finish="refused")
