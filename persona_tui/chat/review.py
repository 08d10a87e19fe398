"""The layers of defence behind the monitor: what happens to a reply when its last token is there.

1. The validator, if there is one, judges it. Where the guard refuses, the reply was held back until then, and
   what is not found safe is never shown.
2. In the guard's mode `critique` the model reads it as a draft. If the draft helps to do harm,
   `Chat.answer_again` begins another answer; the draft stays beside it.

Both are off by default, and what they cost is recorded with the reply.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Protocol

from persona_tui.monitors.guard import GuardMode
from persona_tui.monitors.second_opinion import VALIDATOR, Opinion, Validator, critique

if TYPE_CHECKING:
    from persona_tui.model import TokenEvent
    from persona_tui.steering import SteeringEngine

_JUDGED = ("stop", "length")  # how replies end that are reviewed


class Reviewed(Protocol):
    """A reply's row, as far as it is reviewed."""

    opinions: list[Opinion]


@dataclass(frozen=True)
class Review:
    """What a reply goes through once it is written.

    Attributes:
        validator: has the last word; None = nobody.
        refuses: whether a reply that the validator does not find safe is withheld.
        critiques: whether the model reads its draft.
    """

    validator: Validator | None = None
    refuses: bool = False
    critiques: bool = False

    @classmethod
    def under(cls, mode: GuardMode, validator: Validator | None) -> Review | None:
        """Return what replies go through under a guard; None = nothing."""
        if mode == "off" or (validator is None and mode != "critique"):
            return None
        return cls(validator, refuses=mode != "warn", critiques=mode == "critique")

    def over(
        self, events: Iterable[TokenEvent], asked: str, rows: Sequence[Reviewed], engine: SteeringEngine
    ) -> Generator[TokenEvent, None, None]:
        """The events of a reply's rows, held back where it may be withheld; opinions go to the rows."""
        holds = self.validator is not None and self.refuses
        all_of: list[list[TokenEvent]] = [[] for _ in rows]
        for event in events:
            is_about_message = event.token_id < 0 and event.finish is None
            if not is_about_message:
                all_of[event.row].append(event)
            if is_about_message or not holds:
                yield event
        for row, own in zip(rows, all_of, strict=True):
            shown = self._judged(own, asked, row, engine) if own else []
            if holds:
                yield from shown

    def _judged(
        self, events: list[TokenEvent], asked: str, row: Reviewed, engine: SteeringEngine
    ) -> list[TokenEvent]:
        """What of a row may be shown."""
        last, reply = events[-1], "".join(event.text for event in events)
        if last.finish == "refused":  # by the monitor
            return [last]
        if last.finish not in _JUDGED:
            return [_withheld(last, Opinion(VALIDATOR, None, "the reply was broken off", 0.0))]
        if not reply.strip():
            return events
        if self.validator is not None:
            opinion = self.validator.judge(asked, reply)
            row.opinions.append(opinion)
            if self.refuses and not opinion.safe:
                return [_withheld(last, opinion)]
        if self.critiques:
            row.opinions.append(critique(engine.model, asked, reply))
        return events


def _withheld(event: TokenEvent, opinion: Opinion) -> TokenEvent:
    """The one event of a reply that is not shown."""
    from persona_tui.monitors.events import refusal
    from persona_tui.monitors.verdict import Verdict

    verdict = Verdict(
        safe=False,
        score=0.0,
        threshold=0.0,
        method=opinion.by,
        layers=(),
        position="reply",
        about="reply",
        monitor="",
        tokens=event.index + 1,
        said=opinion.sentence,
    )
    return refusal(replace(event, reading=None), verdict)
