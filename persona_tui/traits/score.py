"""What every reply of a conversation scores: one pass per conversation, up to the last layer needed."""

from __future__ import annotations

import itertools
from collections.abc import Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from statistics import fmean
from typing import TYPE_CHECKING

import torch

from persona_tui.core.errors import GenerationError
from persona_tui.datasets.transcripts import BadLine, Item, Transcript
from persona_tui.model import Message, Reading
from persona_tui.model.spans import ReplyReading, read_replies
from persona_tui.traits.gate import Gates, recent
from persona_tui.traits.vector import TraitVector

if TYPE_CHECKING:
    from persona_tui.model import ModelWrapper

CHUNK = 256  # conversations that are sorted by length and read together
CHUNK_CHARACTERS = 1 << 20


@dataclass(frozen=True)
class ReplyScore:
    """One reply, measured.

    Attributes:
        turn: which reply of its conversation, from 1.
        message: its place among the messages, from 0.
        user: the message that it answers, "" if there is none.
        text: the reply.
        n_tokens: its length.
        forgotten: how many of the oldest messages did not fit the context.
        scores: by trait, on the common scale: −1 = the low examples, 1 = the high ones.
        projections: by trait, the dot product with the unit vector.
        outside: the traits that this is not about, by their gates: their scores mean nothing.
    """

    turn: int
    message: int
    user: str
    text: str
    n_tokens: int
    forgotten: int
    scores: dict[str, float]
    projections: dict[str, float]
    outside: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Scored:
    """A conversation and its replies, in order; there is at least one."""

    conversation: Transcript
    replies: tuple[ReplyScore, ...]

    @property
    def means(self) -> dict[str, float]:
        """By trait, the mean over the replies."""
        return {name: fmean(reply.scores[name] for reply in self.replies) for name in self.replies[0].scores}

    @property
    def applicable_means(self) -> dict[str, float | None]:
        """By trait, the mean over the replies that it is about; None where there are none."""
        by_name = {name: [each for each in self.replies if name not in each.outside] for name in self.means}
        return {
            name: fmean(reply.scores[name] for reply in own) if own else None for name, own in by_name.items()
        }

    @property
    def drift(self) -> dict[str, float | None]:
        """By trait, how far the last reply's score lies above the first one's; None where one is outside."""
        first, last = self.replies[0], self.replies[-1]
        outside = first.outside | last.outside
        return {
            name: None if name in outside else last.scores[name] - first.scores[name] for name in first.scores
        }


@dataclass(frozen=True)
class TurnScore:
    """One message of a conversation, the user's or the model's, measured.

    Attributes:
        turn: which turn it belongs to, from 1; a turn begins with a message of the user's.
        message: its place among the messages, from 0.
        role: "user" or "assistant".
        text: the message.
        n_tokens: its length.
        scores: by trait. The scale was made with replies: users' messages are comparable with each other.
        outside: of a reply, the traits that it is not about.
    """

    turn: int
    message: int
    role: str
    text: str
    n_tokens: int
    scores: dict[str, float]
    outside: frozenset[str] = frozenset()


def drift_of(turns: Sequence[TurnScore], role: str) -> dict[str, float | None]:
    """Return, by trait, how far a role's last message scores above its first; empty if there are not two.

    None where a trait is not about one of them.
    """
    own = [turn for turn in turns if turn.role == role]
    if len(own) < 2:
        return {}
    first, last = own[0], own[-1]
    outside = first.outside | last.outside
    return {
        name: None if name in outside else last.scores[name] - first.scores[name] for name in first.scores
    }


