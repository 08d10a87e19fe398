"""Slash commands in the app: those of every chat, on the app's own state, and a few that need a screen."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from persona_tui.chat import commands
from persona_tui.chat.commands import Command, Session
from persona_tui.core.errors import PersonaTuiError
from persona_tui.core.jobs import Job
from persona_tui.project.models import ModelChoice
from persona_tui.project.project import FromDescription, Project
from persona_tui.tui.voice import Faders

if TYPE_CHECKING:
    from persona_tui.chat import Conversation
    from persona_tui.core.mix import Mix
    from persona_tui.tui.app import PersonaApp


_CHANGES_MESSAGES = ("regenerate", "continue", "edit", "branch", "resume", "new")


class AppSession:
    """The app's state as the commands know it: a `commands.Session`."""

    def __init__(self, app: PersonaApp) -> None:
        self._app = app
        self.project = app.project
        self.ended = False

    @property
    def mix(self) -> Mix:
        """What is spoken with."""
        return self._app.voice.faders.mix()

    def change_mix(self, **changes: Any) -> None:
        """Move faders."""
        self._app.voice.set(Faders.of(replace(self.mix, **changes)))

    @property
    def conversation(self) -> Conversation:
        """What was said."""
        return self._app.speaker.conversation

    @property
    def session_id(self) -> str | None:
        """What it is saved as; None while nothing was said."""
        return self._app.saving.session_id

    def write(self, reply: int) -> str:
        """Write a reply that was begun, beside everything else."""
        self._app.speaker.write(reply)
        return ""

    def compare(self, mixes: Sequence[Mix], question: str | None) -> str:
        """Answer a question (None = the last one) with two mixes side by side."""
        self._app.comparing.ask(question, mixes)
        return ""

    def keep(self, row: int) -> str:
        """Keep one of the two answers."""
        return self._app.comparing.keep(row)

    def resume(self, id: str | None) -> str:
        """Go on with another session; None = with a new one."""
        if id is not None:
            return self._app.saving.resume(id)
        self._app.action_new_chat()
        return ""

    @property
    def system(self) -> str | None:
        """The system prompt, if any."""
        return self.conversation.system

    @system.setter
    def system(self, text: str | None) -> None:
        self.conversation.set_system(text)

    @property
    def sampling_changes(self) -> dict[str, Any]:
        """What differs from the settings' sampling."""
        return self._app.speaker.sampling

    @sampling_changes.setter
    def sampling_changes(self, changes: dict[str, Any]) -> None:
        self._app.speaker.sampling = changes

    def use_model(self, choice: ModelChoice) -> str:
        """Load another model, as a job, and talk to that."""
        return self._app.switching.use(choice)

    def run(self, name: str, work: commands.Work) -> str:
        """Do long work as a job."""
        self._app.jobs.submit(name, work, self._job_ended)
        return f"{name}: on its way; the chat stays usable. Progress: {self._app.key_label('jobs')}."

    def _job_ended(self, job: Job[str]) -> None:
        if job.state == "done" and job.result:
            self._app.main.chat.note(job.result)
        self._app.people.job_ended(job)

    def ask(self, question: str) -> str | None:
        """A dialog cannot be waited for here; commands that ask get one before they run."""
        return None


