"""All sessions of a workspace: made, found, read, renamed, deleted."""

from __future__ import annotations

import os
import re
import secrets
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from persona_tui import __version__
from persona_tui.chat.conversation import Conversation
from persona_tui.chat.log import Event, SessionLog, now, read_events
from persona_tui.chat.voice import NOBODY, label
from persona_tui.core.errors import PersonaTuiError, SessionError, WorkspaceError, nearest
from persona_tui.core.files import Trashed, discard_file, safe_name
from persona_tui.core.mix import Mix
from persona_tui.core.workspace import Workspace

SUFFIX = ".jsonl"
LATEST = "last"  # stands for the session that was used last

_TITLE_LENGTH = 60
_WRITTEN = ("reply", "settings")
# What is passed over where only tokens are wanted.
_NO_TOKENS = ("message", "reply", "settings", "mix", "end", "walk", "drop", "system", "title")
_AROUND = 40  # characters shown on either side of what was searched for


@dataclass(frozen=True)
class SessionInfo:
    """What a list of sessions shows.

    Attributes:
        id: the file's name without its ending.
        title: the user's, else how the conversation begins.
        messages: how many there are, on all branches.
        model: its name.
        fingerprint: tells the model from others; None if it was not loaded.
        created: when it began, UTC.
        used: when it was last written to, UTC.
        voice: who spoke last, and how loud; "" = nobody in particular.
        last: how what was said last ends.
        piped: whether it was not typed by a person at a terminal.
        problem: why it cannot be read, None if it can.
    """

    id: str
    title: str = ""
    messages: int = 0
    model: str = ""
    fingerprint: str | None = None
    created: str = ""
    used: str = ""
    voice: str = ""
    last: str = ""
    piped: bool = False
    problem: str | None = None

    @property
    def is_slight(self) -> bool:
        """Whether it hardly is a conversation: empty, or a question that came through a pipe."""
        return self.problem is None and (not self.messages or (self.piped and self.messages <= 2))


@dataclass(frozen=True)
class Found:
    """A message in which something that was searched for occurs.

    Attributes:
        session: where.
        node: the message's number; None = it is in the title.
        role: who wrote it.
        excerpt: the place, in one line.
    """

    session: SessionInfo
    node: int | None
    role: str
    excerpt: str


class SessionStore:
    """The folder of sessions. Nothing is kept in memory but which ones are open here."""

    def __init__(self, workspace: Workspace) -> None:
        self.folder = workspace.sessions
        self._open: dict[str, SessionLog] = {}

    # Writing ------------------------------------------------------------------------------------------------

    def create(self, model_name: str, fingerprint: str | None = None, **more: Any) -> SessionLog:
        """Begin a session. Its file begins with the first event, so that one that stays empty leaves none.

        Args:
            model_name: what speaks.
            fingerprint: of the model, if it is loaded; every reply has it, too.
            more: further fields of the first event.
        """
        created = now()
        name = f"{datetime.now(UTC):%Y%m%d-%H%M%S}-{secrets.token_hex(2)}"
        header = {"model": model_name, "fingerprint": fingerprint, "created": created, **more}
        log = self._open[name] = SessionLog(self.folder / f"{name}{SUFFIX}", header)
        return log

    def open(self, id: str) -> SessionLog:
        """Go on with a session.

        Raises:
            SessionError: it does not exist, or is open elsewhere.
        """
        path = self._existing(id)
        log = SessionLog(path)
        if not path.stat().st_size:  # killed while its first line was written
            log.close()
            raise SessionError(f"{path} is empty")
        log.record("resumed", version=__version__, pid=os.getpid())
        self._open[id] = log
        return log

    def rename(self, id: str, title: str) -> None:
        """Give a session a title. One that is open here should be renamed by its `Conversation` instead.

        Raises:
            SessionError: it does not exist, is open in another process, or the title is empty.
        """
        if self._writing(id):
            Conversation(self._open[id].record).rename(title)
            return
        with SessionLog(self._existing(id)) as log:
            Conversation(log.record).rename(title)

    def delete(self, id: str) -> Trashed:
        """Move a session's file to the workspace's trash; `restore_file` takes that back.

        Raises:
            SessionError: it does not exist, or is open, here or elsewhere.
            WorkspaceError: it cannot be moved.
        """
        path = self._existing(id)
        if self._writing(id):
            raise SessionError(f"session {id} is open: close it first")
        with SessionLog(path):  # an error if somebody else is writing
            return discard_file(self.folder.parent, path)

    def _writing(self, id: str) -> bool:
        return id in self._open and self._open[id].writable

    # Reading ------------------------------------------------------------------------------------------------

    def load(self, id: str) -> tuple[Conversation, list[Event]]:
        """Return a session's conversation, as it was left, and all that happened. It records nothing by
        itself.

        Raises:
            SessionError: it does not exist, or its file is damaged: names the line.
        """
        path = self._existing(id)
        conversation, events = Conversation(), list(read_events(path))
        for event in events:
            try:
                conversation.apply(event.kind, event.fields)
            except (KeyError, TypeError, ValueError, IndexError) as error:
                raise SessionError(
                    f"{path}:{event.line}: this {event.kind} does not fit what comes before it ({error})"
                ) from error
        if not events:
            raise SessionError(f"{path} is empty")
        conversation.interrupted()
        return conversation, events

    def list(self) -> list[SessionInfo]:
        """Return all sessions, the one used last first. One that cannot be read says so."""
        found = [self.info(path.stem) for path in self.folder.glob(f"*{SUFFIX}") if _is_id(path.stem)]
        return sorted(found, key=lambda info: (info.used, info.id), reverse=True)

    def info(self, id: str) -> SessionInfo:
        """Return what a list shows of one session, without reading its tokens."""
        path = self.folder / f"{id}{SUFFIX}"
        try:
            return _summary(id, path, [*read_events(path, skip=("tokens",))])
        except SessionError as error:
            return SessionInfo(id, problem=str(error), used=_modified(path))

    def search(self, text: str) -> Sequence[Found]:
        """Return where a text occurs, in titles and on all branches, whatever the case; sessions as in
        `list`.

        Sessions that cannot be read are passed over.
        """
        wanted = text.casefold()
        return [hit for info in self.list() if not info.problem for hit in self._hits(info, wanted)]

    def _hits(self, info: SessionInfo, wanted: str) -> Sequence[Found]:
        try:
            conversation, _ = self.load(info.id)
        except SessionError:
            return []
        hits = [
            Found(info, node.id, node.role, _excerpt(node.text, wanted))
            for node in conversation.nodes()
            if wanted in node.text.casefold()
        ]
        if not hits and wanted in info.title.casefold():
            hits.append(Found(info, None, "title", info.title))
        return hits

    def resolve(self, id: str) -> str:
        """Return the session that is meant: by its id, the beginning of one, its title, or "last".

        Raises:
            SessionError: none matches, or more than one.
        """
        ids = sorted(path.stem for path in self.folder.glob(f"*{SUFFIX}") if _is_id(path.stem))
        if id in ids:
            return id
        if not ids:
            raise SessionError("there are no sessions yet")
        if id == LATEST:
            found = self.list()
            return next((info.id for info in found if not info.problem), found[0].id)
        meant = [each for each in ids if id and each.startswith(id)]
        meant = meant or [info.id for info in self.list() if info.title.casefold() == id.casefold()]
        if len(meant) > 1:
            raise SessionError(f'"{id}" may mean {", ".join(meant[:5])}: say which')
        if not meant:
            raise SessionError(
                f'there is no session "{id}".{nearest(id, ids) or " `sessions list` has all."}'
            )
        return meant[0]

    def _existing(self, id: str) -> Path:
        path = self.folder / f"{id}{SUFFIX}"
        if not _is_id(id) or not path.is_file():
            raise SessionError(f'there is no session "{id}"')
        return path


