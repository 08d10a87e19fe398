"""Replies on their way from the model's thread to a request."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Sequence
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from persona_tui.chat.review import Critic, Review, is_about_message, objects, withheld
from persona_tui.model import TokenEvent, Watch
from persona_tui.model.results import mean_nats
from persona_tui.monitors.events import breaching
from persona_tui.monitors.guard import Guard, breaches_of, verdict_of
from persona_tui.monitors.second_opinion import CRITIQUE, Opinion
from persona_tui.monitors.verdict import Verdict
from persona_tui.server.limits import TooLarge, Unavailable
from persona_tui.server.measures import Measures
from persona_tui.server.worker import Worker
from persona_tui.steering.rows import VoicedRow
from persona_tui.traits.policy import Breach

if TYPE_CHECKING:
    from persona_tui.traits.live import LiveTraits


@dataclass
class Said:
    """What a row has so far.

    Attributes:
        text: the reply.
        events: its tokens.
        finish: why it ended; None while it has not.
        verdicts: a guard's, the latest about the message and about the reply.
        breaches: a policy's.
        opinions: a validator's and the model's own.
    """

    text: str = ""
    events: list[TokenEvent] = field(default_factory=list)
    finish: str | None = None
    verdicts: dict[str, Verdict] = field(default_factory=dict)
    breaches: list[Breach] = field(default_factory=list)
    opinions: list[Opinion] = field(default_factory=list)

    def take(self, event: TokenEvent) -> None:
        """Take in the next event."""
        self.text += event.text
        self.finish = event.finish or self.finish
        if event.token_id >= 0:
            self.events.append(event)
        if (verdict := verdict_of(event)) is not None:
            self.verdicts[verdict.about] = verdict
        self.breaches.extend(breaches_of(event))

    @property
    def refusal(self) -> str | None:
        """What a guard has said when it ended the reply, if it has."""
        if self.finish != "refused":
            return None
        return next((each.refusal for each in reversed(self.verdicts.values()) if not each.safe), None)

    def projections(self) -> dict[str, float]:
        """By trace, the mean over the tokens."""
        names = self.events[0].projections if self.events else {}
        return {name: _mean([event.projections[name] for event in self.events]) for name in names}

    @property
    def capped_tokens(self) -> int:
        """At how many tokens the floor had to act."""
        return sum(event.capped > 0 for event in self.events)

    @property
    def nats_from_plain(self) -> float | None:
        """How much more probable steering made the tokens on average; None without the guide."""
        return mean_nats(self.events)


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


@dataclass(frozen=True)
class AnswerRow:
    """What a reply is written with.

    Attributes:
        voiced: what is written, and how.
        guard: judges it.
        live: holds it against a policy.
    """

    voiced: VoicedRow
    guard: Guard | None = None
    live: LiveTraits | None = None


@dataclass(frozen=True)
class Defence:
    """What a reply goes through once it is written; a server sends nothing of a draft.

    Attributes:
        review: what is asked of whom.
        asked: the message that is answered.
        critic: asks the model.
        again: what another answer is written with, the draft in view, and how long its prompt is; None = a
            text is continued, and there is no other answer.
        second: whether this is the other answer, which stands.
    """

    review: Review
    asked: str
    critic: Critic
    again: Callable[[str], Awaitable[tuple[AnswerRow, int]]] | None = None
    second: bool = False

    @property
    def holds(self) -> bool:
        """Whether the reply is held back until it is reviewed."""
        return self.review.holds or (self.review.critiques and not self.second)


class Answer:
    """One reply of a request: a row that the worker writes.

    Attributes:
        voiced: what is written, and how.
        said: what there is of it, as the request's reader has seen it.
        live: holds it against a policy, if there is one.
        defence: what it goes through at its end, if anything.
        written: its events that are still to be reviewed.
        draft: the answer that this one was written in place of.
    """

    def __init__(
        self,
        turn: Exchange,
        place: int,
        row: AnswerRow,
        defence: Defence | None = None,
        draft: Answer | None = None,
    ) -> None:
        self.voiced = row.voiced
        self.said = Said()
        self.defence, self.draft = defence, draft
        self.written: list[TokenEvent] = []
        self._turn, self._place = turn, place
        self._guard, self.live = row.guard, row.live
        self._tokens = 0
        self._over = self._judged_message = False

    @property
    def watch(self) -> Watch | None:
        """What the guard has to read."""
        return self._guard.watch if self._guard is not None else None

    def take(self, event: TokenEvent) -> None:
        """Judge an event and pass it on, unless the reader has it already; on the worker's thread."""
        if self._over or self._again(event):
            return
        if self._guard is not None:
            event = self._guard.judged(event)
        if self.live is not None:
            found = [*self.live.feed(event), *(self.live.finish() if event.finish else [])]
            event = breaching(event, found) if found else event
        if event.finish is not None:
            self._over = True
            self.stop()
        self._turn.post(self._place, event)

    def _again(self, event: TokenEvent) -> bool:
        """Return whether it has been here: a batch is written again when another of its rows has failed."""
        if event.token_id < 0 and event.finish is None:
            judged, self._judged_message = self._judged_message, True
            return judged
        if event.token_id >= 0:
            if event.index < self._tokens:
                return True
            self._tokens += 1
        return False

    def fail(self, error: Exception) -> None:
        """Pass on why it will not be finished."""
        if not self._over:
            self._over = True
            self._turn.post(self._place, error)

    def stop(self) -> None:
        """Have it leave its batch."""
        stop = self.voiced.request.stop
        if stop is not None:
            stop.set()


