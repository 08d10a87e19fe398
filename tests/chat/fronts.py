"""The front ends that a conversation can be had with, each driven by the same few steps."""

from __future__ import annotations

import contextlib
import io
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Protocol

from textual.pilot import Pilot

from persona_tui.chat import Conversation
from persona_tui.chat.chat import Chat
from persona_tui.cli import line_chat
from persona_tui.core.errors import PersonaTuiError
from persona_tui.core.mix import Mix
from persona_tui.project.project import Project
from persona_tui.remote.project import RemoteProject
from persona_tui.server.run import Server
from persona_tui.tui.app import PersonaApp
from tests.server.conftest import serving
from tests.tui import driving

KEY = "a key for tests"
AFTER = 4  # tokens before a reply is stopped


class Talk(Protocol):
    """A conversation in one of the front ends.

    Attributes:
        project: the workspace and the model that is talked to now.
    """

    @property
    def project(self) -> Project: ...

    @property
    def conversation(self) -> Conversation: ...

    @property
    def mix(self) -> Mix: ...

    @property
    def session_id(self) -> str | None: ...

    async def say(self, text: str) -> None:
        """Say something, and wait for the reply."""

    async def do(self, line: str) -> str:
        """Give a slash command, wait until it is done, and return what was shown, errors included."""

    async def stop(self, text: str) -> None:
        """Say something, and stop the reply after a few tokens."""


class LineTalk:
    """The line mode, as its loop drives it."""

    def __init__(self, workspace: Path) -> None:
        self.chat = Chat.start(Project.open(workspace), front=line_chat.Lines())

    @property
    def project(self) -> Project:
        return self.chat.project

    @property
    def conversation(self) -> Conversation:
        return self.chat.conversation

    @property
    def mix(self) -> Mix:
        return self.chat.mix

    @property
    def session_id(self) -> str | None:
        return self.chat.session_id

    async def say(self, text: str) -> None:
        with contextlib.redirect_stdout(io.StringIO()):
            line_chat.answer(self.chat, text)

    async def do(self, line: str) -> str:
        out, notes = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(notes):
            try:
                line_chat.answer(self.chat, line)
            except PersonaTuiError as error:
                return f"Error: {error}"
        return notes.getvalue()

    async def stop(self, text: str) -> None:
        for count, _ in enumerate(self.chat.events(self.chat.say(text))):
            if count == AFTER:
                self.chat.stop()


@asynccontextmanager
async def lines(workspace: Path) -> AsyncIterator[Talk]:
    """The line mode."""
    talk = LineTalk(workspace)
    try:
        yield talk
    finally:
        talk.chat.close()


class ConnectedTalk(LineTalk):
    """The line mode, with the model behind a server of the same workspace."""

    def __init__(self, workspace: Path, server: Server) -> None:
        self.server = server
        connected = RemoteProject.connect(server.url, KEY, workspace)
        connected.copy_vectors()
        self.chat = Chat.start(connected, front=line_chat.Lines())

    @property
    def project(self) -> Project:
        return self.server.service.project


@asynccontextmanager
async def connected(workspace: Path) -> AsyncIterator[Talk]:
    """The line mode as a client of a server."""
    with serving(Project.open(workspace), KEY) as server:
        talk = ConnectedTalk(workspace, server)
        try:
            yield talk
        finally:
            talk.chat.close()


class AppTalk:
    """The app, by its keys."""

    def __init__(self, app: PersonaApp, pilot: Pilot[None]) -> None:
        self.app, self.pilot = app, pilot

    @property
    def project(self) -> Project:
        return self.app.project

    @property
    def conversation(self) -> Conversation:
        return self.app.chat.conversation

    @property
    def mix(self) -> Mix:
        return self.app.chat.mix

    @property
    def session_id(self) -> str | None:
        return self.app.chat.session_id

    async def say(self, text: str) -> None:
        await driving.reply(self.pilot, self.app, text)

    async def do(self, line: str) -> str:
        app, before = self.app, list(self.app.main.chat.notes)
        await driving.say(self.pilot, line)
        await driving.until(self.pilot, lambda: not app.busy and app.jobs.running is None, line)
        await self.pilot.pause()
        new = [note for note in app.main.chat.notes if all(note is not old for old in before)]
        return "\n".join(note.content.plain for note in new)

    async def stop(self, text: str) -> None:
        app, before = self.app, self.app.replies.last
        await driving.say(self.pilot, text)

        def begun() -> bool:
            return app.replies.last is not before and app.replies.last.count > AFTER

        await driving.until(self.pilot, begun, "a few tokens")
        await driving.press(self.pilot, "escape")
        await driving.until(self.pilot, lambda: not app.busy, "the reply is stopped")


class ConnectedAppTalk(AppTalk):
    """The app, with the model behind a server of the same workspace."""

    def __init__(self, app: PersonaApp, pilot: Pilot[None], server: Server) -> None:
        super().__init__(app, pilot)
        self.server = server

    @property
    def project(self) -> Project:
        return self.server.service.project


@asynccontextmanager
async def connected_app(workspace: Path) -> AsyncIterator[Talk]:
    """The app as a client of a server."""
    with serving(Project.open(workspace), KEY) as server:
        project = RemoteProject.connect(server.url, KEY, workspace)
        async with driving.running(project, (120, 40)) as (running, pilot):
            yield ConnectedAppTalk(running, pilot, server)


@asynccontextmanager
async def app(workspace: Path) -> AsyncIterator[Talk]:
    """The app."""
    async with driving.running(workspace, (120, 40)) as (running, pilot):
        yield AppTalk(running, pilot)


class Front(Protocol):
    """Opens a front end in a workspace; whoever leaves closes the conversation."""

    def __call__(self, workspace: Path) -> AbstractAsyncContextManager[Talk]: ...


FRONTS: dict[str, Front] = {
    "lines": lines,
    "app": app,
    "connected": connected,
    "connected app": connected_app,
}
LOCAL = ("lines", "app")  # those that have their model themselves
