"""The slash commands of a chat, the same in the app and in the line mode.

1. `parse` finds the command that a line asks for; a line that is none is something to say to the model.
2. Its handler changes the session, or does what was asked for, and returns what to show.
3. `complete` offers whole lines that begin like the one being typed.

Handlers know a front end only as a `Session`. `ChatSession` is the line mode's; an app brings its own.
"""

from __future__ import annotations

import math
import re
import secrets
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, Self, TypeAlias

from persona_tui.chat import Conversation, SessionLog, SessionStore, branches, comparison, voice_of_record
from persona_tui.core.errors import PersonaTuiError, nearest
from persona_tui.core.jobs import JobContext, run_inline
from persona_tui.core.workspace import TRAIT_PREFIX
from persona_tui.project import about, models
from persona_tui.project.project import Created, FromDescription, Project

if TYPE_CHECKING:
    import threading

    from persona_tui.core.mix import Mix
    from persona_tui.model import Sampling, TokenEvent
    from persona_tui.project.dataset_task import DatasetTask
    from persona_tui.vectors.persona import PersonaVector

Work: TypeAlias = Callable[[JobContext], str]

OFF = ("off", "none", "no")
ON = ("on", "yes")


class CommandError(PersonaTuiError):
    """A slash command is unknown, or cannot be used like that."""


class Session(Protocol):
    """What a handler may use. Those that are about the conversation need a `branches.Talk`, too.

    Attributes:
        project: workspace, model and personas.
        system: the system prompt, if any.
        sampling_changes: fields of `Sampling` that differ from the settings.
        ended: set when somebody asks to leave.
    """

    project: Project
    system: str | None
    sampling_changes: dict[str, Any]
    ended: bool

    @property
    def mix(self) -> Mix:
        """What is spoken with."""
        ...

    def change_mix(self, **changes: Any) -> None:
        """Replace fields of the mix: from the next token on, if a reply is being written."""
        ...

    def run(self, name: str, work: Work) -> str:
        """Do long work, here or in the background, and return what to show at once."""
        ...

    def ask(self, question: str) -> str | None:
        """Put a question and return the answer; None if this front end cannot ask in between."""
        ...