class Slash:
    """Runs slash commands and completes them."""

    def __init__(self, app: PersonaApp) -> None:
        self._app = app
        self._session = AppSession(app)
        self._waiting: list[str] = []  # commands that were typed before there was a model
        self._own = {command.name: command for command in self._commands(app)}

    def _commands(self, app: PersonaApp) -> Iterable[Command]:
        """What only a full screen has."""
        yield self._command(
            "copy", "[code]", "copy the last reply, or its last code block", self._copy, lambda: ("code",)
        )
        yield self._command("editor", "", "write in your own editor", lambda _: app.action_editor())
        yield self._command(
            "sampling", "", "temperature, top-p, length and seed", lambda _: app.action_sampling()
        )
        yield self._command("inspect", "[#N]", "a message token by token: projections", self._inspect)
        yield self._command(
            "trace",
            "[A,B|off]",
            "what is drawn under the chat, token by token",
            self._trace,
            lambda: [*app.mixing.traceable()[0], "off"],
        )
        yield self._command(
            "info",
            "NAME",
            "what is known of a persona",
            app.people.info,
            lambda: commands.there(self._session),
        )
        yield self._command(
            "init", "", "prepare this model: axes and personas", lambda _: app.action_prepare()
        )
        yield self._command(
            "monitors", "", "layers, scores, thresholds of the monitors", lambda _: app.action_monitors()
        )
        yield self._command(
            "traits", "", "what this conversation scores; thresholds, limits", lambda _: app.action_traits()
        )
        yield self._command("cancel", "", "cancel the job under way", lambda _: app.action_cancel_job())

    def _command(
        self,
        name: str,
        usage: str,
        help: str,
        act: Callable[[str], object],
        words: Callable[[], Iterable[str]] = tuple,
    ) -> Command:
        """Return a command that shows for itself what it does; `act` is given what follows the name."""

        def handler(_: Session, rest: str) -> str:
            act(rest)
            return ""

        return Command(name, f"/{name} {usage}".rstrip(), help, handler, lambda _: words())

    def _copy(self, rest: str) -> None:
        self._app.marked.copy_last(rest.casefold() == "code")

    def _inspect(self, rest: str) -> None:
        number = rest.removeprefix("#")
        if rest and not number.isdecimal():
            raise PersonaTuiError(f'/inspect, or /inspect #2 for message 2, not "{rest}"')
        self._app.inspecting.open(int(number) if rest else None)

    def _trace(self, rest: str) -> None:
        if not rest:
            self._app.action_traces()
        else:
            offered, _ = self._app.mixing.traceable()
            names = [] if rest.casefold() in commands.OFF else [name.strip() for name in rest.split(",")]
            for name in names:
                if name not in offered:
                    raise PersonaTuiError(f'"{name}" cannot be traced: {", ".join(offered)} can')
            self._app.mixing.trace(names)

    def use(self, project: Project) -> None:
        """From now on, commands are about another model."""
        self._session.project = project

    # --- running

    def model_ready(self) -> None:
        """Run what was asked for while the model was loading."""
        waiting, self._waiting = self._waiting, []
        for line in waiting:
            self.run(line)

    def run(self, line: str) -> None:
        """Do what a line asks for, and show the answer in the chat."""
        name, _, rest = line[1:].partition(" ")
        try:
            if name in self._own:
                self._own[name].handler(self._session, rest.strip())
            elif not self._takes_dialog(name, rest.strip()):
                self._execute(line)
        except PersonaTuiError as error:
            self._app.show_error(error)

    def _takes_dialog(self, name: str, rest: str) -> bool:
        """Ask on a screen of its own, where the line mode asks a question; whether that was the case."""
        if name == "create" and len(rest.split()) < 2:
            self._app.people.create(rest)
        elif name == "create":
            new, _, description = rest.partition(" ")
            self._app.people.make(new, FromDescription(description.strip()))
        elif name == "calibrate" and rest:
            self._app.people.calibrate(rest)
        elif name == "dataset" and rest:
            self._app.people.write(*commands.dataset_task(self._app.project, rest))
        elif name == "delete" and rest and " " not in rest:
            self._app.people.delete(rest)
        elif name == "help" and not rest:
            self._app.action_show_help()
        elif name == "help" and (own := self._own.get(rest.removeprefix("/"))):
            self._app.main.chat.note(f"{own.usage}  {own.help}")
        elif name == "sessions" and not rest:
            self._app.action_sessions()
        elif name == "model" and not rest:
            self._app.action_model()
        elif name == "system" and not rest:
            self._app.action_system()
        else:
            return False
        return True

    def _execute(self, line: str) -> None:
        command, _ = commands.parse(line)
        if command.name == "quit":
            self._app.call_later(self._app.action_quit)
        elif not self._app.model_ready and command.name != "model":
            self._app.switching.check_model()
            self._waiting.append(line)
            self._app.main.chat.note(f"{line}: as soon as the model is loaded.")
        else:
            if command.name in _CHANGES_MESSAGES:
                self._app.speaker.check_idle()
            answer = commands.execute(self._session, line)
            if not self._app.speaker.busy:  # the messages may be others now
                self._app.speaker.show()
            if answer:
                self._app.main.chat.note(answer)
        self._app.people.refresh()
        self._app.show_status()

    # --- completing

    def complete(self, line: str) -> Sequence[tuple[str, str]]:
        """Return what a line may become, each with what it does."""
        if not commands.is_command(line):
            return ()
        if " " not in line:
            return [(text, what) for text, what in self._names() if text.startswith(line.casefold())]
        if not self._app.model_ready:
            return ()
        return [(offer, "") for offer in commands.complete(self._session, line, self._known())]

    def _names(self) -> list[tuple[str, str]]:
        """Return what may be typed: every name, with a space where something follows."""
        usages = {name: command.usage for name, command in self._known().items()}
        return [(f"{text} " if " " in usages[text[1:]] else text, what) for text, what in self.all()]

    def all(self) -> list[tuple[str, str]]:
        """Return every command and what it does."""
        return [(f"/{name}", command.help) for name, command in self._known().items()]

    def _known(self) -> dict[str, Command]:
        """Return every command by its name; `help` knows all of them."""
        known = commands.COMMANDS | self._own
        return known | {"help": replace(known["help"], words=lambda _: known)}
