"""The slash commands of a chat, the same in the app and in the line mode.

1. `parse` finds the command that a line asks for; a line that is none is something to say to the model.
2. Its handler changes the session, or does what was asked for, and returns what to show.
3. `complete` offers whole lines that begin like the one being typed.

What depends on the front end, asking a question or running long work, is a hook of the session.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, TypeAlias

from persona_tui.errors import PersonaTuiError, nearest
from persona_tui.jobs import JobContext, run_inline
from persona_tui.runtime import Created, FromDescription, Runtime

if TYPE_CHECKING:
    import threading

    from persona_tui.model import Sampling, TokenEvent
    from persona_tui.steering.mix import Mix

Work: TypeAlias = Callable[[JobContext], str]

OFF = ("off", "none", "no")
ON = ("on", "yes")


class CommandError(PersonaTuiError):
    """A slash command is unknown, or cannot be used like that."""


def run_at_once(name: str, work: Work) -> str:
    """Do long work here and now. A front end with a worker queues it instead."""
    return run_inline(work)


@dataclass
class ChatSession:
    """A conversation and how it is spoken.

    Attributes:
        runtime: workspace, model and personas.
        mix: what is spoken with; change it with `change_mix`.
        system: the system prompt, if any.
        messages: what was said, without the system prompt.
        sampling_changes: fields of `Sampling` that differ from the settings.
        run: does long work under a name, and returns what to show at once.
        ask: puts a question and returns the answer; None = this front end cannot ask.
        ended: whether somebody asked to leave.
    """

    runtime: Runtime
    mix: Mix
    system: str | None = None
    messages: list[dict[str, str]] = field(default_factory=list)
    sampling_changes: dict[str, Any] = field(default_factory=dict)
    run: Callable[[str, Work], str] = run_at_once
    ask: Callable[[str], str] | None = None
    ended: bool = False

    @classmethod
    def start(
        cls, runtime: Runtime, weights: dict[str, float] | None = None, strength: float | None = None
    ) -> ChatSession:
        """Begin with the settings' mix, or with some personas, which are loaded.

        Raises:
            PersonaNotFoundError: one of them does not exist.
        """
        session = cls(runtime, runtime.default_mix())
        for name in weights or {}:
            runtime.personas.load(name)
        session.change_mix(
            weights=weights or {}, strength=session.mix.strength if strength is None else strength
        )
        return session

    def change_mix(self, **changes: Any) -> None:
        """Speak otherwise: from the next token on, if a reply is being written."""
        mix = replace(self.mix, **changes)
        engine = self.runtime.loaded_engine
        if engine is not None:
            engine.set_mix(mix)
        self.mix = mix

    @property
    def sampling(self) -> Sampling:
        """How replies are sampled."""
        from persona_tui.model import Sampling

        settings = self.runtime.settings.generation
        chosen = Sampling(settings.max_new_tokens, settings.temperature, settings.top_p, settings.seed)
        return replace(chosen, **self.sampling_changes)

    @property
    def label(self) -> str:
        """Who speaks and how loud, in a few characters; "" = nobody in particular."""
        return f"{self.mix.label} {self.mix.strength:.2f}" if self.mix.label else ""

    def take_turn(self, text: str, stop: threading.Event | None = None) -> Iterator[TokenEvent]:
        """Say something to the model; its reply, token by token.

        Both are in `messages` afterwards, also when the reply was stopped or the reader gave up. A turn that
        fails before the first word leaves no trace.
        """
        engine = self.runtime.engine
        engine.set_mix(self.mix)
        conversation = [*self.messages, {"role": "user", "content": text}]
        said: list[str] = []
        try:
            for event in engine.stream(conversation, system=self.system, sampling=self.sampling, stop=stop):
                said.append(event.text)
                yield event
        finally:
            if reply := "".join(said).strip():
                self.messages = [*conversation, {"role": "assistant", "content": reply}]


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
    handler: Callable[[ChatSession, str], str]
    words: Callable[[ChatSession], Iterable[str]] = lambda session: ()


def is_command(line: str) -> bool:
    """Whether a line asks for a command. Two slashes begin a message that begins with one."""
    return line.startswith("/") and not line.startswith("//")


def message_of(line: str) -> str:
    """The message that a line which is no command stands for."""
    return line[1:] if line.startswith("//") else line


def parse(line: str) -> tuple[Command, str]:
    """The command that a line asks for, and what follows its name.

    Raises:
        CommandError: there is no such command; offers the nearest.
    """
    name, _, rest = line.strip().removeprefix("/").partition(" ")
    if name.casefold() not in COMMANDS:
        hint = nearest(f"/{name}", [f"/{known}" for known in COMMANDS]) or " /help lists them."
        raise CommandError(f"there is no command /{name}.{hint}")
    return COMMANDS[name.casefold()], rest.strip()


def execute(session: ChatSession, line: str) -> str:
    """Do what a line asks for; what to show.

    Raises:
        PersonaTuiError: one line that says why not.
    """
    command, rest = parse(line)
    return command.handler(session, rest)


def complete(session: ChatSession, line: str) -> list[str]:
    """Whole lines that a line may become."""
    if not is_command(line):
        return []
    name, space, rest = line[1:].partition(" ")
    if not space:
        return [f"/{known}" for known in COMMANDS if known.startswith(name.casefold())]
    command = COMMANDS.get(name.casefold())
    words = command.words(session) if command is not None else ()
    # In a blend, the last of several names is being typed.
    before, comma, last = (
        rest.rpartition(",") if command is not None and command.name == "blend" else ("", "", rest)
    )
    return [f"/{name} {before}{comma}{word}" for word in words if word.startswith(last) and word != last]


# Who speaks -------------------------------------------------------------------------------------------------


def _persona(session: ChatSession, name: str) -> str:
    if not name:
        return f"Speaking as {session.label}." if session.label else "No persona. /persona NAME chooses one."
    if name.casefold() in OFF:
        return _none(session, "")
    session.runtime.personas.load(name)
    session.change_mix(weights={name: 1.0})
    return f"Speaking as {session.label}.{_weakness(session, name)}"


def _weakness(session: ChatSession, name: str) -> str:
    """What extraction found wanting, so that nobody wonders why a persona is hardly heard."""
    reason = session.runtime.personas.get(name).metadata.get("weak_reason")
    return f" This is a weak persona: {reason}." if reason else ""


def _none(session: ChatSession, rest: str) -> str:
    session.change_mix(weights={})
    return "No persona."


def _strength(session: ChatSession, rest: str) -> str:
    if rest:
        session.change_mix(strength=_number(rest, "strength"))
    return f"Strength {session.mix.strength:.2f}."


def _blend(session: ChatSession, rest: str) -> str:
    from persona_tui.steering.mix import parse_blend

    if not rest:
        return (
            f"Blend {session.mix.label}."
            if session.mix.label
            else "No persona. /blend sage:0.5,trickster:0.3"
        )
    weights = parse_blend(rest)
    for name in weights:
        session.runtime.personas.get(name)
    for name in weights:
        session.runtime.personas.load(name)
    session.change_mix(weights=weights)
    return f"Speaking as {session.label}."


def _safety(session: ChatSession, rest: str) -> str:
    if rest:
        session.change_mix(capping=_switch(rest, "/safety on|off"))
    return f"Capping is {'on' if session.mix.capping else 'off'}."


# Personas ---------------------------------------------------------------------------------------------------


def _list(session: ChatSession, rest: str) -> str:
    personas = session.runtime.personas
    available, loaded = personas.list_available(), set(personas.list_loaded())
    if not available:
        return "There are no personas yet. /create NAME DESCRIPTION makes one."
    speaking = {name for name, weight in session.mix.weights.items() if weight}
    return "\n".join(
        f"{'>' if name in speaking else ' '} {name}{' (loaded)' if name in loaded else ''}"
        for name in available
    )


def _load(session: ChatSession, name: str) -> str:
    session.runtime.personas.load(_needed(name, "/load NAME"))
    return f"Loaded {name}."


def _unload(session: ChatSession, name: str) -> str:
    if not session.runtime.personas.unload(_needed(name, "/unload NAME")):
        raise CommandError(f'"{name}" is not loaded.{nearest(name, session.runtime.personas.list_loaded())}')
    _stop_speaking_as(session, name)
    return f"Unloaded {name}."


def _create(session: ChatSession, rest: str) -> str:
    name, _, description = rest.partition(" ")
    _needed(name, "/create NAME DESCRIPTION")
    if not description.strip() and session.ask is not None:
        description = session.ask(f"Who is {name}? ")
    source = FromDescription(_needed(description.strip(), "/create NAME DESCRIPTION"))
    session.runtime.check_new_name(name, source)
    return session.run(
        f"create {name}", lambda context: _created(session.runtime.create_persona(name, source, context))
    )


def _created(made: Created) -> str:
    """What to say about a new persona."""
    name, calibration = made.persona.name, made.persona.calibration
    lines = [f"Created {name}. /persona {name} speaks as it."]
    if made.prompts is not None and made.prompts.fallback:
        lines.append("The model wrote no usable system prompts; they were made from the description alone.")
    if calibration is not None:
        lines.append(
            f"Strength {calibration.default_strength:g} gives {calibration.expression:.0%} of its prompts' effect."
        )
    if reason := made.persona.metadata.get("weak_reason"):
        lines.append(f"This is a weak persona: {reason}.")
    return "\n".join(lines)


def _delete(session: ChatSession, rest: str) -> str:
    name, _, confirmed = _needed(rest, "/delete NAME").partition(" ")
    session.runtime.personas.get(name)
    question = f"Delete {name} from the disk? [y/N] "
    if confirmed.strip() != "--yes":
        if session.ask is None:
            raise CommandError(f"this deletes a file: /delete {name} --yes")
        if session.ask(question).strip().casefold() not in ("y", "yes"):
            return f"Kept {name}."
    _stop_speaking_as(session, name)
    session.runtime.personas.delete(name)
    return f"Deleted {name}."


def _stop_speaking_as(session: ChatSession, name: str) -> None:
    if name in session.mix.weights:
        session.change_mix(weights={other: by for other, by in session.mix.weights.items() if other != name})


# How it speaks ----------------------------------------------------------------------------------------------


def _system(session: ChatSession, rest: str) -> str:
    if rest:
        session.system = None if rest.casefold() in OFF else rest
    return f"System prompt: {session.system}" if session.system else "No system prompt."


def _temperature(session: ChatSession, rest: str) -> str:
    if rest:
        _change_sampling(session, temperature=_number(rest, "temperature"))
    return f"Temperature {session.sampling.temperature:g}."


def _seed(session: ChatSession, rest: str) -> str:
    if rest:
        _change_sampling(session, seed=None if rest.casefold() in OFF else _whole(rest, "seed"))
    seed = session.sampling.seed
    return (
        "No seed: another reply every time." if seed is None else f"Seed {seed}: the same reply every time."
    )


def _change_sampling(session: ChatSession, **changes: Any) -> None:
    before = session.sampling_changes
    session.sampling_changes = {**before, **changes}
    try:
        session.sampling  # noqa: B018  # checks the value
    except PersonaTuiError:
        session.sampling_changes = before
        raise


def _help(session: ChatSession, rest: str) -> str:
    if rest:
        command, _ = parse(rest)
        return f"{command.usage}  {command.help}"
    width = max(len(command.usage) for command in COMMANDS.values())
    return "\n".join(f"{command.usage:<{width}}  {command.help}" for command in COMMANDS.values())


def _quit(session: ChatSession, rest: str) -> str:
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


def _available(session: ChatSession) -> list[str]:
    return session.runtime.personas.list_available()


def _loaded(session: ChatSession) -> list[str]:
    return session.runtime.personas.list_loaded()


COMMANDS: dict[str, Command] = {
    command.name: command
    for command in (
        Command(
            "persona", "/persona NAME", "speak as a persona, and load it if need be", _persona, _available
        ),
        Command(
            "strength",
            "/strength NUMBER",
            "how loud: 0 = unsteered, 0.3 = clear, 1 = far too much",
            _strength,
        ),
        Command("blend", "/blend A:0.5,B:0.3", "speak as several personas", _blend, _available),
        Command("none", "/none", "speak as nobody in particular", _none),
        Command(
            "safety",
            "/safety on|off",
            "capping: whether activations are kept above the floor",
            _safety,
            lambda _: ("on", "off"),
        ),
        Command("list", "/list", "the personas: > speaks", _list),
        Command("load", "/load NAME", "load a persona: its trace is shown, too", _load, _available),
        Command("unload", "/unload NAME", "forget a loaded persona; its file stays", _unload, _loaded),
        Command("create", "/create NAME DESCRIPTION", "make a persona; takes a while", _create),
        Command("delete", "/delete NAME", "delete a persona's file", _delete, _available),
        Command(
            "system", "/system TEXT|off", "a system prompt for this conversation", _system, lambda _: ("off",)
        ),
        Command("seed", "/seed NUMBER|off", "the same reply every time, or not", _seed, lambda _: ("off",)),
        Command(
            "temperature",
            "/temperature NUMBER",
            "0 = always the likeliest word, 1 = as the model has it",
            _temperature,
        ),
        Command("help", "/help [COMMAND]", "this list", _help, lambda _: COMMANDS),
        Command("quit", "/quit", "leave", _quit),
    )
}