@dataclass
class ChatSession:
    """A conversation and how it is spoken; a `Session` and `Talk` that does its work on the calling thread.

    Attributes:
        conversation: what was said, with its system prompt.
        saves: whether it is saved as a session: from the first message on.
        (For the others see `Session`.)
    """

    project: Project
    mix: Mix
    conversation: Conversation = field(default_factory=Conversation)
    sampling_changes: dict[str, Any] = field(default_factory=dict)
    ended: bool = False
    saves: bool = True
    _log: SessionLog | None = None
    _comparison: comparison.Comparison | None = None

    @classmethod
    def start(
        cls,
        project: Project,
        weights: Mapping[str, float] | None = None,
        strength: float | None = None,
        saves: bool = True,
    ) -> Self:
        """Begin with the settings' mix, or with some personas, which are loaded.

        Raises:
            PersonaNotFoundError: one of them does not exist.
        """
        mix = project.default_mix()
        for name in weights or {}:
            project.personas.load(name)
        chosen = mix.strength if strength is None else strength
        return cls(project, replace(mix, weights=weights or {}, strength=chosen), saves=saves)

    @property
    def system(self) -> str | None:
        """The system prompt, if any."""
        return self.conversation.system

    @system.setter
    def system(self, text: str | None) -> None:
        self.conversation.set_system(text)

    @property
    def messages(self) -> list[dict[str, str]]:
        """What was said, as the model is given it, without the system prompt."""
        return self.conversation.messages()

    def change_mix(self, **changes: Any) -> None:
        """Replace fields of the mix."""
        mix = replace(self.mix, **changes)
        engine = self.project.loaded_engine
        if engine is not None:
            engine.set_mix(mix)
        self.mix = mix
        if engine is not None and self._log is not None:
            self.conversation.change_mix(engine.describe(mix))

    def run(self, name: str, work: Work) -> str:
        """Do long work here and now."""
        return run_inline(work)

    def ask(self, question: str) -> str | None:
        """There is nobody to ask."""
        return None

    @property
    def label(self) -> str:
        """Who speaks and how loud, in a few characters; "" = nobody in particular."""
        return voice_of(self.mix)

    # Replies ------------------------------------------------------------------------------------------------

    def take_turn(self, text: str, stop: threading.Event | None = None) -> Generator[TokenEvent, None, None]:
        """Say something to the model; its reply, token by token.

        Both are in `conversation` afterwards, also when the reply was stopped or the reader gave up. A turn
        that fails before the first word leaves no trace there.
        """
        self._save()
        said = self.conversation.add_user(text)
        try:
            yield from self.reply(self.conversation.begin_reply(), stop)
        finally:
            if not self.conversation.answered(said):
                self.conversation.drop(said)

    def reply(self, reply: int, stop: threading.Event | None = None) -> Generator[TokenEvent, None, None]:
        """A reply that was begun, token by token."""
        from persona_tui.chat.replies import speak

        try:
            engine, sampling = self.project.engine, sampling_of(self)
            engine.set_mix(self.mix)
        except PersonaTuiError:
            self.conversation.drop(reply)
            raise
        yield from speak(engine, self.conversation, reply, sampling, stop)

    def write(self, reply: int) -> str:
        """Write a reply that was begun, and show it."""
        return "".join(event.text for event in self.reply(reply)).strip()

    def compare(self, mixes: Sequence[Mix], question: str | None) -> str:
        """Answer a question (None = the last one) with several mixes, and show the answers."""
        self._save()
        engine = self.project.engine
        engine.set_mix(self.mix)
        self._comparison = comparison.Comparison(self.conversation, mixes, question)
        for _ in self._comparison.speak(engine, sampling_of(self), guard=engine.guard):
            pass
        return comparison.answers_in_words(self._comparison)

    def keep(self, row: int) -> str:
        """Put one of the answers that were compared last into the conversation, the other one beside it."""
        if self._comparison is None:
            raise CommandError("nothing was compared yet: /compare does that")
        self._comparison.keep(row)
        self._comparison = None
        return f"Kept {comparison.LETTERS[row]}."

    # Models -------------------------------------------------------------------------------------------------

    def use_model(self, choice: models.ModelChoice) -> str:
        """Load another model and talk to that. If it cannot be loaded, the one in use stays."""
        other = models.with_model(self.project, choice)

        def work(context: JobContext) -> str:
            models.load(other, context)
            return ""

        self.run(f"load {choice.name}", work)
        watched = models.keep_watch(self.project, other)
        self.project = other
        models.RecentModels(other.workspace).add(choice)
        there = other.personas.list_available()
        self.change_mix(weights={name: by for name, by in self.mix.weights.items() if name in there})
        return " ".join([f"Now talking to {choice.name}. Personas: {', '.join(there) or 'none'}.", *watched])

    # Sessions -----------------------------------------------------------------------------------------------

    @property
    def session_id(self) -> str | None:
        """What the conversation is saved as; None while nothing was said."""
        return self._log.id if self._log is not None else None

    def _save(self) -> None:
        """Begin to save the conversation, if that is wanted and not the case yet; loads the model."""
        engine = self.project.engine
        if not self.saves or self._log is not None:
            return
        log = SessionStore(self.project.workspace).create(engine.model.name, engine.model.fingerprint)
        if self.system:
            log.record("system", text=self.system)
        self._log, self.conversation.record = log, log.record

    def resume(self, id: str | None) -> str:
        """Go on with another session, as it was left: its mix, too. None = with a new one.

        Raises:
            SessionError: there is no such session, it is damaged, or open elsewhere.
        """
        if id is None:
            self.close()
            self.conversation = Conversation(system=self.system)
            return "A new conversation."
        if id == self.session_id:
            return "This is it."
        conversation, events = SessionStore(self.project.workspace).load(id)
        log = SessionStore(self.project.workspace).open(id) if self.saves else None
        self.close()
        self._log, self.conversation = log, conversation
        conversation.record = log.record if log is not None else None
        missing = self._restore_mix(conversation.mix)
        lines = [
            f"{SessionStore(self.project.workspace).info(id).title}: {len(conversation.path())} messages."
        ]
        if missing:
            lines.append(f"It was spoken as {voice_of_record(conversation.mix)}; gone: {', '.join(missing)}.")
        if (model := events[0].fields.get("model")) != self.project.settings.model.name:
            lines.append(f"It was begun with {model}; this is {self.project.settings.model.name}.")
        return "\n".join(lines)

    def _restore_mix(self, recorded: dict[str, Any] | None) -> list[str]:
        """Speak as in a session that is resumed; which of its personas are gone."""
        from persona_tui.core.mix import Mix

        if recorded is None:
            return []
        personas = self.project.personas
        mix, there = Mix.from_record(recorded), [*personas.list_available(), *personas.list_traits()]
        weights = {name: weight for name, weight in mix.weights.items() if name in there}
        for name in weights:
            personas.load(name)
        self.change_mix(**{each.name: getattr(mix, each.name) for each in fields(mix)} | {"weights": weights})
        return [name for name in mix.weights if name not in there]

    def close(self) -> None:
        """Write down what still waits, and let others open the session."""
        if self._log is not None:
            self._log.close()
            self._log, self.conversation.record = None, None


