"""Slash commands about the conversation: branches, answers side by side, saved sessions."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from persona_tui.chat.command import Command
from persona_tui.chat.conversation import Conversation, Node
from persona_tui.chat.export import write_export
from persona_tui.chat.replies import LETTERS
from persona_tui.chat.store import SessionStore
from persona_tui.chat.voice import parse_settings
from persona_tui.core.errors import PersonaTuiError, SessionError

if TYPE_CHECKING:
    from persona_tui.chat.chat import Chat

SHOWN = 20  # sessions, or places that were found

_STEPS = {"next": 1, "prev": -1, "previous": -1}


def _regenerate(chat: Chat, rest: str) -> str:
    number, _ = _numbered(rest)
    return chat.write(chat.regenerate(number))


def _go_on(chat: Chat, rest: str) -> str:
    return chat.write(chat.go_on())


def _edit(chat: Chat, rest: str) -> str:
    number, text = _numbered(rest)
    if not text:
        raise SessionError("something is missing: /edit [#N] TEXT")
    old = number if number is not None else _last_said(chat.conversation).id
    reply = chat.edit(old, text)
    return chat.write(reply) if reply is not None else f"Edited #{old}."


def _branch(chat: Chat, rest: str) -> str:
    """Show the messages and where they branch, go to the next or previous sibling, or to a message."""
    conversation = chat.conversation
    number, step = _numbered(rest)
    if number is None and not step:
        return _outline(conversation)
    if not step:
        chat.go_to(conversation.node(number or 0).id)
        return _outline(conversation)
    if step.casefold() not in _STEPS:
        raise SessionError(f'next or prev, not "{step}": /branch [#N] [next|prev]')
    here = number if number is not None else _last_branching(conversation).id
    chat.walk(here, _STEPS[step.casefold()])
    return _outline(conversation)


def _outline(conversation: Conversation) -> str:
    """Return the path, a line per message: its number, who, which of how many siblings, how it begins."""
    lines = [_outlined(conversation, node) for node in conversation.path()]
    return "\n".join(lines) or "Nothing has been said yet."


def _outlined(conversation: Conversation, node: Node) -> str:
    index, count = conversation.siblings(node.id)
    which = f" ({index + 1} of {count})" if count > 1 else ""
    who = "you" if node.role == "user" else "model"
    return f"#{node.id} {who}{which}: {_shortened(node.text)}"


def _shortened(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= 56 else f"{line[:55]}…"


def _numbered(rest: str) -> tuple[int | None, str]:
    """Return the number in `#3 some text`, None if there is none, and the text."""
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


# Side by side -----------------------------------------------------------------------------------------------


def _compare(chat: Chat, rest: str) -> str:
    mixes, question = parse_settings(rest, chat.mix, chat.project.personas.list_loaded())
    return chat.write(chat.compare(mixes, question))


def _keep(chat: Chat, rest: str) -> str:
    letter = rest.strip().upper()
    if letter not in tuple(LETTERS):
        raise PersonaTuiError(f'/keep A or /keep B, not "{rest}"')
    return chat.keep(LETTERS.index(letter))


# Sessions ---------------------------------------------------------------------------------------------------


def _sessions(chat: Chat, rest: str) -> str:
    return _found(chat.store, rest) if rest else _listed(chat.store)


def _listed(store: SessionStore) -> str:
    lines = [f"{info.id}  {info.problem or f'{info.title} ({info.messages})'}" for info in store.list()]
    return _up_to(lines) or "There are no sessions yet."


def _found(store: SessionStore, text: str) -> str:
    lines = [f"{hit.session.id}  {hit.excerpt}" for hit in store.search(text)]
    return _up_to(lines) or f'No chat contains "{text}".'


def _up_to(lines: list[str]) -> str:
    more = [f"… and {len(lines) - SHOWN} more"] if len(lines) > SHOWN else []
    return "\n".join(lines[:SHOWN] + more)


def _resume(chat: Chat, rest: str) -> str:
    if not rest:
        raise SessionError("which one? /sessions lists them: /resume ID")
    return chat.resume(chat.store.resolve(rest))


def _new(chat: Chat, rest: str) -> str:
    return chat.new()


def _rename(chat: Chat, rest: str) -> str:
    if rest:
        chat.rename(rest)
    title = chat.conversation.title
    return f"Title: {title}" if title else "No title. /rename TITLE gives it one."


def _export(chat: Chat, rest: str) -> str:
    """Write the conversation to a file: Markdown, or JSON if its name ends like that."""
    id = chat.session_id
    if id is None:
        raise SessionError(
            "nothing has been said yet that could be exported"
            if chat.saves
            else "this conversation is not saved, so it cannot be exported"
        )
    return f"Wrote {write_export(chat.store, id, Path(rest or f'{id}.md'))}."


def _session_ids(chat: Chat) -> list[str]:
    return [info.id for info in chat.store.list()]


def _letters(_: Chat) -> tuple[str, ...]:
    return tuple(LETTERS)


CONVERSATION: tuple[Command, ...] = (
    Command("regenerate", "/regenerate [#N]", "write the reply again; both are kept", _regenerate),
    Command("continue", "/continue", "continue the last reply", _go_on),
    Command("edit", "/edit [#N] TEXT", "say something else instead; both are kept", _edit),
    Command(
        "branch",
        "/branch [#N] [next|prev]",
        "the messages and their branches; walk",
        _branch,
        lambda _: ("next", "prev"),
    ),
    Command("sessions", "/sessions [TEXT]", "saved conversations, or those containing TEXT", _sessions),
    Command(
        "resume",
        "/resume ID",
        "resume a saved conversation",
        _resume,
        _session_ids,
    ),
    Command("new", "/new", "start another conversation", _new),
    Command("rename", "/rename TITLE", "give the conversation a title", _rename),
    Command("export", "/export [FILE]", "write the conversation: .md or .json", _export),
    Command(
        "compare",
        "/compare [A vs B] [TEXT]",
        "side by side; A: persona=sage,strength=0.3",
        _compare,
    ),
    Command("keep", "/keep A|B", "keep one of the compared answers", _keep, _letters),
)
