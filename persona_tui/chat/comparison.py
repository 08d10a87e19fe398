"""A/B: one question answered with several mixes side by side, and one of the answers kept.

1. `Comparison.speak` writes all answers as the rows of one batch (see `SteeringEngine.compare`).
2. `Comparison.keep` puts them into the conversation as siblings; the one that was kept is on the path.
3. `parse_setting`, `setting_as_text` and `setting_in_words` are how a setting is typed and shown.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from persona_tui.chat import Change
from persona_tui.core.errors import PersonaTuiError, nearest

if TYPE_CHECKING:
    import threading

    from persona_tui.chat import Conversation
    from persona_tui.core.mix import Mix
    from persona_tui.model import Sampling, TokenEvent
    from persona_tui.monitors.guard import Guard
    from persona_tui.monitors.verdict import Verdict
    from persona_tui.project.project import Project
    from persona_tui.steering import SteeringEngine
    from persona_tui.traits.policy import Breach

LETTERS = "AB"

_ON = {"on": True, "yes": True, "off": False, "no": False}
_KEYS = ("persona", "blend", "strength", "capping")
_USAGE = "persona=sage,strength=0.3,capping=on"


@dataclass
class Answer:
    """One of the answers.

    Attributes:
        mix: what it is spoken with; of one that follows the present mix, the latest.
        events: its tokens so far.
        seconds: from the beginning to its last token.
        changes: other mixes that took effect meanwhile, in order.
        verdicts: a guard's latest ones, about the message and about the answer.
        breaches: the limits of a policy that it was found to break.
    """

    mix: Mix
    events: list[TokenEvent] = field(default_factory=list)
    seconds: float = 0.0
    changes: list[Change] = field(default_factory=list)
    verdicts: dict[str, Verdict] = field(default_factory=dict)
    breaches: list[Breach] = field(default_factory=list)

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
    def finish(self) -> str | None:
        """Why it ended; None = it has not."""
        return self.events[-1].finish if self.events else None

    def take(self, event: TokenEvent, seconds: float) -> None:
        """Add an event that came so many seconds after the beginning."""
        from persona_tui.monitors.events import breaches_of
        from persona_tui.monitors.guard import verdict_of

        self.seconds = seconds
        self.breaches += breaches_of(event)
        if (verdict := verdict_of(event)) is not None:
            self.verdicts[verdict.about] = verdict
        self.events.append(event)


class Comparison:
    """A question, and its answers by several mixes.

    Attributes:
        answers: one for each mix, in order.
        question: what is asked; None = the last message is answered anew.
        seed: which random numbers were drawn; None before `speak`.
        prompt_tokens: the length of the prompt; 0 before `speak`.
        nodes: once one was kept: the answers' numbers in the conversation, by row.
    """

    def __init__(
        self,
        conversation: Conversation,
        mixes: Sequence[Mix],
        question: str | None = None,
        follower: int | None = None,
    ) -> None:
        """
        Args:
            conversation: what was said before. It stays as it is until an answer is kept.
            mixes: what the answers are spoken with.
            question: what is asked; None = the last message is answered anew.
            follower: an answer that is spoken with the engine's present mix, also when that changes.

        Raises:
            PersonaTuiError: there is nothing to answer.
        """
        self.answers = [Answer(mix) for mix in mixes]
        self.seed: int | None = None
        self.prompt_tokens = 0
        self.nodes: dict[int, int] = {}
        self._conversation = conversation
        self._follower = follower
        self.question = question
        self._settings: dict[str, Any] = {}
        self._messages = self._asked()

    def _asked(self) -> list[dict[str, str]]:
        said = self._conversation.messages()
        if self.question is not None:
            return [*said, {"role": "user", "content": self.question}]
        if said and said[-1]["role"] == "assistant":
            said = said[:-1]
        if not said:
            raise PersonaTuiError("There is nothing to answer yet: ask something first.")
        return said

    def speak(
        self,
        engine: SteeringEngine,
        sampling: Sampling,
        stop: threading.Event | None = None,
        guard: Guard | None = None,
    ) -> Iterator[TokenEvent]:
        """Write all answers, token by token; an event's `row` says which answer it belongs to.

        Args:
            engine: writes them.
            sampling: as wanted. Without a seed, one is drawn for all.
            stop: when set, no further token is written.
            guard: judges the message and the answers; what it refuses in one of them ends all.

        Raises:
            PersonaNotFoundError: a mix names a persona that does not exist.
            GenerationError: the conversation is too long, or memory ran out.
        """
        from persona_tui.chat.replies import measured_by, prepare

        turn = 1 + sum(message["role"] == "assistant" for message in self._messages)
        measures = [measured_by(engine, self.asked, turn) for _ in self.answers]
        prepared = prepare(engine, self._messages, self._conversation.system, sampling)
        rows = [engine.describe(answer.mix) for answer in self.answers]
        self._settings = {**prepared.settings, "rows": rows}
        self.seed, self.prompt_tokens = prepared.sampling.seed, prepared.prompt_tokens
        started = time.monotonic()
        for event in engine.compare(
            prepared.messages,
            [None if row == self._follower else answer.mix for row, answer in enumerate(self.answers)],
            sampling=prepared.sampling,
            system=prepared.system,
            stop=stop,
            on_mix=self._mix_changed,
            guard=guard,
        ):
            event = measures[event.row](event)
            self.answers[event.row].take(event, time.monotonic() - started)
            yield event

    def _mix_changed(self, index: int, described: dict[str, Any]) -> None:
        """Note that the answer which follows the present mix is spoken with this from a token on."""
        from persona_tui.core.mix import Mix

        assert self._follower is not None
        answer = self.answers[self._follower]
        if answer.finish is not None:
            return
        answer.mix = Mix.from_record(described)
        if index == 0:
            self._settings["rows"][self._follower] = described
        else:
            answer.changes.append(Change(index, described))

    @property
    def asked(self) -> str:
        """The message that is answered."""
        return self._messages[-1]["content"]

    @property
    def refusal(self) -> Verdict | None:
        """Why a guard has ended the answers, if one has."""
        refused = [answer for answer in self.answers if answer.finish == "refused"]
        verdicts = [verdict for answer in refused for verdict in answer.verdicts.values() if not verdict.safe]
        return verdicts[-1] if verdicts else None

    def keep(self, row: int) -> int:
        """Put the answers into the conversation as siblings, the one that is kept on the path; its number.

        Answers without a word are left out.

        Raises:
            PersonaTuiError: that one is empty.
        """
        if not self.answers[row].text.strip():
            raise PersonaTuiError("This answer is empty: there is nothing to keep.")
        if self.question is not None:
            self._conversation.add_user(self.question)
        others = [place for place in range(len(self.answers)) if place != row]
        kept = 0
        for place in [*others, row]:
            if self.answers[place].text.strip():
                kept = self._record(place)
        return kept

    def _record(self, row: int) -> int:
        answer, conversation = self.answers[row], self._conversation
        settings = {**self._settings, "row": row, "mix": self._settings["rows"][row]}
        if any(each.changes for each in self.answers):
            settings["row_changes"] = [[asdict(change) for change in each.changes] for each in self.answers]
        reply = self.nodes[row] = conversation.regenerate(settings=settings)
        for change in answer.changes:
            conversation.change_mix(change.mix, reply, change.index)
        for event in answer.events:
            if event.text or event.token_id >= 0:
                conversation.extend(reply, event.text, event.token_id)
        conversation.finish(reply, answer.finish or "cancelled", **self._stats(answer))
        return reply

    def _stats(self, answer: Answer) -> dict[str, Any]:
        verdicts = {about: verdict.as_dict() for about, verdict in answer.verdicts.items()}
        breaches = [{**each.as_dict(), "badge": each.badge} for each in answer.breaches]
        return {
            "tokens": answer.tokens,
            "prompt_tokens": self.prompt_tokens,
            "seconds": round(answer.seconds, 3),
            "tokens_per_second": round(answer.speed, 2),
            "capped_tokens": answer.capped,
            **({"guard": verdicts} if verdicts else {}),
            **({"breaches": breaches} if breaches else {}),
        }


def counterpart(mix: Mix, loaded: Sequence[str]) -> Mix:
    """What a mix is compared with unless somebody says: no persona, else a loaded one, else another floor."""
    if mix.label:
        return replace(mix, weights={})
    if loaded:
        return replace(mix, weights={loaded[0]: 1.0})
    return replace(mix, capping=not mix.capping)


# Settings as text -------------------------------------------------------------------------------------------


def parse_settings(text: str, default: Mix, loaded: Sequence[str]) -> tuple[list[Mix], str | None]:
    """Read `[SETTING vs SETTING] [QUESTION]`: the two mixes, and the question, None if there is none.

    Without settings, the default and its counterpart are compared.

    Raises:
        PersonaTuiError: a setting is not understood.
    """
    words = text.split(maxsplit=3)
    if len(words) < 3 or words[1] != "vs":
        return [default, counterpart(default, loaded)], text.strip() or None
    mixes = [parse_setting(word, default) for word in (words[0], words[2])]
    return mixes, words[3].strip() if words[3:] else None


def parse_setting(text: str, default: Mix) -> Mix:
    """Read `persona=sage,strength=0.3,capping=on`; what is left out is as in `default`.

    `persona=none` is nobody in particular. A blend is written `blend=sage:0.5+trickster:0.3`.

    Raises:
        PersonaTuiError: a part is not understood: says what would be.
    """
    mix = default
    for part in filter(None, (piece.strip() for piece in text.split(","))):
        key, equals, value = (piece.strip() for piece in part.partition("="))
        if not equals or not value or key not in _KEYS:
            hint = nearest(key, _KEYS) if equals else ""
            raise PersonaTuiError(f'"{part}" is no part of a setting, which looks like {_USAGE}.{hint}')
        mix = replace(mix, **_part(key, value))
    return mix


def _part(key: str, value: str) -> dict[str, Any]:
    from persona_tui.core.mix import parse_blend

    if key == "persona":
        return {"weights": {} if value.casefold() == "none" else {value: 1.0}}
    if key == "blend":
        return {"weights": parse_blend(value.replace("+", ","))}
    if key == "capping":
        if value.casefold() not in _ON:
            raise PersonaTuiError(f'capping is "on" or "off", not "{value}"')
        return {"capping": _ON[value.casefold()]}
    try:
        return {"strength": float(value)}
    except ValueError as error:
        raise PersonaTuiError(f'strength must be a number, not "{value}"') from error


def setting_as_text(mix: Mix) -> str:
    """A setting as it can be typed: `persona=sage,strength=0.3,capping=on`; see `parse_setting`."""
    active = {name: weight for name, weight in mix.weights.items() if weight}
    if not active:
        who = "persona=none"
    elif list(active.values()) == [1.0]:
        who = f"persona={next(iter(active))}"
    else:
        who = f"blend={'+'.join(f'{name}:{weight:g}' for name, weight in active.items())}"
    return f"{who},strength={mix.strength:g},capping={'on' if mix.capping else 'off'}"


def setting_in_words(mix: Mix) -> str:
    """A setting in a few words: `sage 0.30, capping on`."""
    voice = f"{mix.label} {mix.strength:.2f}" if mix.label else "no persona"
    return f"{voice}, capping {'on' if mix.capping else 'off'}"


def answers_in_words(comparison: Comparison) -> str:
    """The answers, one above the other, and how to keep one; or why there is none."""
    refusal = comparison.refusal
    if refusal is not None and not any(answer.text.strip() for answer in comparison.answers):
        return refusal.refusal
    parts = [
        f"{letter}: {setting_in_words(answer.mix)}\n{answer.text.strip()}"
        for letter, answer in zip(LETTERS, comparison.answers, strict=False)
    ]
    if refusal is not None:
        parts.append(refusal.refusal)
    return "\n\n".join(
        [*parts, "/keep A or /keep B puts one into the conversation; the other stays beside it."]
    )


# In a chat --------------------------------------------------------------------------------------------------


@runtime_checkable
class Comparer(Protocol):
    """What the slash commands below may use, besides a session."""

    project: Project

    @property
    def mix(self) -> Mix:
        """What is spoken with."""
        ...

    def compare(self, mixes: Sequence[Mix], question: str | None) -> str:
        """Answer a question (None = the last one) with several mixes; what to show."""
        ...

    def keep(self, row: int) -> str:
        """Keep one of the answers that were compared last; what to show."""
        ...


def compare_command(session: object, rest: str) -> str:
    """`/compare [SETTING vs SETTING] [QUESTION]`."""
    comparer = _comparer(session)
    personas = comparer.project.personas
    mixes, question = parse_settings(rest, comparer.mix, personas.list_loaded())
    for name in {name for mix in mixes for name in mix.weights}:
        personas.get(name)
    return comparer.compare(mixes, question)


def keep_command(session: object, rest: str) -> str:
    """`/keep A|B`."""
    letter = rest.strip().upper()
    if letter not in tuple(LETTERS):
        raise PersonaTuiError(f'/keep A or /keep B, not "{rest}"')
    return _comparer(session).keep(LETTERS.index(letter))


def _comparer(session: object) -> Comparer:
    if not isinstance(session, Comparer):
        raise PersonaTuiError("There is nothing to compare with here.")
    return session