def voice_of(mix: Mix) -> str:
    """Who speaks and how loud, in a few characters; "" = nobody in particular."""
    return f"{mix.label} {mix.strength:.2f}" if mix.label else ""


def sampling_of(session: Session) -> Sampling:
    """How a session's replies are sampled.

    Raises:
        GenerationError: a value out of range.
    """
    from persona_tui.model import Sampling

    settings = session.project.settings.generation
    chosen = Sampling(settings.max_new_tokens, settings.temperature, settings.top_p, settings.seed)
    return replace(chosen, **session.sampling_changes)


@dataclass(frozen=True)
class Command:
    """A slash command.

    Attributes:
        name: without the slash.
        usage: how it is typed.
        help: what it does, in one line.
        handler: does it; given the session and the text after the name, returns what to show.
        words: given the session, what may follow the name, for completion.
    """

    name: str
    usage: str
    help: str
    handler: Callable[[Session, str], str]
    words: Callable[[Session], Iterable[str]] = lambda session: ()


def is_command(line: str) -> bool:
    """Whether a line asks for a command. Two slashes begin a message that begins with one."""
    return line.startswith("/") and not line.startswith("//")


def message_of(line: str) -> str:
    """The message that a line which is no command stands for."""
    return line[1:] if line.startswith("//") else line


def parse(line: str, commands: Mapping[str, Command] | None = None) -> tuple[Command, str]:
    """The command that a line asks for, and what follows its name.

    Args:
        line: beginning with a slash.
        commands: by name; by default `COMMANDS`. A front end may have more.

    Raises:
        CommandError: there is no such command; offers the nearest.
    """
    name, _, rest = line.strip().removeprefix("/").partition(" ")
    known = COMMANDS if commands is None else commands
    if name.casefold() not in known:
        hint = nearest(f"/{name}", [f"/{each}" for each in known]) or " /help lists them."
        raise CommandError(f"there is no command /{name}.{hint}")
    return known[name.casefold()], rest.strip()


def execute(session: Session, line: str, commands: Mapping[str, Command] | None = None) -> str:
    """Do what a line asks for; what to show.

    Raises:
        PersonaTuiError: one line that says why not.
    """
    command, rest = parse(line, commands)
    return command.handler(session, rest)


def complete(session: Session, line: str, commands: Mapping[str, Command] | None = None) -> list[str]:
    """Whole lines that a line may become."""
    if not is_command(line):
        return []
    known = COMMANDS if commands is None else commands
    name, space, rest = line[1:].partition(" ")
    if not space:
        return [f"/{each}" for each in known if each.startswith(name.casefold())]
    command = known.get(name.casefold())
    words = command.words(session) if command is not None else ()
    # Of several names, the last one is being typed.
    before, comma, last = rest.rpartition(",")
    return [f"/{name} {before}{comma}{word}" for word in words if word.startswith(last) and word != last]


# Who speaks -------------------------------------------------------------------------------------------------


def _persona(session: Session, name: str) -> str:
    if not name:
        return _speaking(session) if session.mix.label else "No persona. /persona NAME chooses one."
    if name.casefold() in OFF:
        return _none(session, "")
    _loads(session, name)
    session.change_mix(weights={name: 1.0})
    return f"{_speaking(session)}{_weakness(session, name)}"


def _speaking(session: Session) -> str:
    return f"Speaking as {voice_of(session.mix)}."


def _weakness(session: Session, name: str) -> str:
    """What extraction found wanting, so that nobody wonders why a persona is hardly heard."""
    reason = session.project.personas.get(name).metadata.get("weak_reason")
    return f" This is a weak persona: {reason}." if reason else ""


def _none(session: Session, rest: str) -> str:
    session.change_mix(weights={})
    return "No persona."


