"""Replies of a transcript, written again: the same tokens from the same settings, or where they differ.

1. `stretches` lists what a transcript has of replies.
2. `check_same` makes sure that one can come out the same: model, vectors, floor.
3. `replay` writes it again and compares the tokens.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping
from contextlib import closing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from persona_tui.chat.conversation import Conversation, Run
from persona_tui.core.errors import PersonaTuiError, SessionError
from persona_tui.core.mix import Mix
from persona_tui.model import Message, Sampling

if TYPE_CHECKING:
    from persona_tui.steering import SteeringEngine


@dataclass(frozen=True)
class Stretch:
    """A run of a reply, as a transcript has it, to be written again.

    Attributes:
        node: the reply's number.
        run: which of its runs, from 0.
        messages: what the model was given, without what was left out.
        recorded: the run.
        tokens: the ids that it consists of.
    """

    node: int
    run: int
    messages: list[Message]
    recorded: Run
    tokens: list[int]

    @property
    def settings(self) -> dict[str, Any]:
        """How it was written."""
        return self.recorded.settings

    @property
    def mixes(self) -> list[dict[str, Any]]:
        """All mixes that it was written with, and those of other rows of its batch."""
        changes = [change.mix for change in self.recorded.changes]
        beside = [change["mix"] for row in self.settings.get("row_changes", []) for change in row]
        return [self.settings.get("mix") or {}, *changes, *self.settings.get("rows", []), *beside]

    @property
    def capping_layers(self) -> list[int]:
        """Where it was capped, if it was."""
        floors = [floor for mix in self.mixes if (floor := mix.get("floor"))]
        return list(floors[0].get("layers", ())) if floors else []

    @property
    def name(self) -> str:
        """What to call it in messages: `reply 4`, or `reply 4, continuation 1`."""
        return f"reply {self.node}" + (f", continuation {self.run}" if self.run else "")


@dataclass(frozen=True)
class Replayed:
    """The result of writing a run again.

    Attributes:
        stretch: the run.
        tokens: how many of its tokens came out the same, from the first on.
        expected: the first recorded token that did not; None = all did.
        got: the token that came instead; None = none did.
    """

    stretch: Stretch
    tokens: int
    expected: int | None = None
    got: int | None = None

    @property
    def equal(self) -> bool:
        """Whether every token came out the same."""
        return self.expected is None


def stretches(conversation: Conversation) -> list[Stretch]:
    """Every run of every reply, on all branches, in the order in which the replies were begun."""
    return [
        Stretch(
            node.id,
            place,
            conversation.prompt(node.id, place)[run.settings.get("forgotten", 0) :],
            run,
            tokens,
        )
        for node in conversation.nodes()
        for place, run in enumerate(node.runs)
        if (tokens := conversation.run_tokens(node.id, place))
    ]


def check_same(engine: SteeringEngine, stretch: Stretch) -> None:
    """Make sure that a run can come out the same.

    Raises:
        SessionError: it was recorded without its settings; or with another model, or with vectors that are
            gone or have changed: says which.
    """
    settings, model = stretch.settings, engine.model
    missing = [name for name in ("sampling", "mix", "fingerprint") if not settings.get(name)]
    if missing:
        raise SessionError(f"{stretch.name} was recorded without its {missing[0]}")
    here = {**engine.circumstances(), "fingerprint": model.fingerprint}
    then, now = _weights_of(settings), _weights_of(here)
    if then != now:
        raise SessionError(
            f"{stretch.name} was written by {settings.get('model')} with the fingerprint {then}; "
            f"{model.name} here has {now}"
        )
    for mix in stretch.mixes:
        _check_vectors(engine, stretch, mix)


def _weights_of(settings: Mapping[str, Any]) -> str:
    """Return what tells exactly these weights from all others, copies included, shortened."""
    plain, _, weights = str(settings["fingerprint"]).partition(".")
    packed = settings.get("quantization", "none")
    parts = [plain[:12], weights[:8], "" if packed == "none" else str(packed)]
    return ".".join(part for part in parts if part)


def _check_vectors(engine: SteeringEngine, stretch: Stretch, mix: Mapping[str, Any]) -> None:
    for name, digest in mix.get("vectors", {}).items():
        _check_file(engine, stretch, name, digest)
    if floor := mix.get("floor"):
        _check_file(engine, stretch, None, floor.get("file", ""))
    then = floor.get("layers", []) if floor else []
    capped = sorted(engine.interventions(Mix.from_record(mix, settled=True)).capping)
    if capped != then:
        raise SessionError(
            f"{stretch.name} was capped at layers {then}, now it would be at {capped}: "
            "set steering.capping_layers to what it was"
        )


def _check_file(engine: SteeringEngine, stretch: Stretch, name: str | None, then: str) -> None:
    """Make sure that a persona's file (None: the axes') is the one that a run was spoken with."""
    which = name or "axes"
    try:
        now = engine.personas.digest(name)
    except PersonaTuiError as error:
        raise SessionError(f"{stretch.name} was spoken with {which}: {error}") from error
    if now != then:
        raise SessionError(
            f"{stretch.name} was spoken with another file of {which}: "
            f"SHA-256 {then[:12]} then, {now[:12]} now"
        )


def unlike(engine: SteeringEngine, stretch: Stretch) -> list[str]:
    """Return what has changed since a run was written, and may be why it differs: `torch 2.6, now 2.7`."""
    here = engine.circumstances()
    return [
        f"{name} {then}, now {here[name]}"
        for name, then in stretch.settings.items()
        if name in here and then != here[name]
    ]


def replay(engine: SteeringEngine, stretch: Stretch) -> Replayed:
    """Write a run again, up to where it ended, and compare.

    Raises:
        SessionError: see `check_same`.
    """
    check_same(engine, stretch)
    same, tokens = 0, stretch.tokens
    with closing(_repeated(engine, stretch)) as repeated:
        # Tokens first: once they are used up, no further one is written.
        for expected, got in zip(tokens, repeated, strict=False):
            if got != expected:
                return Replayed(stretch, same, expected, got)
            same += 1
    return Replayed(stretch, same, None if same == len(tokens) else tokens[same])


def _repeated(engine: SteeringEngine, stretch: Stretch) -> Generator[int, None, None]:
    """Yield the token ids, as they come."""
    settings, system = stretch.settings, stretch.settings.get("system")
    try:
        sampling = Sampling(**settings["sampling"])
    except TypeError as error:
        raise SessionError(f"{stretch.name} was sampled in a way that is not known here") from error
    if settings.get("rows"):
        events = engine.repeat_rows(stretch.messages, _row_schedules(settings), sampling, system)
    else:
        events = engine.repeat(stretch.messages, _schedule(stretch), sampling, system)
    with engine.model.rendered_as(settings.get("rendering")):
        for event in events:
            if event.row == settings.get("row", 0) and event.token_id >= 0:
                yield event.token_id


def _schedule(stretch: Stretch) -> dict[int, Mix]:
    changes = {change.index: change.mix for change in stretch.recorded.changes}
    return _settled({0: stretch.settings["mix"], **changes})


def _row_schedules(settings: Mapping[str, Any]) -> list[dict[int, Mix]]:
    changes = settings.get("row_changes") or [[] for _ in settings["rows"]]
    return [
        _settled({0: mix, **{change["index"]: change["mix"] for change in row}})
        for mix, row in zip(settings["rows"], changes, strict=True)
    ]


def _settled(mixes: Mapping[int, Mapping[str, Any]]) -> dict[int, Mix]:
    return {index: Mix.from_record(mix, settled=True) for index, mix in mixes.items()}
