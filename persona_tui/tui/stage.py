"""What every part of the app stands on: the chat, the model's thread, the main screen, ways to speak."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from textual.app import App

from persona_tui.chat.chat import Chat
from persona_tui.core.errors import PersonaTuiError
from persona_tui.core.jobs import Job, ModelWorker
from persona_tui.project.project import Project
from persona_tui.tui.keys import ACTIONS, key_of
from persona_tui.tui.screens.chat import ChatScreen

if TYPE_CHECKING:
    from persona_tui.tui.job_board import JobBoard


class AppStage(App[None]):
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

    def show_personas(self) -> None:
        """Look at the disk, and draw who is there."""
        raise NotImplementedError

    def job_ended(self, job: Job[Any]) -> None:
        """Show what a job has changed, or why it failed."""
        raise NotImplementedError

    def command(self, line: str) -> None:
        """Do what a slash command asks for, and show the answer in the chat."""
        raise NotImplementedError

    # --- saying something

    def say(self, text: str, error: bool = False) -> None:
        """Show a note in the chat."""
        self.main.chat.note(text, error=error)

    def show_error(self, error: Exception) -> None:
        """Say in the chat what went wrong, in one line."""
        known = isinstance(error, PersonaTuiError)
        self.say(f"Error: {error}" if known else f"Error: {type(error).__name__}: {error}", error=True)
        self.jobs.log(f"error: {error}")

    def attempt(self, act: Callable[[], object]) -> None:
        """Do something; an error that a user can cause is shown for a moment, and nothing else happens."""
        try:
            act()
        except PersonaTuiError as error:
            text = str(error)
            self.notify(text[:1].upper() + text[1:], severity="error", markup=False)

    def check_model(self) -> None:
        """Raise an error that says so while the model is still loading."""
        if not self.model_ready:
            raise PersonaTuiError("the model is still loading")

    def check_not_missing(self) -> None:
        """Raise an error that says what to do if there is no model to answer, and none is being loaded."""
        if self.model_missing:
            raise PersonaTuiError(f"no model is loaded: {self.key_label('model')} chooses one")

    # --- keys

    def keys_of(self, action: str | None) -> str:
        """Return the keys that the user has given an action; "" where the default holds."""
        return self.project.settings.interface.keys.get(action or "", "")

    def key_label(self, action: str) -> str:
        """Return the key of an action as it is mapped now, for texts that name it."""
        return key_of(self, next(known.binding() for known in ACTIONS if known.id == action))