def _strength(session: Session, rest: str) -> str:
    if rest:
        session.change_mix(strength=_number(rest, "strength"))
    return f"Strength {session.mix.strength:.2f}."


def _blend(session: Session, rest: str) -> str:
    from persona_tui.core.mix import parse_blend

    if not rest:
        return _speaking(session) if session.mix.label else "No persona. /blend sage:0.5,trickster:0.3"
    weights = parse_blend(rest)
    for name in weights:
        session.project.personas.get(name)
    for name in weights:
        _loads(session, name)
    session.change_mix(weights=weights)
    return _speaking(session)


def _safety(session: Session, rest: str) -> str:
    if rest:
        session.change_mix(capping=_switch(rest, "/safety on|off"))
    return f"Capping is {'on' if session.mix.capping else 'off'}."


def _guard(session: Session, rest: str) -> str:
    guard = session.project.guard
    if rest:
        guard.set_mode(rest)
        branches.record(session, "guard", mode=guard.mode)
    return f"The guard is {guard.mode}: {_GUARDING[guard.mode]}."


def _policy(session: Session, rest: str) -> str:
    from persona_tui.traits.policy import Policy

    engine, personas = session.project.engine, session.project.personas
    if rest.casefold() in OFF:
        engine.policy = None
    elif rest:
        known = [name.removeprefix(TRAIT_PREFIX) for name in personas.list_traits()]
        policy = Policy.read(_rules_or_file(session, rest))
        policy.check_known(known)
        for name in policy.traits:
            personas.load(f"{TRAIT_PREFIX}{name}")
        engine.policy = policy
    if rest:
        branches.record(session, "policy", name=engine.policy.name if engine.policy is not None else None)
    if engine.policy is None:
        return "No policy. /policy FILE, or rules: /policy harmful_validation>0.5"
    each = " (here every reply by itself)" if engine.policy.applies_to == "conversation" else ""
    return f"Policy {engine.policy.name}: replies are measured by {', '.join(engine.policy.traits)}{each}."


def _rules_or_file(session: Session, rest: str) -> list[str]:
    """What `/policy` was given: rules, a file, or the name of one of the workspace's policies."""
    if not Path(rest).expanduser().is_file() and any(sign in rest for sign in "<>"):
        return re.split(r"[\s,]+(?=\w+\s*[<>])", rest)
    own = _policies(session) / f"{rest}.yaml"
    return [str(own if own.is_file() else Path(rest).expanduser())]


def _policies(session: Session) -> Path:
    return session.project.workspace.datasets / "traits" / "policies"


_GUARDING = {
    "off": "nothing is judged",
    "warn": "messages and replies get a badge",
    "refuse": "dangerous messages are not answered, dangerous replies are stopped",
}


def _floor(session: Session, rest: str) -> str:
    if rest:
        value = None if rest.casefold() in ("auto", *OFF) else _number(rest.rstrip("%"), "the percentile")
        session.change_mix(percentile=value)
    percentile = session.mix.percentile
    if percentile is None:
        percentile = session.project.settings.steering.safety_floor_percentile
    return f"The floor lies at percentile {percentile:g} of ordinary replies."


def _axis(session: Session, rest: str) -> str:
    if rest:
        session.change_mix(capping_axis=None if rest.casefold() in ("auto", *OFF) else rest.casefold())
    axis = session.mix.capping_axis
    return f"The floor is on the {axis} axis." if axis else "The floor is on the axis that the settings say."


def _layers(session: Session, rest: str) -> str:
    from persona_tui.core.mix import parse_layers

    if rest:
        session.change_mix(layers=parse_layers(rest))
    layers = session.mix.layers
    if layers is None:
        return "Personas are added where calibration found it best."
    return f"Personas are added at layer {', '.join(map(str, layers))}."


# Personas ---------------------------------------------------------------------------------------------------


def _list(session: Session, rest: str) -> str:
    personas = session.project.personas
    available, loaded = personas.list_available(), set(personas.list_loaded())
    if not available:
        return "There are no personas yet. /create NAME DESCRIPTION makes one."
    speaking = {name for name, weight in session.mix.weights.items() if weight}
    return "\n".join(
        f"{'>' if name in speaking else ' '} {name}{' (loaded)' if name in loaded else ''}"
        for name in available
    )


def _info(session: Session, name: str) -> str:
    return about.in_words(about.about(session.project, _needed(name, "/info NAME")))


