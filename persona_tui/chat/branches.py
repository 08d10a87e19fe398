"""What slash commands do with the conversation itself: branches, and sessions that are saved.

A front end that has a conversation is a `Talk`; one that has none is told so.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from persona_tui.chat import Conversation, Node, SessionStore, export_json, export_markdown
from persona_tui.core.errors import SessionError
from persona_tui.core.files import atomic_write_text
from persona_tui.project.project import Project

SHOWN = 20  # sessions, or places that were found

_STEPS = {"next": 1, "prev": -1, "previous": -1}


@runtime_checkable
class Talk(Protocol):
    """What these handlers may use.

    Attributes:
        project: workspace, model and personas.
        conversation: what was said.
        session_id: what it is saved as; None while nothing was said, or if nothing is saved.
    """

    project: Project
    conversation: Conversation

    @property
    def session_id(self) -> str | None:
        """What the conversation is saved as."""
        ...

    def write(self, reply: int) -> str:
        """Have a reply that was begun written, here or in the background; what to show at once."""
        ...

    def resume(self, id: str | None) -> str:
        """Go on with another session (None = with a new one); what to show."""
        ...


def record(session: object, kind: str, **fields: Any) -> None:
    """Write something down in the session's file, if there is one."""
    if isinstance(session, Talk) and session.conversation.record is not None:
        session.conversation.record(kind, **fields)


# Branches ---------------------------------------------------------------------------------------------------


def regenerate(session: object, rest: str) -> str:
    """Write the last reply anew, or message `#N`; the old one is kept as its sibling."""
    talk = _talk(session)
    number, _ = _numbered(rest)
    return talk.write(talk.conversation.regenerate(number))


def continue_reply(session: object, rest: str) -> str:
    """Go on with the last reply."""
    talk = _talk(session)
    return talk.write(talk.conversation.continue_reply())


def edit(session: object, rest: str) -> str:
    """Put another text in place of a message (by default the user's last one); a user's is answered."""
    talk = _talk(session)
    number, text = _numbered(rest)
    if not text:
        raise SessionError("something is missing: /edit [#N] TEXT")
    old = talk.conversation.node(number) if number is not None else _last_said(talk.conversation)
    talk.conversation.edit(old.id, text)
    return talk.write(talk.conversation.begin_reply()) if old.role == "user" else f"Edited #{old.id}."


def branch(session: object, rest: str) -> str:
    """Show the messages and where they branch, go to the next or previous sibling, or to a message."""
    conversation = _talk(session).conversation
    number, step = _numbered(rest)
    if number is None and not step:
        return outline(conversation)
    if not step:
        conversation.go_to(conversation.node(number or 0).id)
        return outline(conversation)
    if step.casefold() not in _STEPS:
        raise SessionError(f'next or prev, not "{step}": /branch [#N] [next|prev]')
    here = number if number is not None else _last_branching(conversation).id
    conversation.walk(here, _STEPS[step.casefold()])
    return outline(conversation)


def outline(conversation: Conversation) -> str:
    """The path, a line per message: its number, who, which of how many siblings, how it begins."""
    lines = [_outlined(conversation, node) for node in conversation.path()]
    return "\n".join(lines) or "Nothing has been said yet."


def _outlined(conversation: Conversation, node: Node) -> str:
    index, count = conversation.siblings(node.id)
    which = f" ({index + 1} of {count})" if count > 1 else ""
    who = "you" if node.role == "user" else "model"
    return f"#{node.id} {who}{which}: {_shortened(node.text)}"


def _shortened(text: str, width: int = 56) -> str:
    line = " ".join(text.split())
    return line if len(line) <= width else f"{line[: width - 1]}…"


def _numbered(rest: str) -> tuple[int | None, str]:
    """The number in `#3 some text`, None if there is none, and the text."""
    word, _, text = rest.partition(" ")
    if word.startswith("#") and word[1:].isdecimal():
        return int(word[1:]), text.strip()
    return None, rest.strip()


def _last_said(conversation: Conversation) -> Node:
    for node in reversed(conversation.path()):
        if node.role == "user":
            return node
    raise SessionError("nothing has been said yet")


def _last_branching(conversation: Conversation) -> Node:
    for node in reversed(conversation.path()):
        if conversation.siblings(node.id)[1] > 1:
            return node
    raise SessionError("there is no branch here: /edit and /regenerate make one")


# Sessions ---------------------------------------------------------------------------------------------------


def sessions(session: object, rest: str) -> str:
    """The saved conversations, or where in them a text occurs."""
    store = SessionStore(_talk(session).project.workspace)
    return _found(store, rest) if rest else _listed(store)


def _listed(store: SessionStore) -> str:
    lines = [f"{info.id}  {info.problem or f'{info.title} ({info.messages})'}" for info in store.list()]
    return _up_to(lines) or "There are no sessions yet."


def _found(store: SessionStore, text: str) -> str:
    lines = [f"{hit.session.id}  {hit.excerpt}" for hit in store.search(text)]
    return _up_to(lines) or f'"{text}" occurs in no session.'


def _up_to(lines: list[str]) -> str:
    more = [f"… and {len(lines) - SHOWN} more"] if len(lines) > SHOWN else []
    return "\n".join(lines[:SHOWN] + more)


def resume(session: object, rest: str) -> str:
    """Go on with a saved conversation."""
    talk = _talk(session)
    if not rest:
        raise SessionError("which one? /sessions lists them: /resume ID")
    return talk.resume(SessionStore(talk.project.workspace).resolve(rest))


def new(session: object, rest: str) -> str:
    """Begin another conversation."""
    return _talk(session).resume(None)


def rename(session: object, rest: str) -> str:
    """Give the conversation a title."""
    conversation = _talk(session).conversation
    if rest:
        conversation.rename(rest)
    return f"Title: {conversation.title}" if conversation.title else "No title. /rename TITLE gives it one."


def export(session: object, rest: str) -> str:
    """Write the conversation to a file: Markdown, or JSON if its name ends like that."""
    talk = _talk(session)
    id = talk.session_id
    if id is None:
        raise SessionError("nothing has been saved yet that could be exported")
    path = write_export(SessionStore(talk.project.workspace), id, Path(rest or f"{id}.md"))
    return f"Wrote {path}."


def write_export(
    store: SessionStore, id: str, path: Path, replace: bool = False, as_json: bool | None = None
) -> Path:
    """Write a session to a file, as JSON or Markdown; by default JSON if its name ends in `.json`.

    Raises:
        SessionError: there is no such session, or the file exists and is not to be replaced.
        WorkspaceError: the file cannot be written.
    """
    target = path.expanduser()
    if target.exists() and not replace:
        raise SessionError(f"{target} exists: choose another name")
    chosen = target.suffix.casefold() == ".json" if as_json is None else as_json
    atomic_write_text(target, exported(store, id, chosen))
    return target


def exported(store: SessionStore, id: str, as_json: bool) -> str:
    """A session as JSON or Markdown, with the end of its last line."""
    conversation, _ = store.load(id)
    info = store.info(id)
    if as_json:
        return json.dumps(export_json(conversation, info), ensure_ascii=False, indent=2) + "\n"
    return export_markdown(conversation, info)


def session_ids(session: object) -> list[str]:
    """What may follow /resume."""
    return (
        [info.id for info in SessionStore(session.project.workspace).list()]
        if isinstance(session, Talk)
        else []
    )


def _talk(session: object) -> Talk:
    if not isinstance(session, Talk):
        raise SessionError("there is no conversation here that this could be done with")
    return session
