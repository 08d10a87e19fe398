"""What every part of the app stands on: the chat, the model's thread, the main screen, ways to speak."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from textual import events
from textual.widget import Widget

from persona_tui.core.errors import PersonaTuiError
from persona_tui.core.jobs import Job, ModelWorker
from persona_tui.project.project import Project
from persona_tui.tui.keys import ACTIONS, key_of
from persona_tui.tui.screens.chat import ChatScreen
from persona_tui.tui.sturdy import SturdyApp

if TYPE_CHECKING:
    from persona_tui.chat.chat import Chat
    from persona_tui.tui.inspection import TokenReading
    from persona_tui.tui.job_board import JobBoard

_MISTAKE = "a bug in persona-tui; see the log"
_COMMAND = re.compile(r"(?:run )?`persona-tui ([a-z-]+)(?: ([a-z-]+))?[^`]*`(?: again| to write some)?")
# What the errors of every front end advise on the command line is done here by these actions.
_CURES = {
    "init": "prepare",
    "extract-axes": "prepare",
    "load": "personas",
    "list": "personas",
    "create": "create",
    "model": "model",
    "monitor": "monitors",
    "trait": "trait_lab",
    "dataset": "dataset",
    "sessions": "sessions",
}


def reason(error: Exception) -> str:
    """Return what went wrong, and what to do, in one line."""
    text = " ".join(str(error).split())
    if isinstance(error, PersonaTuiError):
        return text
    return f"{type(error).__name__}: {text} ({_MISTAKE})"


def in_app_words(text: str, way_to: Callable[[str], str]) -> str:
    """Return a text with the app's own ways in place of commands for a shell.

    Args:
        text: what may name such commands.
        way_to: given an action's id, its title and its key.
    """

    def own(found: re.Match[str]) -> str:
        action = _CURES.get(found[1])
        return way_to(action) if action is not None else found[0]

    return _COMMAND.sub(own, text)


class AppStage(SturdyApp):
    """The app as its parts know it; `PersonaApp` has the parts.

    Attributes:
        chat: the conversation, and the model that it is had with.
        worker: the thread that owns the model.
        main: the screen with the chat.
        jobs: long work, under way or done.
        model_ready: whether there is a model to talk to.
        model_missing: whether the first one could not be loaded, and no other was.
    """

    chat: Chat
    worker: ModelWorker
    main: ChatScreen
    jobs: JobBoard
    model_ready: bool
    model_missing: bool

    def __init__(self) -> None:
        super().__init__()
        self._deletions: list[tuple[str, Callable[[], object]]] = []

    @property
    def project(self) -> Project:
        """The workspace and the model that is talked to now."""
        return self.chat.project

    # --- what the app gives

    @property
    def busy(self) -> bool:
        """Whether a reply is being written, or waits for the model."""
        raise NotImplementedError

    def show_status(self) -> None:
        """Draw the status line."""
        raise NotImplementedError

    def welcome(self) -> None:
        """Say in an empty chat which model this is, and what to do; or again, now that more is known."""
        raise NotImplementedError

    def show_personas(self) -> None:
        """Look at the disk, and draw who is there."""
        raise NotImplementedError

    def resume(self, id: str) -> None:
        """Go on with a saved conversation."""
        raise NotImplementedError

    def job_ended(self, job: Job[Any]) -> None:
        """Show what a job has changed, or why it failed."""
        raise NotImplementedError

    def command(self, line: str) -> None:
        """Do what a slash command asks for, and show the answer in the chat."""
        raise NotImplementedError

    def readings(self, message: int) -> list[TokenReading]:
        """Return what was measured of a reply's tokens while it was written."""
        raise NotImplementedError

    def sweep(self, prompt: str) -> None:
        """Answer a prompt at five strengths; "" = the last message."""
        raise NotImplementedError

    def tint(self, mode: str) -> None:
        """Tint replies by something; "" = the next in turn."""
        raise NotImplementedError

    # --- saying something

    def say(self, text: str, error: bool = False) -> None:
        """Show a note in the chat."""
        self.main.chat.note(self.own_words(text), error=error)

    def own_words(self, text: str) -> str:
        """Return a text with the app's ways in place of the command line's."""
        return in_app_words(text, self.way_to)

    def way_to(self, action: str) -> str:
        """Return what an action is called, and its key: `Prepare this model (ctrl+r)`."""
        title, key = next(known.title for known in ACTIONS if known.id == action), self.key_label(action)
        return f"{title} ({key or self.key_label('palette')})"

    def show_error(self, error: Exception) -> None:
        """Say in the chat what went wrong, in one line."""
        self.say(f"Error: {reason(error)}", error=True)
        self.jobs.log_error(error)

    def attempt(self, act: Callable[[], object]) -> bool:
        """Do something; if it fails, that is shown for a moment, and nothing else happens; whether it did."""
        try:
            act()
        except Exception as error:
            self.failed(error)
            return False
        return True

    def failed(self, error: Exception) -> None:
        """Say in one line what failed, and write it to the log; of a mistake of ours, all that is known."""
        if not isinstance(error, PersonaTuiError):
            self.failures.append(error)
        text = self.own_words(reason(error))
        self.notify(text[:1].upper() + text[1:], severity="error", markup=False)
        self.jobs.log_error(error)

    def check_model(self) -> None:
        """Raise an error that says so while the model is still loading."""
        if not self.model_ready:
            raise PersonaTuiError("the model is still loading")

    def check_not_missing(self) -> None:
        """Raise an error that says what to do if there is no model to answer, and none is being loaded."""
        if self.model_missing:
            raise PersonaTuiError(f"no model is loaded: {self.key_label('model')} chooses one")

    # --- taking back

    def deleted(self, what: str, restore: Callable[[], object]) -> None:
        """Say that something was deleted, and remember how that is taken back.

        Args:
            what: the subject of the sentence, such as `The persona sage`.
            restore: puts it back.
        """
        self._deletions.append((what, restore))
        self.notify(f"{what} is deleted: {self.key_label('undelete')} brings it back.", markup=False)

    def undelete(self) -> None:
        """Bring back what was deleted last, in this run.

        Raises:
            PersonaTuiError: nothing was deleted, or it cannot be put back; then it stays to be tried again.
        """
        if not self._deletions:
            raise PersonaTuiError("nothing was deleted in this run")
        what, restore = self._deletions[-1]
        restore()
        self._deletions.pop()
        self.notify(f"{what} is back.", markup=False)

    # --- keys

    def sets_off(self, target: Widget, key: events.Key) -> bool:
        """Return whether the keys behind one have to wait for it: not behind text for the prompt."""
        return self.screen is self.main and not (target is self.main.prompt and key.is_printable)

    def aim(self, event: events.Key | events.Paste) -> None:
        """Have what is typed beside the chat go to the prompt."""
        if self.screen is self.main:
            self.main.aim(event)

    def keys_of(self, action: str | None) -> str:
        """Return the keys that the user has given an action; "" where the default holds."""
        return self.project.settings.interface.keys.get(action or "", "")

    def key_label(self, action: str) -> str:
        """Return the first key of an action as it is mapped now, for texts that name it."""
        keys = key_of(self, next(known.binding() for known in ACTIONS if known.id == action))
        return keys.partition(" ")[0]