def _init(session: Session, rest: str) -> str:
    project = session.project
    return session.run("init", lambda context: about.prepared_in_words(project, project.init(context)))


def _load(session: Session, name: str) -> str:
    _loads(session, _needed(name, "/load NAME"))
    return f"Loaded {name}."


def _loads(session: Session, name: str) -> None:
    before = session.project.personas.list_loaded()
    session.project.personas.load(name)
    if name not in before:
        branches.record(session, "persona", action="loaded", name=name)


def _unload(session: Session, name: str) -> str:
    if not session.project.personas.unload(_needed(name, "/unload NAME")):
        raise CommandError(f'"{name}" is not loaded.{nearest(name, session.project.personas.list_loaded())}')
    branches.record(session, "persona", action="unloaded", name=name)
    _stop_speaking_as(session, name)
    return f"Unloaded {name}."


def _create(session: Session, rest: str) -> str:
    name, _, description = rest.partition(" ")
    _needed(name, "/create NAME DESCRIPTION")
    if not description.strip():
        description = session.ask(f"Who is {name}? ") or ""
    source = FromDescription(_needed(description.strip(), "/create NAME DESCRIPTION"))
    session.project.check_new_name(name, source)
    return session.run(
        f"create {name}",
        lambda context: describe_created(session.project.create_persona(name, source, context)),
    )


def describe_created(made: Created) -> str:
    """What to say about a new persona."""
    lines = [f"Created {made.persona.name}."]
    if made.prompts is not None and made.prompts.fallback:
        lines.append("The model wrote too few usable system prompts; the description itself served instead.")
    return "\n".join([*lines, *_loudness(made.persona)])


def _loudness(persona: PersonaVector) -> list[str]:
    """What calibration has found."""
    lines, calibration = [], persona.calibration
    if calibration is not None:
        loud, share = calibration.default_strength, calibration.expression
        lines.append(f"At strength {loud:g} it has {share:.0%} of the effect of its system prompts.")
        if calibration.floor_leaves is not None:
            left, axis = calibration.floor_leaves, calibration.floor
            lines.append(f"The floor ({axis} axis) leaves {left:.0%} of what it expresses without one.")
    elif "loudness" in persona.metadata:
        lines.append(about.loudness_in_words(persona))
    else:
        lines.append(f"It is not calibrated: a usual loudness is assumed until /calibrate {persona.name}.")
    if reason := persona.metadata.get("weak_reason"):
        lines.append(f"This is a weak persona: {reason}.")
    return lines


def _calibrate(session: Session, rest: str) -> str:
    name = _needed(rest, "/calibrate NAME")
    check_calibratable(session.project, name)
    return session.run(
        f"calibrate {name}", lambda context: describe_calibrated(session.project.calibrate(name, context))
    )


def check_calibratable(project: Project, name: str) -> None:
    """Make sure that something can be calibrated.

    Raises:
        PersonaTuiError: there is nothing of this name.
    """
    project.personas.get(name)


def describe_calibrated(persona: PersonaVector) -> str:
    """What to say about a persona that was calibrated anew."""
    return "\n".join([f"Calibrated {persona.name}.", *_loudness(persona)])


def _dataset(session: Session, rest: str) -> str:
    from persona_tui.project.dataset_task import write

    task, seed = dataset_task(session.project, rest)
    saved: list[str] = []

    def work(context: JobContext) -> str:
        written = write(task, session.project, seed, lambda run: run(context), log=context.log)
        saved.extend([written.summary, *written.notes])
        return "\n".join(saved)

    return session.run(f"write {task.kind}", work)


def dataset_task(project: Project, rest: str) -> tuple[DatasetTask, int]:
    """What `/dataset` is asked to write, and with which seed: as chats are seeded, else a new one.

    Raises:
        PersonaTuiError: it cannot be used like that.
    """
    from persona_tui.project.dataset_task import ARCHETYPE, DatasetTask

    kind, _, more = _needed(rest, _DATASET_USAGE).partition(" ")
    seed = project.settings.generation.seed
    seed = secrets.randbelow(2**31) if seed is None else seed
    if kind.casefold() == ARCHETYPE:
        name, _, description = more.strip().partition(" ")
        return DatasetTask(ARCHETYPE, name, description.strip()), seed
    count = _whole(more.strip(), "how many") if more.strip() else None
    return DatasetTask(kind.casefold(), wanted=count), seed