def _is_id(name: str) -> bool:
    try:
        return safe_name(name) == name
    except WorkspaceError:
        return False


def _modified(path: Path) -> str:
    try:
        seconds = path.stat().st_mtime
    except OSError:
        return ""
    return f"{datetime.fromtimestamp(seconds, UTC).isoformat(timespec='milliseconds')[:23]}Z"


def _summary(id: str, path: Path, events: Sequence[Event]) -> SessionInfo:
    if not events:
        raise SessionError(f"{path} is empty")
    header = events[0].fields
    begun = [event for event in events if event.kind in ("message", "reply")]
    gone = sum(event.kind == "drop" for event in events)
    return SessionInfo(
        id=id,
        title=_title(events),
        messages=sum(not event.fields.get("continues") for event in begun) - gone,
        model=str(header.get("model", "")),
        fingerprint=header.get("fingerprint"),
        created=str(header.get("created", "")),
        used=_modified(path),
        voice=_voice(events),
        last=_last_line(path, events),
        piped=bool(header.get("piped")),
    )


def _voice(events: Sequence[Event]) -> str:
    """Who spoke last, and how loud."""
    mixes = [event.fields.get("mix") for event in events if event.kind == "mix"]
    mixes += [(event.fields.get("settings") or {}).get("mix") for event in events if event.kind in _WRITTEN]
    recorded = next((mix for mix in reversed(mixes) if isinstance(mix, Mapping)), None)
    with suppress(PersonaTuiError, TypeError):
        voice = label(Mix.from_record(recorded)) if recorded is not None else NOBODY
        return "" if voice == NOBODY else voice
    return ""


def _last_line(path: Path, events: Sequence[Event]) -> str:
    """Return the end of the last message: of a reply, from the tokens that follow its beginning."""
    last = next((event for event in reversed(events) if event.kind in ("message", "reply")), None)
    if last is None:
        return ""
    if last.kind == "message":
        return _end_of(str(last.fields.get("text", "")))
    tokens = (event for event in read_events(path, skip=_NO_TOKENS) if event.line > last.line)
    return _end_of("".join(text for event in tokens for text in event.fields.get("texts", ())))


def _end_of(text: str) -> str:
    lines = [" ".join(line.split()) for line in text.splitlines() if line.strip()]
    line = lines[-1] if lines else ""
    return line if len(line) <= _TITLE_LENGTH else f"…{line[1 - _TITLE_LENGTH :]}"


def _title(events: Sequence[Event]) -> str:
    given = [str(event.fields.get("title", "")) for event in events if event.kind == "title"]
    if given:
        return given[-1]
    said = (event.fields for event in events if event.kind == "message")
    return next((_first_line(fields) for fields in said if fields.get("role") == "user"), "(empty)")


def _first_line(fields: Mapping[str, Any]) -> str:
    text = " ".join(str(fields.get("text", "")).split())
    return text if len(text) <= _TITLE_LENGTH else f"{text[: _TITLE_LENGTH - 1]}…"


def _excerpt(text: str, wanted: str) -> str:
    match = re.search(re.escape(wanted), text, re.IGNORECASE)
    start, end = match.span() if match else (0, 0)
    before, after = text[max(start - _AROUND, 0) : start], text[end : end + _AROUND]
    front, back = "…" if start > _AROUND else "", "…" if end + _AROUND < len(text) else ""
    return " ".join(f"{front}{before}{text[start:end]}{after}{back}".split())
