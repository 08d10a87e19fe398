"""The app's sessions: the conversation is saved as it happens, and others can be taken up again."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from persona_tui.chat import Conversation, SessionInfo, SessionLog, SessionStore
from persona_tui.chat.branches import write_export
from persona_tui.core.errors import SessionError
from persona_tui.tui.screens.confirm import ConfirmScreen
from persona_tui.tui.voice import Faders

if TYPE_CHECKING:
    from persona_tui.tui.app import PersonaApp


class Saving:
    """Knows which session is open."""

    def __init__(self, app: PersonaApp, saves: bool = True) -> None:
        """
        Args:
            app: whose conversation is saved.
            saves: whether it is saved at all.
        """
        self._app = app
        self._saves = saves
        self._log: SessionLog | None = None

    @property
    def session_id(self) -> str | None:
        """What the conversation is saved as; None while nothing has been said."""
        return self._log.id if self._log is not None else None

    def begin(self) -> None:
        """Save the present conversation from now on, if that is wanted and not the case yet."""
        if not self._saves or self._log is not None:
            return
        project, conversation = self._app.project, self._app.speaker.conversation
        engine = project.loaded_engine
        fingerprint = engine.model.fingerprint if engine is not None else None
        self._log = SessionStore(project.workspace).create(project.settings.model.name, fingerprint)
        if conversation.system:
            self._log.record("system", text=conversation.system)
        conversation.record = self._log.record

    def close(self) -> None:
        """Write what waits, and leave the session."""
        if self._log is not None:
            self._app.speaker.conversation.record = None
            self._log.close()
            self._log = None

    # --- going on with another

    def new(self) -> None:
        """Begin another conversation, with the same system prompt."""
        self._app.speaker.check_idle()
        self.close()
        self._app.speaker.take(Conversation(system=self._app.speaker.conversation.system))

    def resume(self, id: str) -> str:
        """Go on with a saved conversation, with the mix that it was last spoken with; what to say about it.

        Raises:
            SessionError: there is no such session, it is damaged, or another process has it open.
        """
        self._app.speaker.check_idle()
        if id == self.session_id:
            return "That is this conversation."
        conversation, _ = SessionStore(self._app.project.workspace).load(id)
        faders, missing = self._faders_of(conversation)
        log = SessionStore(self._app.project.workspace).open(id) if self._saves else None
        self.close()
        self._app.voice.set(faders)
        self._app.people.refresh()
        self._log, conversation.record = log, log.record if log is not None else None
        self._app.speaker.take(conversation)
        info, here = SessionStore(self._app.project.workspace).info(id), self._app.project.settings.model.name
        lines = [f"Resumed: {info.title}{'' if info.title.endswith(tuple('.?!…')) else '.'}"]
        if missing:
            lines.append(f"Personas that are gone: {', '.join(missing)}.")
        if info.model != here:
            lines.append(f"It was begun with {info.model}; here {here} answers.")
        return " ".join(lines)

    def _faders_of(self, conversation: Conversation) -> tuple[Faders, list[str]]:
        """Return the faders as they were, and which personas are gone.

        Raises:
            PersonaTuiError: one of them is damaged.
        """
        present, engine = self._app.voice.faders, self._app.project.loaded_engine
        if conversation.mix is None or engine is None or not self._app.model_ready:
            return present, []
        faders, manager = Faders.from_record(conversation.mix), self._app.project.personas
        there = {*manager.list_available(), *manager.list_traits()}
        weights = {name: by for name, by in faders.speaking.items() if name in there}
        for name in weights:
            manager.load(name)
        found = replace(faders, weights=weights)
        engine.interventions(found.mix())
        return found, [name for name in faders.speaking if name not in weights]

    # --- the list

    def show(self) -> None:
        """Show all sessions."""
        from persona_tui.tui.screens.sessions import SessionsScreen

        self._app.push_screen(SessionsScreen(self, SessionStore(self._app.project.workspace)), self._chosen)

    def _chosen(self, id: str | None) -> None:
        if id is not None:
            self._app.attempt(lambda: self._app.main.chat.note(self.resume(id)))

    def rename(self, id: str, title: str) -> None:
        """Give a session a title."""
        if id == self.session_id:
            self._app.speaker.conversation.rename(title)
        else:
            SessionStore(self._app.project.workspace).rename(id, title)

    def delete(self, info: SessionInfo, done: Callable[[], object]) -> None:
        """Delete a session after asking; `done` is called when it is gone."""
        if info.id == self.session_id:
            raise SessionError("this is the conversation that is open: begin another one first (/new)")

        def answered(yes: bool | None) -> None:
            if yes:
                self._app.attempt(lambda: SessionStore(self._app.project.workspace).delete(info.id))
                done()

        question = f"Delete the session {info.title!r}? Its {info.messages} messages are gone then."
        self._app.push_screen(ConfirmScreen(question, "Delete", "Keep"), answered)

    def export(self, id: str, name: str) -> Path:
        """Write a session to a file.

        Raises:
            PersonaTuiError: the file exists or cannot be written.
        """
        return write_export(SessionStore(self._app.project.workspace), id, Path(name)).absolute()