_DATASET_USAGE = "/dataset safe|unsafe|questions [HOW MANY], or /dataset archetype NAME DESCRIPTION"


def _delete(session: Session, rest: str) -> str:
    name, _, confirmed = _needed(rest, "/delete NAME").partition(" ")
    session.project.personas.get(name)
    question = f"Delete {name} from the disk? [y/N] "
    if confirmed.strip() != "--yes":
        answer = session.ask(question)
        if answer is None:
            raise CommandError(f"this deletes a file: /delete {name} --yes")
        if answer.strip().casefold() not in ("y", "yes"):
            return f"Kept {name}."
    _stop_speaking_as(session, name)
    session.project.personas.delete(name)
    branches.record(session, "persona", action="deleted", name=name)
    return f"Deleted {name}."


def _stop_speaking_as(session: Session, name: str) -> None:
    if name in session.mix.weights:
        session.change_mix(weights={other: by for other, by in session.mix.weights.items() if other != name})


# How it speaks ----------------------------------------------------------------------------------------------


def _system(session: Session, rest: str) -> str:
    if rest:
        session.system = None if rest.casefold() in OFF else rest
    return f"System prompt: {session.system}" if session.system else "No system prompt."


def _temperature(session: Session, rest: str) -> str:
    if rest:
        _change_sampling(session, temperature=_number(rest, "temperature"))
    return f"Temperature {sampling_of(session).temperature:g}."


def _top_p(session: Session, rest: str) -> str:
    if rest:
        _change_sampling(session, top_p=_number(rest, "top-p"))
    return f"Top-p {sampling_of(session).top_p:g}."


def _max_tokens(session: Session, rest: str) -> str:
    if rest:
        _change_sampling(session, max_new_tokens=_whole(rest, "max-tokens"))
    return f"Replies of up to {sampling_of(session).max_new_tokens} tokens."


def _seed(session: Session, rest: str) -> str:
    if rest:
        _change_sampling(session, seed=None if rest.casefold() in OFF else _whole(rest, "seed"))
    seed = sampling_of(session).seed
    return (
        "No seed: another reply every time." if seed is None else f"Seed {seed}: the same reply every time."
    )


def _change_sampling(session: Session, **changes: Any) -> None:
    before = session.sampling_changes
    session.sampling_changes = {**before, **changes}
    try:
        sampling_of(session)  # checks the value
    except PersonaTuiError:
        session.sampling_changes = before
        raise
    # Every reply has its own sampling in the transcript; this says where it was changed.
    branches.record(session, "sampling", **changes)


def _help(session: Session, rest: str) -> str:
    if rest:
        command, _ = parse(rest)
        return f"{command.usage}  {command.help}"
    width = max(len(command.usage) for command in COMMANDS.values())
    return "\n".join(f"{command.usage:<{width}}  {command.help}" for command in COMMANDS.values())


def _quit(session: Session, rest: str) -> str:
    session.ended = True
    return ""


# Reading arguments ------------------------------------------------------------------------------------------


def _needed(text: str, usage: str) -> str:
    if not text:
        raise CommandError(f"something is missing: {usage}")
    return text


