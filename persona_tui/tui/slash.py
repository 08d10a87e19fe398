"""Slash commands in the app: those of every chat, on the app's own state, and a few that need a screen."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from persona_tui import commands
from persona_tui.errors import PersonaTuiError
from persona_tui.jobs import Job
from persona_tui.tui.voice import Faders

if TYPE_CHECKING:
    from persona_tui.steering.mix import Mix
    from persona_tui.tui.app import PersonaApp


@dataclass(frozen=True)
class _Own:
    """A command that only a full screen has; its handler is given what follows the name."""

    usage: str
    help: str
    handler: Callable[[str], None]


class AppSession:
    """The app's state as the commands know it: a `commands.Session`."""

    def __init__(self, app: PersonaApp) -> None:
        self._app = app
        self.runtime = app.runtime
        self.ended = False

    @property
    def mix(self) -> Mix:
        """What is spoken with."""
        return self._app.voice.faders.mix()

    def change_mix(self, **changes: Any) -> None:
        """Move faders."""
        mix = replace(self.mix, **changes)
        self._app.voice.set(Faders(mix.weights, mix.strength, mix.capping))

    @property
    def system(self) -> str | None:
        """The system prompt, if any."""
        return self._app.speaker.conversation.system

    @system.setter
    def system(self, text: str | None) -> None:
        self._app.speaker.conversation.system = text

    @property
    def sampling_changes(self) -> dict[str, Any]:
        """What differs from the settings' sampling."""
        return self._app.speaker.sampling

    @sampling_changes.setter
    def sampling_changes(self, changes: dict[str, Any]) -> None:
        self._app.speaker.sampling = changes

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
        self._own = {
            "again": _Own("/again", "write the last reply anew", lambda _: app.action_regenerate()),
            "clear": _Own("/clear", "begin another conversation", lambda _: app.action_new_chat()),
            "info": _Own("/info NAME", "what is known of a persona", app.people.info),
            "init": _Own("/init", "prepare this model: axes and personas", lambda _: app.action_prepare()),
            "cancel": _Own("/cancel", "cancel the job under way", lambda _: app.action_cancel_job()),
        }

    # --- running

    def run(self, line: str) -> None:
        """Do what a line asks for, and show the answer in the chat."""
        name, _, rest = line[1:].partition(" ")
        try:
            if name in self._own:
                self._own[name].handler(rest.strip())
            elif not self._takes_dialog(name, rest.strip()):
                self._execute(line)
        except PersonaTuiError as error:
            self._app.show_error(error)

    def _takes_dialog(self, name: str, rest: str) -> bool:
        """Ask on a screen of its own, where the line mode asks a question; whether that was the case."""
        if name == "create" and len(rest.split()) < 2:
            self._app.people.create(rest)
        elif name == "delete" and rest and " " not in rest:
            self._app.people.delete(rest)
        elif name == "help" and not rest:
            self._app.action_show_help()
        else:
            return False
        return True

    def _execute(self, line: str) -> None:
        command, _ = commands.parse(line)
        if command.name == "quit":
            self._app.call_later(self._app.action_quit)
        elif not self._app.model_ready:
            raise PersonaTuiError("The model is still loading.")
        elif answer := commands.execute(self._session, line):
            self._app.main.chat.note(answer)
        self._app.people.refresh()

    # --- completing

    def complete(self, line: str) -> Sequence[tuple[str, str]]:
        """Return what a line may become, each with what it does."""
        if not commands.is_command(line):
            return ()
        if " " not in line:
            return [(text, what) for text, what in self._names() if text.startswith(line.casefold())]
        if not self._app.model_ready:
            return ()
        return [(offer, "") for offer in commands.complete(self._session, line)]

    def _names(self) -> list[tuple[str, str]]:
        """Return what may be typed: every name, with a space where something follows."""
        own = {name: command.usage for name, command in self._own.items()}
        usages = {name: command.usage for name, command in commands.COMMANDS.items()} | own
        return [(f"{text} " if " " in usages[text[1:]] else text, what) for text, what in self.all()]

    def all(self) -> list[tuple[str, str]]:
        """Return every command and what it does."""
        shared = [(f"/{command.name}", command.help) for command in commands.COMMANDS.values()]
        return shared + [(f"/{name}", own.help) for name, own in self._own.items()]
