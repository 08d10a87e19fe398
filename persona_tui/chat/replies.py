"""A reply: one answer, or several side by side, as the n rows of one batch.

1. `ChatReply.to` is one row, written into a conversation as it comes. `ChatReply.beside` is one row per mix;
   none is in the conversation until `keep` puts them there, the chosen one on the path.
2. `ChatReply.write` writes all rows, token by token, on the thread that owns the model.
3. What it takes to write it again is recorded (see `replay`).
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from functools import partial
from statistics import fmean
from typing import TYPE_CHECKING, Any, Self

from persona_tui.chat.conversation import Change, Conversation, Run
from persona_tui.chat.prepare import PreparedReply, prepare
from persona_tui.core.errors import PersonaTuiError, SessionError
from persona_tui.core.mix import TRAIT_PREFIX, Mix

if TYPE_CHECKING:  # torch is imported when a reply is written
    from persona_tui.chat.review import Review
    from persona_tui.model import Message, Sampling, TokenEvent
    from persona_tui.monitors.guard import Guard
    from persona_tui.monitors.second_opinion import Opinion
    from persona_tui.monitors.verdict import Verdict
    from persona_tui.steering import SteeringEngine
    from persona_tui.traits.live import LiveTraits
    from persona_tui.traits.policy import Breach, Policy

LETTERS = "AB"


@dataclass
class ReplyRow:
    """One of a reply's rows.

    Attributes:
        mix: what it is spoken with; of one that follows the present mix, the latest.
        events: its tokens so far.
        seconds: from the beginning to its last token.
        changes: other mixes that took effect meanwhile, in order.
        verdicts: a guard's latest ones, about the message and about the reply.
        breaches: the limits of a policy that it was found to break.
        opinions: of a validator and of the model itself, once it is written.
        floor: the floor that is enforced, as a transcript has it; None = nothing is capped.
    """

    mix: Mix
    events: list[TokenEvent] = field(default_factory=list)
    seconds: float = 0.0
    changes: list[Change] = field(default_factory=list)
    verdicts: dict[str, Verdict] = field(default_factory=dict)
    breaches: list[Breach] = field(default_factory=list)
    opinions: list[Opinion] = field(default_factory=list)
    floor: Mapping[str, Any] | None = None

    @property
    def text(self) -> str:
        """What was said so far."""
        return "".join(event.text for event in self.events)

    @property
    def tokens(self) -> int:
        """How many tokens that took."""
        return sum(event.token_id >= 0 for event in self.events)

    @property
    def capped(self) -> int:
        """At how many of them the floor had to act."""
        return sum(event.token_id >= 0 and event.capped > 0 for event in self.events)

    @property
    def speed(self) -> float:
        """Tokens per second, from the beginning; 0 before the first one."""
        return self.tokens / self.seconds if self.seconds else 0.0

    @property
    def nats_from_plain(self) -> float | None:
        """How much more probable steering made its tokens, on average; None if no twin has read along."""
        nats = [event.nats for event in self.events if event.nats is not None]
        return round(fmean(nats), 4) if nats else None

    @property
    def finish(self) -> str | None:
        """Why it ended; None = it has not, or was given up."""
        return self.events[-1].finish if self.events else None

    def take(self, event: TokenEvent, seconds: float) -> None:
        """Add an event that came so many seconds after the beginning."""
        from persona_tui.monitors.guard import breaches_of, verdict_of

        self.seconds = seconds
        self.breaches += breaches_of(event)
        if (verdict := verdict_of(event)) is not None:
            self.verdicts[verdict.about] = verdict
        self.events.append(event)

    def stats(self, prompt_tokens: int) -> dict[str, Any]:
        """Return what a transcript keeps of it, besides the tokens."""
        verdicts = {about: verdict.as_dict() for about, verdict in self.verdicts.items()}
        breaches = [{**each.as_dict(), "badge": each.badge} for each in self.breaches]
        return {
            "tokens": self.tokens,
            "prompt_tokens": prompt_tokens,
            "seconds": round(self.seconds, 3),
            "tokens_per_second": round(self.speed, 2),
            "capped_tokens": self.capped,
            **({"nats_from_plain": nats} if (nats := self.nats_from_plain) is not None else {}),
            **({"guard": verdicts} if verdicts else {}),
            **({"breaches": breaches} if breaches else {}),
            **({"opinions": [each.as_dict() for each in self.opinions]} if self.opinions else {}),
        }


class ChatReply:
    """Rows to be written, and what has come of them so far.

    The thread that writes fills it; any other thread may read it meanwhile.

    Attributes:
        conversation: where it belongs.
        rows: one for each mix, in order.
        node: its number in the conversation; None = it is only there once a row is kept.
        said: the user's message that was added for it, and goes if the reply never begins; None = none was.
        question: of rows side by side, what is asked; None = the last message is answered again.
        events: the tokens of all rows, in the order in which they came.
        seed: which random numbers were drawn; None before `write`.
        prompt_tokens: the length of the prompt; 0 before `write`.
        forgotten: how many of the oldest messages had to be left out.
        nodes: once a row was kept: the rows' numbers in the conversation.
        taken_back: whether it ended before its first word, and is not in the conversation any more.
        stopping: set to end all rows after the present token.
    """

    def __init__(self, conversation: Conversation, mixes: Sequence[Mix], follower: int | None = None) -> None:
        """
        Args:
            conversation: where it belongs.
            mixes: what the rows are spoken with.
            follower: a row that is spoken with the engine's present mix, also when that changes.
        """
        self.conversation = conversation
        self.rows = [ReplyRow(mix) for mix in mixes]
        self.node: int | None = None
        self.said: int | None = None
        self.question: str | None = None
        self.events: list[TokenEvent] = []
        self.seed: int | None = None
        self.prompt_tokens = 0
        self.forgotten = 0
        self.nodes: dict[int, int] = {}
        self.taken_back = False
        self.stopping = threading.Event()
        self._follower = follower
        self._settings: dict[str, Any] = {}
        self._revises: list[Message] = []
        self._messages: list[Message] = []
        self._before = 0  # characters that were there already
        self._first_at: float | None = None
        self._last_at = 0.0

    @classmethod
    def to(cls, conversation: Conversation, node: int, mix: Mix, said: int | None = None) -> Self:
        """Return a reply that was begun in a conversation, spoken with the present mix, and followed."""
        reply = cls(conversation, [mix], follower=0)
        reply.node, reply.said = node, said
        reply._before = len(conversation.node(node).text)
        return reply

    def again(self, mix: Mix) -> ChatReply:
        """Begin a reply beside this one, its draft, which it has in view."""
        from persona_tui.chat.review import revising

        assert self.node is not None
        revises = revising(self.conversation.node(self.node).text.strip())
        node = self.conversation.regenerate(self.node, {"revises": revises})
        reply = ChatReply.to(self.conversation, node, mix)
        reply._revises = revises
        return reply

    @property
    def revises(self) -> bool:
        """Whether it was begun because of a draft."""
        return bool(self._revises)

    @classmethod
    def beside(
        cls,
        conversation: Conversation,
        mixes: Sequence[Mix],
        question: str | None = None,
        follower: int | None = None,
    ) -> Self:
        """Return answers that stand side by side. The conversation stays as it is until one is kept.

        Args:
            conversation: what was said before.
            mixes: what the answers are spoken with.
            question: what is asked; None = the last message is answered again.
            follower: an answer that is spoken with the engine's present mix, also when that changes.

        Raises:
            PersonaTuiError: there is nothing to answer.
        """
        reply = cls(conversation, mixes, follower)
        reply.question, reply._messages = question, _asked(conversation, question)
        return reply

    # What there is ------------------------------------------------------------------------------------------

    @property
    def asked(self) -> str:
        """The message that is answered."""
        if self.node is None:
            return self._messages[-1]["content"]
        before = self.conversation.lineage(self.node)[:-1]
        return next((node.text for node in reversed(before) if node.role == "user"), "")

    @property
    def run(self) -> Run | None:
        """How it is written, as the conversation has it; None if it is not, or no longer, there."""
        try:
            return self.conversation.node(self.node).runs[-1] if self.node is not None else None
        except (SessionError, IndexError):
            return None

    @property
    def count(self) -> int:
        """Tokens of the first row."""
        return self.rows[0].tokens

    @property
    def finish(self) -> str | None:
        """Why the first row ended; None = it has not."""
        return self.rows[0].finish

    @property
    def speed(self) -> float | None:
        """Tokens of the first row per second since its first one; None until that can be said."""
        seconds = self._last_at - (self._first_at or 0.0)
        return (self.count - 1) / seconds if self._first_at is not None and seconds > 0 else None

    @property
    def empty(self) -> bool:
        """Whether no row has a word."""
        return not any(row.text.strip() for row in self.rows)

    @property
    def refusal(self) -> Verdict | None:
        """Why a guard has ended it, if one has."""
        refused = [row for row in self.rows if row.finish == "refused"]
        verdicts = [verdict for row in refused for verdict in row.verdicts.values() if not verdict.safe]
        return verdicts[-1] if verdicts else None

    # Writing ------------------------------------------------------------------------------------------------

    def write(
        self,
        engine: SteeringEngine,
        sampling: Sampling,
        guard: Guard | None = None,
        policy: Policy | None = None,
        review: Review | None = None,
    ) -> Generator[TokenEvent, None, None]:
        """Write all rows, token by token; an event's `row` says which one it belongs to.

        A reply in a conversation ends there as it ends here: also when the reader gives up, or something goes
        wrong. One that ended that way before its first word is taken back.

        Args:
            engine: writes them.
            sampling: as wanted. Without a seed, one is drawn for all.
            guard: judges the message and the rows; what it refuses in one of them ends all.
            policy: which scores of traits the rows may have.
            review: what the rows go through once they are written.

        Raises:
            PersonaNotFoundError: a mix or the policy names somebody who does not exist.
            GenerationError: the conversation is too long, or memory ran out.
        """
        finish = "cancelled"
        fixed = ExitStack()
        try:
            fixed.enter_context(engine.model.rendered_as(self._rendering or engine.model.today()))
            fixed.enter_context(engine.as_in_chat())
            prepared = self._prepare(engine, sampling)
            measures = self._measured_by(engine, policy, prepared)
            started = time.monotonic()
            for event in self._streamed(engine, prepared, guard, review):
                event = measures[event.row](event)
                self._take(event, time.monotonic() - started)
                yield event
            finish = self.finish or finish
        except PersonaTuiError:
            finish = "failed"
            raise
        finally:
            fixed.close()
            self.end(finish)

    def _streamed(
        self, engine: SteeringEngine, prepared: PreparedReply, guard: Guard | None, review: Review | None
    ) -> Iterator[TokenEvent]:
        events = engine.stream_rows(
            prepared.messages,
            [None if place == self._follower else row.mix for place, row in enumerate(self.rows)],
            sampling=prepared.sampling,
            system=prepared.system,
            stop=self.stopping,
            on_mix=self._mix_changed,
            guard=guard,
        )
        if review is None:
            return events
        from persona_tui.monitors.second_opinion import critique

        return review.over(events, self.asked, self.rows, partial(critique, engine.model))

    @property
    def _rendering(self) -> Mapping[str, Any] | None:
        """The date and the default system prompt with which the conversation began, and so goes on."""
        conversation = self.conversation
        before = conversation.path() if self.node is None else conversation.lineage(self.node)
        runs = (run for node in before for run in node.runs)
        return next((found for run in runs if (found := run.settings.get("rendering"))), None)

    def _prepare(self, engine: SteeringEngine, sampling: Sampling) -> PreparedReply:
        conversation = self.conversation
        messages = self._messages if self.node is None else conversation.prompt(self.node)
        prepared = prepare(engine, messages, conversation.system, sampling)
        self._settings = dict(prepared.settings)
        self.seed, self.prompt_tokens = prepared.sampling.seed, prepared.prompt_tokens
        self.forgotten = prepared.forgotten
        if self.node is None:
            self._settings["rows"] = [engine.describe(row.mix) for row in self.rows]
            for row, described in zip(self.rows, self._settings["rows"], strict=True):
                row.floor = described["floor"]
        else:
            self._settings |= {"revises": self._revises} if self._revises else {}
            conversation.settle(self.node, self._settings)
        return prepared

    def _take(self, event: TokenEvent, seconds: float) -> None:
        if self.node is not None and (event.text or event.token_id >= 0):
            self.conversation.extend(self.node, event.text, event.token_id)
        self.rows[event.row].take(event, seconds)
        if event.row == 0:
            self._last_at = time.perf_counter()
            self._first_at = self._last_at if self._first_at is None else self._first_at
        self.events.append(event)

    def _mix_changed(self, index: int, described: dict[str, Any]) -> None:
        """Note that the row which follows the present mix is spoken with this from a token on."""
        assert self._follower is not None
        row = self.rows[self._follower]
        if row.finish is not None:
            return
        row.mix, row.floor = Mix.from_record(described), described["floor"]
        if self.node is not None:
            self.conversation.change_mix(described, self.node, index)
            row.changes = list(self.conversation.node(self.node).runs[-1].changes)
        elif index == 0:
            self._settings["rows"][self._follower] = described
        else:
            row.changes.append(Change(index, described))

    def _measured_by(
        self, engine: SteeringEngine, policy: Policy | None, prepared: PreparedReply
    ) -> list[Callable[[TokenEvent], TokenEvent]]:
        """By row, what adds the breaches of a policy to its events; its traits are loaded for that."""
        if policy is None:
            return [lambda event: event] * len(self.rows)
        from persona_tui.monitors.events import breaching
        from persona_tui.traits.live import live_traits

        for name in policy.traits:
            engine.personas.load(f"{TRAIT_PREFIX}{name}")
        vectors = [engine.personas.get(f"{TRAIT_PREFIX}{name}") for name in policy.traits]
        lives = live_traits(policy, vectors, engine.model, prepared.messages, self._turn, len(self.rows))

        def measure(live: LiveTraits, event: TokenEvent) -> TokenEvent:
            found = [*live.feed(event), *(live.finish() if event.finish else [])]
            return breaching(event, found) if found else event

        return [partial(measure, live) for live in lives]

    @property
    def _turn(self) -> int:
        """Which reply of the conversation it is, from 1."""
        if self.node is None:
            return 1 + sum(message["role"] == "assistant" for message in self._messages)
        return 1 + sum(node.role == "assistant" for node in self.conversation.lineage(self.node)[:-1])

    def stop(self) -> None:
        """End all rows after the present token, and have the session say where that was asked for."""
        if not self.stopping.is_set():
            self.stopping.set()
            if self.node is not None and self.conversation.record is not None:
                self.conversation.record("stop", node=self.node)

    def end(self, finish: str) -> None:
        """End it in the conversation; what has no word is taken back if it was broken off."""
        if self.node is None:
            return
        node, conversation = self.conversation.node(self.node), self.conversation
        broken_off = finish in ("cancelled", "failed")
        if not broken_off or self._before or node.text.strip():
            conversation.finish(self.node, finish, **self.rows[0].stats(self.prompt_tokens))
            return
        conversation.drop(self.node)
        self.taken_back = True
        if self.said is not None and not conversation.answered(self.said):
            conversation.drop(self.said)

    # Keeping ------------------------------------------------------------------------------------------------

    def keep(self, row: int) -> int:
        """Put rows side by side into the conversation as siblings, the one that is kept on the path.

        Rows without a word are left out.

        Returns:
            The number of the one that is kept.

        Raises:
            PersonaTuiError: that one is empty.
        """
        if not self.rows[row].text.strip():
            raise PersonaTuiError("This answer is empty: there is nothing to keep.")
        if self.question is not None:
            self.conversation.add_user(self.question)
        others = [place for place in range(len(self.rows)) if place != row]
        for place in [*others, row]:
            if self.rows[place].text.strip():
                self._record(place)
        return self.nodes[row]

    def _record(self, place: int) -> None:
        row, conversation = self.rows[place], self.conversation
        settings = {**self._settings, "row": place, "mix": self._settings["rows"][place]}
        if any(each.changes for each in self.rows):
            settings["row_changes"] = [[asdict(change) for change in each.changes] for each in self.rows]
        node = self.nodes[place] = conversation.regenerate(settings=settings)
        for change in row.changes:
            conversation.change_mix(change.mix, node, change.index)
        for event in row.events:
            if event.text or event.token_id >= 0:
                conversation.extend(node, event.text, event.token_id)
        conversation.finish(node, row.finish or "cancelled", **row.stats(self.prompt_tokens))


def _asked(conversation: Conversation, question: str | None) -> list[dict[str, str]]:
    said = conversation.messages()
    if question is not None:
        return [*said, {"role": "user", "content": question}]
    if said and said[-1]["role"] == "assistant":
        said = said[:-1]
    if not said:
        raise PersonaTuiError("There is nothing to answer yet: ask something first.")
    return said
