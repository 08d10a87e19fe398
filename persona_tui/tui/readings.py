"""What was projected while replies were written, or when messages were read again, token by token."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from persona_tui.core.mix import TRAIT_PREFIX
from persona_tui.tui.widgets.token_view import TokenValue

if TYPE_CHECKING:  # torch is not imported before the first paint
    from persona_tui.model.results import TokenEvent


AXES = ("assistant", "safety")


def unit_of(direction: str) -> str:
    """Return the unit of projections onto a direction; "" of a trait, whose ends are −1 and 1."""
    return "σ" if direction in AXES else "" if direction.startswith(TRAIT_PREFIX) else " of its own"


@dataclass(frozen=True)
class TokenReading:
    """A token as it was chosen.

    Attributes:
        text: what it added.
        projections: by direction.
        lifted: how far the floor lifted it.
        entropy: of its choice, nats.
        nats: how much more probable steering made it; None = no guide read along.
    """

    text: str
    projections: Mapping[str, float]
    lifted: float = 0.0
    entropy: float = 0.0
    nats: float | None = None

    def on(self, direction: str) -> TokenValue:
        """Return its value on one direction."""
        return TokenValue(self.text, self.projections.get(direction), self.lifted)


def readings_of(events: Iterable[TokenEvent]) -> list[TokenReading]:
    """Return the readings of tokens; events without one are left out."""
    return [
        TokenReading(event.text, event.projections, event.capped, event.entropy, event.nats)
        for event in events
        if event.token_id >= 0
    ]


class MessageReadings:
    """Keeps them by message, for one conversation."""

    def __init__(self) -> None:
        self._by_message: dict[int, dict[int, TokenReading]] = {}

    def clear(self) -> None:
        """Forget everything: it is another conversation."""
        self._by_message.clear()

    def add(self, message: int, start: int, events: Iterable[TokenEvent]) -> None:
        """Take tokens of a message, whose places are counted from `start`."""
        kept = self._by_message.setdefault(message, {})
        for event in events:
            if event.token_id >= 0:
                kept[start + event.index] = readings_of([event])[0]

    def of(self, message: int) -> Mapping[int, TokenReading]:
        """Return the readings of a message, by place; as many as there are."""
        return self._by_message.get(message, {})