class Exchange:
    """A request that is being answered, with one reply or several. It belongs to the event loop.

    Attributes:
        answers: its replies.
        arrived: when it came (`time.monotonic`).
        prompt_tokens: of all its prompts.
    """

    def __init__(self, worker: Worker, measures: Measures, seconds: float) -> None:
        """
        Args:
            worker: writes it.
            measures: counts it.
            seconds: how long it may take.
        """
        self.answers: list[Answer] = []
        self.arrived = time.monotonic()
        self.prompt_tokens = 0
        self.first_token: float | None = None
        self._worker, self._measures = worker, measures
        self._loop = asyncio.get_running_loop()
        self._seconds = seconds
        self._deadline = self._loop.time() + seconds
        self._queue: asyncio.Queue[tuple[int, TokenEvent | Exception]] = asyncio.Queue()

    def add(self, row: AnswerRow, defence: Defence | None = None) -> None:
        """Add a reply."""
        self.answers.append(Answer(self, len(self.answers), row, defence))

    def begin(self) -> None:
        """Have it written.

        Raises:
            TooManyWaiting, Unavailable: it will not be.
        """
        self._worker.submit(self.answers)

    def post(self, place: int, event: TokenEvent | Exception) -> None:
        """Pass an event on to the event loop, from the worker's thread."""
        self._loop.call_soon_threadsafe(self._queue.put_nowait, (place, event))

    async def events(self, stoppable: bool = False) -> AsyncGenerator[tuple[int, TokenEvent], None]:
        """Yield every reply's events, with the reply's place, until all have ended.

        Whoever leaves earlier frees the rows.

        Args:
            stoppable: whether a reply may end because it was stopped, as its client asked for.

        Raises:
            Unavailable: it took too long, or the server is closing.
            PersonaTuiError: it could not be written.
        """
        unfinished = set(range(len(self.answers)))
        try:
            while unfinished:
                place, event = await self._next()
                if isinstance(event, Exception):
                    raise event
                if event.finish == "cancelled" and not (stoppable and self._worker.alive):
                    raise Unavailable("The server is closing.")
                for each in await self._reviewed(place, event):
                    self.answers[place].said.take(each)
                    self._count(each)
                    if each.finish is not None:
                        unfinished.discard(place)
                    yield place, each
        finally:
            self.cancel()

    async def _reviewed(self, place: int, event: TokenEvent) -> Sequence[TokenEvent]:
        """Return what may be told now that an event has come."""
        answer = self.answers[place]
        defence = answer.defence
        if is_about_message(event):
            return [event] if answer.draft is None else []  # its draft has told that
        if defence is None:
            return [event]
        answer.written.append(event)
        if event.finish is None:
            return [] if defence.holds else [event]
        given = (answer.written, defence.asked, answer.said, defence.critic)
        async with self._in_time():
            # A validator is somebody else's program: neither the model nor the other requests wait for it.
            shown = await asyncio.to_thread(defence.review.shown, *given)
        self._measures.reviewed(answer.said.opinions)
        if objects(answer.said) and not defence.second:
            return await self._again(place, event)
        return shown if defence.holds else [event]

    async def _again(self, place: int, last: TokenEvent) -> Sequence[TokenEvent]:
        """Have another answer written in place of a draft that the model itself objects to."""
        draft = self.answers[place]
        assert draft.defence is not None
        why = "it helps to do harm, and a text that is continued has no other answer"
        if draft.defence.again is not None:
            try:
                row, length = await draft.defence.again("".join(each.text for each in draft.written).strip())
            except TooLarge:
                why = "it helps to do harm, and there is no room for another answer"
            else:
                for each in draft.written:
                    draft.said.take(each)
                    self._count(each)
                self.prompt_tokens += length
                self._measures.tokens.labels("prompt").inc(length)
                answer = Answer(self, place, row, replace(draft.defence, second=True), draft)
                answer.said.verdicts |= draft.said.verdicts
                self.answers[place] = answer
                self._worker.submit([answer])
                return []
        return [withheld(last, Opinion(CRITIQUE, False, why, 0.0))]

    async def _next(self) -> tuple[int, TokenEvent | Exception]:
        async with self._in_time():
            return await self._queue.get()

    @asynccontextmanager
    async def _in_time(self) -> AsyncIterator[None]:
        try:
            async with asyncio.timeout_at(self._deadline):
                yield
        except TimeoutError:
            raise Unavailable(
                f"The reply took longer than {self._seconds:g} seconds: ask for a shorter one, or later.",
                code="timeout",
            ) from None

    def _count(self, event: TokenEvent) -> None:
        if event.token_id < 0:
            return
        if self.first_token is None:
            self.first_token = time.monotonic()
            self._measures.first_token.observe(self.first_token - self.arrived)
        self._measures.tokens.labels("completion").inc()

    async def finish(self) -> Exchange:
        """Wait for the end and return the turn; see `events` for the errors."""
        async with aclosing(self.events()) as events:
            async for _ in events:
                pass
        return self

    def cancel(self) -> None:
        """Free the rows that have not ended."""
        for each in self.answers:
            each.stop()
        self._worker.withdraw(self.answers)

    @property
    def completion_tokens(self) -> int:
        """Tokens of all replies and drafts, ends of turns included."""
        drafts = [each.draft for each in self.answers if each.draft is not None]
        return sum(len(each.said.events) for each in (*self.answers, *drafts))

    def summary(self, place: int = 0) -> dict[str, Any]:
        """Return what a reply says about itself under the key `persona_tui`."""
        answer = self.answers[place]
        found = _summary(answer)
        if answer.draft is not None:
            found["draft"] = {"text": answer.draft.said.text, **_summary(answer.draft)}
        return found


def _summary(answer: Answer) -> dict[str, Any]:
    said, voiced = answer.said, answer.voiced
    changes = voiced.changes
    return {
        "mix": changes[-1][1] if changes else None,
        "seed": voiced.request.sampling.seed if voiced.request.sampling is not None else None,
        "projections": _rounded(said.projections()),
        "capped_tokens": said.capped_tokens,
        "nats_from_plain": said.nats_from_plain,
        "guard": {about: verdict.as_dict() for about, verdict in said.verdicts.items()} or None,
        "policy": [breach.as_dict() for breach in said.breaches] if answer.live is not None else None,
        "opinions": [opinion.as_dict() for opinion in said.opinions] or None,
    }


def _rounded(values: dict[str, float]) -> dict[str, float]:
    return {name: round(value, 5) for name, value in values.items()}