def _number(text: str, what: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise CommandError(f'{what} must be a number, not "{text}"')
    return value


def _whole(text: str, what: str) -> int:
    if not text.isdecimal():
        raise CommandError(f'{what} must be a whole number, 0 or more, or off; not "{text}"')
    return int(text)


def _switch(text: str, usage: str) -> bool:
    if text.casefold() not in (*ON, *OFF):
        raise CommandError(f'on or off, not "{text}": {usage}')
    return text.casefold() in ON


def _available(session: Session) -> list[str]:
    return session.project.personas.list_available()


def there(session: Session) -> list[str]:
    """Everybody that can be spoken as: personas, then traits."""
    return [*session.project.personas.list_available(), *session.project.personas.list_traits()]


def _letters(_: Session) -> Sequence[str]:
    return comparison.LETTERS


def _loaded(session: Session) -> list[str]:
    return session.project.personas.list_loaded()


COMMANDS: dict[str, Command] = {
    command.name: command
    for command in (
        Command("persona", "/persona NAME", "speak as a persona, and load it if need be", _persona, there),
        Command(
            "strength",
            "/strength NUMBER",
            "how loud: 0 = unsteered, 0.3 = clear, 1 = too much",
            _strength,
            lambda _: ("0", "0.15", "0.3", "0.5"),
        ),
        Command("blend", "/blend A:0.5,B:0.3", "speak as several personas", _blend, there),
        Command("none", "/none", "speak as nobody in particular", _none),
        Command(
            "safety",
            "/safety on|off",
            "capping: keep activations above the floor",
            _safety,
            lambda _: ("on", "off"),
        ),
        Command(
            "guard",
            "/guard off|warn|refuse",
            "judge messages and replies by their activations",
            _guard,
            lambda _: ("off", "warn", "refuse"),
        ),
        Command(
            "policy",
            "/policy FILE|RULE|off",
            "limits for scores of traits; breaches get a badge",
            _policy,
            lambda session: ("off", *sorted(path.stem for path in _policies(session).glob("*.yaml"))),
        ),
        Command(
            "floor",
            "/floor PERCENT|auto",
            "where the floor lies, as a percentile",
            _floor,
            lambda _: ("1", "25", "50", "auto"),
        ),
        Command(
            "axis",
            "/axis NAME|auto",
            "what the floor is on: assistant or safety",
            _axis,
            lambda _: ("assistant", "safety", "auto"),
        ),
        Command("layers", "/layers 3-5|auto", "where personas are added", _layers, lambda _: ("auto",)),
        Command("list", "/list", "the personas: > speaks", _list),
        Command("info", "/info NAME", "what is known of a persona", _info, _available),
        Command("init", "/init", "prepare this model: axes and personas", _init),
        Command("load", "/load NAME", "load a persona: its trace is shown, too", _load, there),
        Command("unload", "/unload NAME", "forget a loaded persona; its file stays", _unload, _loaded),
        Command("create", "/create NAME DESCRIPTION", "make a persona; takes a while", _create),
        Command(
            "calibrate",
            "/calibrate NAME",
            "find a persona's loudness anew; takes a while",
            _calibrate,
            _available,
        ),
        Command(
            "dataset",
            "/dataset KIND [N]",
            "have prompts written: safe, unsafe, questions",
            _dataset,
            lambda _: ("safe", "unsafe", "questions", "archetype"),
        ),
        Command("delete", "/delete NAME", "delete a persona's file", _delete, _available),
        Command(
            "system", "/system TEXT|off", "a system prompt for this conversation", _system, lambda _: ("off",)
        ),
        Command("seed", "/seed NUMBER|off", "the same reply every time, or not", _seed, lambda _: ("off",)),
        Command(
            "temperature",
            "/temperature NUMBER",
            "0 = the likeliest word, 1 = as the model has it",
            _temperature,
            lambda _: ("0", "0.7", "1"),
        ),
        Command(
            "top-p",
            "/top-p NUMBER",
            "choose among the likeliest words; 1 = among all",
            _top_p,
            lambda _: ("0.9", "0.95", "1"),
        ),
        Command(
            "max-tokens",
            "/max-tokens NUMBER",
            "the longest reply",
            _max_tokens,
            lambda _: ("64", "256", "1024"),
        ),
        Command("regenerate", "/regenerate [#N]", "write a reply anew; both are kept", branches.regenerate),
        Command("continue", "/continue", "go on with the last reply", branches.continue_reply),
        Command("edit", "/edit [#N] TEXT", "say something else instead; both are kept", branches.edit),
        Command(
            "branch",
            "/branch [#N] [next|prev]",
            "the messages and their branches; walk",
            branches.branch,
            lambda _: ("next", "prev"),
        ),
        Command("sessions", "/sessions [TEXT]", "saved conversations; where TEXT occurs", branches.sessions),
        Command(
            "resume",
            "/resume ID",
            "go on with a saved conversation",
            branches.resume,
            branches.session_ids,
        ),
        Command("new", "/new", "begin another conversation", branches.new),
        Command("rename", "/rename TITLE", "give the conversation a title", branches.rename),
        Command("export", "/export [FILE]", "write the conversation: .md or .json", branches.export),
        Command(
            "compare",
            "/compare [A vs B] [TEXT]",
            "side by side; A is such as persona=sage,strength=0.3",
            comparison.compare_command,
        ),
        Command("keep", "/keep A|B", "keep an answer that was compared", comparison.keep_command, _letters),
        Command("model", "/model [NAME]", "talk to another model", models.model_command, models.known_names),
        Command("help", "/help [COMMAND]", "this list", _help, lambda _: COMMANDS),
        Command("quit", "/quit", "leave", _quit),
    )
}
