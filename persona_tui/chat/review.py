"""The layers of defence behind the monitor: what happens to a reply when its last token is there.

1. The validator, if there is one, judges it. Where the guard refuses, the reply was held back until then, and
   what is not found safe is never shown.
2. In the guard's mode `critique` the model reads it as a draft. If the draft helps to do harm,
   `Chat.answer_again` begins another answer; the draft stays beside it. A server does the same
   (`server.turns`).

Both are off by default, and what they cost is recorded with the reply.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Protocol, TypeAlias

from persona_tui.monitors.guard import GuardMode
from persona_tui.monitors.second_opinion import AGAIN, CRITIQUE, VALIDATOR, Opinion, Validator

if TYPE_CHECKING:
    from persona_tui.model import Message, TokenEvent

Critic: TypeAlias = Callable[[str, str], Opinion]  # what a model says of a message and its own reply

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

    @property
    def holds(self) -> bool:
        """Whether a reply is held back until it is reviewed."""
        return self.validator is not None and self.refuses

    def over(
        self, events: Iterable[TokenEvent], asked: str, rows: Sequence[Reviewed], critic: Critic
    ) -> Generator[TokenEvent, None, None]:
        """Yield the events of a reply's rows, held back where it may be withheld; opinions go to the rows."""
        all_of: list[list[TokenEvent]] = [[] for _ in rows]
        for event in events:
            if not is_about_message(event):
                all_of[event.row].append(event)
            if is_about_message(event) or not self.holds:
                yield event
        for row, own in zip(rows, all_of, strict=True):
            shown = self.shown(own, asked, row, critic) if own else []
            if self.holds:
                yield from shown

    def shown(self, events: list[TokenEvent], asked: str, row: Reviewed, critic: Critic) -> list[TokenEvent]:
        """Return what of a row that has ended may be shown; opinions go to the row.

        Args:
            events: all of the row, but for the one about the message.
            asked: the message that is answered.
            row: where opinions go.
            critic: asks the model, in the mode `critique`.
        """
        last, reply = events[-1], "".join(event.text for event in events)
        if last.finish == "refused":  # by the monitor
            return [last]
        if last.finish not in _JUDGED:
            by = VALIDATOR if self.validator is not None else CRITIQUE
            return [withheld(last, Opinion(by, None, "the reply was broken off", 0.0))]
        if not reply.strip():
            return events
        if self.validator is not None:
            opinion = self.validator.judge(asked, reply)
            row.opinions.append(opinion)
            if self.refuses and not opinion.safe:
                return [withheld(last, opinion)]
        if self.critiques:
            row.opinions.append(critic(asked, reply))
        return events


def is_about_message(event: TokenEvent) -> bool:
    """Return whether an event is a guard's verdict about the message, which comes before the reply."""
    return event.token_id < 0 and event.finish is None


def objects(row: Reviewed) -> bool:
    """Return whether the model has objected to its own draft."""
    return any(each.by == CRITIQUE and each.safe is False for each in row.opinions)


def revising(draft: str) -> list[Message]:
    """Return what a model has in view, after the conversation, when it answers again."""
    return [{"role": "assistant", "content": draft}, {"role": "user", "content": AGAIN}]


def withheld(event: TokenEvent, opinion: Opinion) -> TokenEvent:
    """Return the one event of a reply that is not shown."""
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
