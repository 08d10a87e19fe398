"""Replies that can be written again: what has to be known of one, and doing it.

1. `prepare` decides how a reply is written, and says so in a form that a transcript keeps.
2. `speak` writes it into a conversation, token by token, mix changes included.
3. `replay` writes a reply of a transcript again and compares the tokens.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import torch

from persona_tui.chat import Conversation, Run, fit_context
from persona_tui.core.errors import PersonaTuiError, SessionError
from persona_tui.core.mix import Mix
from persona_tui.core.workspace import TRAIT_PREFIX
from persona_tui.model import Message, Sampling
from persona_tui.monitors.events import breaches_of, breaching
from persona_tui.monitors.guard import verdict_of
from persona_tui.traits.live import LiveTraits
from persona_tui.vectors.files import same_model

if TYPE_CHECKING:
    import threading

    from persona_tui.model import TokenEvent
    from persona_tui.steering import SteeringEngine


@dataclass(frozen=True)
class Prepared:
    """A reply that is about to be written.

    Attributes:
        messages: what fits the model's context, without the system prompt.
        system: the system prompt, if any.
        sampling: with the seed that will be used.
        forgotten: how many of the oldest messages had to be left out.
        prompt_tokens: the length of the prompt.
        settings: all of that and the mix, as a transcript has it.
    """

    messages: list[Message]
    system: str | None
    sampling: Sampling
    forgotten: int
    prompt_tokens: int
    settings: dict[str, Any]


def prepare(
    engine: SteeringEngine, messages: Sequence[Message], system: str | None, sampling: Sampling
) -> Prepared:
    """Decide how a reply is written.

    Args:
        engine: writes it, with its present mix.
        messages: see `Conversation.prompt`.
        system: the system prompt, if any.
        sampling: as wanted. Without a seed, one is drawn.

    Returns:
        What to give `SteeringEngine.stream`, and the `settings` for `Conversation.begin_reply` or `settle`.
        For a reply that is one row of `SteeringEngine.compare`, add `rows`, the mixes of all rows as
        `SteeringEngine.describe` has them; `row_changes`, for each of them, where another mix took effect
        (`index` and `mix`), if that was the case in any; and `row`, which of them it is.
    """
    model, sampling = engine.model, sampling.with_seed()
    fitted = fit_context(
        messages, model.count_tokens, model.context_length, sampling.max_new_tokens, system or None
    )
    settings = {
        "model": model.name,
        "fingerprint": model.fingerprint,
        **circumstances(engine),
        "system": system or None,
        "sampling": asdict(sampling),
        "forgotten": fitted.forgotten,
        "prompt_tokens": fitted.prompt_tokens,
        "mix": engine.describe(engine.mix),
    }
    return Prepared(
        fitted.messages, system or None, sampling, fitted.forgotten, fitted.prompt_tokens, settings
    )


def circumstances(engine: SteeringEngine) -> dict[str, Any]:
    """What besides the model and the settings decides about the last digits, and so about close choices."""
    return {
        "device": engine.model.device.type,
        "dtype": str(engine.model.dtype).removeprefix("torch."),
        "quantization": engine.settings.model.quantization,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }


def speak(
    engine: SteeringEngine,
    conversation: Conversation,
    reply: int,
    sampling: Sampling,
    stop: threading.Event | None = None,
) -> Iterator[TokenEvent]:
    """Write a reply that was begun into its conversation, token by token.

    It ends there as it ends here: also when the reader gives up, or something goes wrong. A reply that was
    begun anew, and ended that way before its first word, is taken back.

    Raises:
        GenerationError: the conversation is too long, or memory ran out.
    """
    before = len(conversation.node(reply).text)
    finish, stats = "cancelled", _Stats()
    try:
        measure = _measured_by(engine, conversation, reply)
        prepared = prepare(engine, conversation.prompt(reply), conversation.system, sampling)
        conversation.settle(reply, prepared.settings)
        stats.prompt_tokens = prepared.prompt_tokens
        events = engine.stream(
            prepared.messages,
            system=prepared.system,
            sampling=prepared.sampling,
            stop=stop,
            on_mix=lambda index, mix: conversation.change_mix(mix, reply, index),
            guard=engine.guard,
        )
        for event in map(measure, events):
            if event.text or event.token_id >= 0:
                conversation.extend(reply, event.text, event.token_id)
            stats.take(event)
            finish = event.finish or finish
            yield event
    except PersonaTuiError:
        finish = "failed"
        raise
    finally:
        broken_off = finish in ("cancelled", "failed")
        if broken_off and not before and not conversation.node(reply).text.strip():
            conversation.drop(reply)
        else:
            conversation.finish(reply, finish, **stats.summary())


def _measured_by(
    engine: SteeringEngine, conversation: Conversation, reply: int
) -> Callable[[TokenEvent], TokenEvent]:
    """See `measured_by`."""
    *before, _ = conversation.lineage(reply)
    turn = 1 + sum(node.role == "assistant" for node in before)
    user = next((node.text for node in reversed(before) if node.role == "user"), "")
    return measured_by(engine, user, turn)


def measured_by(engine: SteeringEngine, user: str, turn: int) -> Callable[[TokenEvent], TokenEvent]:
    """What adds the breaches of the engine's policy to one reply's events; its traits are loaded for that.

    Args:
        engine: writes the reply.
        user: the message that is answered.
        turn: which reply of the conversation it is, from 1.

    Raises:
        PersonaNotFoundError: there is no such trait any more.
    """
    if engine.policy is None:
        return lambda event: event
    for name in engine.policy.traits:
        engine.personas.load(f"{TRAIT_PREFIX}{name}")
    live = LiveTraits(engine.policy, user, turn)

    def measure(event: TokenEvent) -> TokenEvent:
        found = [*live.feed(event), *(live.finish() if event.finish else [])]
        return breaching(event, found) if found else event

    return measure


class _Stats:
    """Counts while a reply is written."""

    def __init__(self) -> None:
        self.prompt_tokens = 0
        self._started = time.monotonic()
        self._tokens = 0
        self._capped = 0
        self._verdicts: dict[str, dict[str, Any]] = {}  # a guard's last one about the message, and the reply
        self._breaches: list[dict[str, Any]] = []

    def take(self, event: TokenEvent) -> None:
        if (verdict := verdict_of(event)) is not None:
            self._verdicts[verdict.about] = verdict.as_dict()
        self._breaches += [{**each.as_dict(), "badge": each.badge} for each in breaches_of(event)]
        if event.token_id >= 0:
            self._tokens += 1
            self._capped += event.capped > 0

    def summary(self) -> dict[str, Any]:
        seconds = time.monotonic() - self._started
        return {
            "tokens": self._tokens,
            "prompt_tokens": self.prompt_tokens,
            "seconds": round(seconds, 3),
            "tokens_per_second": round(self._tokens / seconds, 2) if seconds > 0 else 0.0,
            "capped_tokens": self._capped,
            **({"guard": self._verdicts} if self._verdicts else {}),
            **({"breaches": self._breaches} if self._breaches else {}),
        }


# Writing it again -------------------------------------------------------------------------------------------


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
        return list(floors[0]["layers"]) if floors else []

    @property
    def name(self) -> str:
        """What to call it in messages: `reply 4`, or `reply 4, continuation 1`."""
        return f"reply {self.node}" + (f", continuation {self.run}" if self.run else "")


@dataclass(frozen=True)
class Replayed:
    """What came of writing a run again.

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
    if not same_model(settings["fingerprint"], model.fingerprint):
        raise SessionError(
            f"{stretch.name} was written by {settings.get('model')} with the fingerprint "
            f"{settings['fingerprint'][:12]}; {model.name} here has {model.fingerprint[:12]}"
        )
    for mix in stretch.mixes:
        _check_vectors(engine, stretch, mix)


def _check_vectors(engine: SteeringEngine, stretch: Stretch, mix: Mapping[str, Any]) -> None:
    for name, digest in mix.get("vectors", {}).items():
        _check_file(engine, stretch, name, digest)
    if floor := mix.get("floor"):
        _check_file(engine, stretch, None, floor.get("file", ""))
    then = floor["layers"] if floor else []
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
    """What is not as it was when a run was written, and may be why it differs: `torch 2.6, now 2.7`."""
    here = circumstances(engine)
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
    """The token ids, as they come."""
    settings, system = stretch.settings, stretch.settings.get("system")
    try:
        sampling = Sampling(**settings["sampling"])
    except TypeError as error:
        raise SessionError(f"{stretch.name} was sampled in a way that is not known here") from error
    if settings.get("rows"):
        events = engine.repeat_rows(stretch.messages, _row_schedules(settings), sampling, system)
    else:
        events = engine.repeat(stretch.messages, _schedule(stretch), sampling, system)
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