class TraitScorer:
    """Measures replies with the traits of one model."""

    def __init__(self, model: ModelWrapper, traits: Sequence[TraitVector]) -> None:
        """
        Args:
            model: what reads the conversations.
            traits: made on that model (`TraitStore.select` checks it); at least one.
        """
        self.model = model
        self.traits = list(traits)
        self.layers = sorted({trait.reading.layer for trait in traits})
        self.gates = Gates(model, traits)

    def score(self, conversations: Sequence[Transcript]) -> list[Scored | BadLine]:
        """Measure conversations; one that cannot be read says why in its place."""
        read = read_replies(self.model, [each.messages for each in conversations], self.layers)
        judged = [
            []
            if isinstance(found, GenerationError)
            else [reading for reading in found if reading.message >= each.judged]
            for each, found in zip(conversations, read, strict=True)
        ]
        asked = [
            each.messages[: reading.message]
            for each, readings in zip(conversations, judged, strict=True)
            for reading in readings
        ]
        outside = iter(self.gates.outside(asked))
        scored: list[Scored | BadLine] = []
        for each, found, readings in zip(conversations, read, judged, strict=True):
            if readings:
                ruled_out = [next(outside) for _ in readings]
                scored.append(Scored(each, tuple(self._replies(each, readings, ruled_out))))
            else:
                problem = _said(found) if isinstance(found, GenerationError) else _unsaid(each)
                scored.append(BadLine(each.where, each.line, problem))
        return scored

    def score_text(self, user: str, reply: str) -> ReplyScore:
        """Measure one reply to one message.

        Raises:
            GenerationError: it is empty or too long.
        """
        messages = [{"role": "user", "content": user}, {"role": "assistant", "content": reply}]
        found = self.score([Transcript(messages, "the reply")])[0]
        if isinstance(found, BadLine):
            raise GenerationError(str(found))
        return found.replies[-1]

    def score_turns(self, messages: Sequence[Message]) -> list[TurnScore]:
        """Measure every message of a conversation, in its order, but for the system prompt.

        A reply is read as in `score`; what the user says, at its own tokens, after the system prompt and a
        few of the messages before it, so that a long conversation costs no more than its length.

        Raises:
            GenerationError: a reply, or a message of the user's alone, does not fit the context.
        """
        steps = self.turns_by_steps(messages)
        while True:
            try:
                next(steps)
            except StopIteration as end:
                found: list[TurnScore] = end.value
                return found

    def turns_by_steps(self, messages: Sequence[Message]) -> Generator[None, None, list[TurnScore]]:
        """`score_turns`, with a pause after each pass of the model, for those who have other work, too."""
        if not self.traits:
            return []
        found: dict[int, TurnScore] = {}
        for place, message in enumerate(messages):
            if message["role"] == "user" and message["content"].strip():
                found[place] = self._user(messages, place)
                yield
        if any(message["role"] == "assistant" and message["content"].strip() for message in messages):
            scored = self.score([Transcript(list(messages), "the conversation")])[0]
            if isinstance(scored, BadLine):
                raise GenerationError(scored.problem)
            for reply in scored.replies:
                found[reply.message] = TurnScore(
                    0,
                    reply.message,
                    "assistant",
                    reply.text,
                    reply.n_tokens,
                    reply.scores,
                    reply.outside,
                )
        numbers = list(itertools.accumulate(int(message["role"] == "user") for message in messages))
        return [replace(found[place], turn=max(1, numbers[place])) for place in sorted(found)]

    def _user(self, messages: Sequence[Message], place: int) -> TurnScore:
        """Score one message of the user's."""
        reading = self._read_message(messages[: place + 1])
        scores = {
            trait.name: trait.score(
                trait.projections(reading.mean[reading.layers.index(trait.reading.layer)].unsqueeze(0))[0]
            )
            for trait in self.traits
        }
        return TurnScore(0, place, "user", messages[place]["content"], reading.n_tokens, scores)

    def _read_message(self, messages: Sequence[Message]) -> Reading:
        """Read the last message, after the system prompt and some before it, or alone if that is too long."""
        try:
            return self.model.read_messages([recent(messages)], self.layers)[0]
        except GenerationError:
            if len(messages) == 1:
                raise
        return self.model.read_messages([[messages[-1]]], self.layers)[0]

    def stream(self, items: Iterable[Item]) -> Iterator[Scored | BadLine]:
        """Measure any number of conversations, in their order and in constant memory."""
        for chunk in chunks(items):
            good = [item for item in chunk if isinstance(item, Transcript)]
            scored = iter(self.score(good))
            for item in chunk:
                yield item if isinstance(item, BadLine) else next(scored)

    def _replies(
        self,
        conversation: Transcript,
        readings: Sequence[ReplyReading],
        outside: Sequence[frozenset[str]],
    ) -> Iterator[ReplyScore]:
        stacked = torch.stack([reading.mean for reading in readings])  # [replies, layers, hidden]
        projected = {
            trait.name: trait.projections(stacked[:, self.layers.index(trait.reading.layer)])
            for trait in self.traits
        }
        for place, reading in enumerate(readings):
            projections = {name: values[place] for name, values in projected.items()}
            yield ReplyScore(
                turn=place + 1,
                message=reading.message,
                user=_answered(conversation, reading.message),
                text=conversation.messages[reading.message]["content"],
                n_tokens=reading.n_tokens,
                forgotten=reading.forgotten,
                scores={trait.name: trait.score(projections[trait.name]) for trait in self.traits},
                projections=projections,
                outside=outside[place],
            )


def chunks(items: Iterable[Item]) -> Iterator[list[Item]]:
    """Yield items in groups that are neither too many nor too long together."""
    group: list[Item] = []
    size = 0
    for item in items:
        group.append(item)
        if isinstance(item, Transcript):
            size += sum(len(message["content"]) for message in item.messages)
        if len(group) >= CHUNK or size >= CHUNK_CHARACTERS:
            yield group
            group, size = [], 0
    if group:
        yield group


def _answered(conversation: Transcript, reply: int) -> str:
    before = itertools.islice(reversed(conversation.messages[:reply]), 1)
    return next((message["content"] for message in before if message["role"] == "user"), "")


def _unsaid(conversation: Transcript) -> str:
    return "a reply has only thoughts: --thoughts scores them" if conversation.thoughts else "no reply"


def _said(error: GenerationError) -> str:
    return " ".join(str(error).split()).rstrip(".")
