"""A session for others to read: Markdown for people, chat messages in JSON for programs."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from persona_tui import __version__
from persona_tui.chat.conversation import Conversation, Node
from persona_tui.chat.store import SessionInfo, SessionStore
from persona_tui.chat.voice import capping_in_words
from persona_tui.core.files import atomic_write_text, check_free

_ENDINGS = {
    "cancelled": "stopped",
    "refused": "ended by the guard",
    "length": "cut off at the longest length",
    "failed": "ended by an error",
    "interrupted": "ended when the program ended",
}


def voice_of_record(mix: Mapping[str, Any] | None) -> str:
    """Who speaks and how loud, as a transcript has it: `sage 0.30`, or "assistant" for nobody in particular.

    What is unusual about the floor is added: `sage 0.30 · capping off`.
    """
    mix = mix or {}
    weights = {name: weight for name, weight in (mix.get("weights") or {}).items() if weight}
    alone = len(weights) == 1
    names = [name if alone and weight > 0 else f"{name}:{weight:g}" for name, weight in weights.items()]
    who = f"{','.join(names)} {mix.get('strength', 0):.2f}" if names else "assistant"
    return f"{who} · {floor_of_record(mix)}" if mix else who


def floor_of_record(mix: Mapping[str, Any]) -> str:
    """Return what a transcript says of the floor: `capping assistant 25%`, `capping off` or `no floor to cap
    at`.
    """
    if floor := mix.get("floor"):
        return f"capping {floor['axis']} {floor['percentile']:g}%"
    return capping_in_words(bool(mix.get("capping")), capped=False)


def export_json(conversation: Conversation, info: SessionInfo) -> dict[str, Any]:
    """Return a session as one JSON object.

    `messages` are the path's, as chat programs and training code have them. `settings` says by message, as
    its place in `messages`, how it was written. `tree` has all messages, those of other branches, too.
    """
    path = [node for node in conversation.path() if node.text.strip()]
    front = [{"role": "system", "content": conversation.system}] if conversation.system else []
    return {
        "id": info.id,
        "title": info.title,
        "model": info.model,
        "fingerprint": info.fingerprint,
        "created": info.created,
        "program": f"persona-tui {__version__}",
        "messages": front + [{"role": node.role, "content": node.text.strip()} for node in path],
        "settings": {
            str(place): [asdict(run) for run in node.runs]
            for place, node in enumerate(path, len(front))
            if node.runs
        },
        "tree": [
            {"id": node.id, "parent": node.parent, "role": node.role, "content": node.text}
            for node in conversation.nodes()
        ],
    }


def export_markdown(conversation: Conversation, info: SessionInfo) -> str:
    """Return the path as Markdown, with a ruler where another mix took effect."""
    parts = [f"# {info.title}", f"*{info.model} · {info.created[:16].replace('T', ' ')} UTC · {info.id}*"]
    if conversation.system:
        parts.append(f"> **System:** {_quoted(conversation.system)}")
    for node in conversation.path():
        if node.text.strip():
            parts += ["## You", node.text.strip()] if node.role == "user" else _reply(node)
    return "\n\n".join(parts) + "\n"


def _reply(node: Node) -> list[str]:
    heading = voice_of_record(node.runs[0].settings.get("mix")) if node.runs else "assistant, edited"
    parts, begun = [f"## {heading}"], 0
    for place, mix in node.rulers():
        parts += [node.text[begun:place].strip(), "---", f"*from here: {voice_of_record(mix)}*"]
        begun = place
    parts.append(node.text[begun:].strip())
    if how := how_written(node):
        parts.append(f"*{how}*")
    return [part for part in parts if part]


def how_written(node: Node) -> str:
    """Return how a reply went, in one line: `seed 7 · temperature 0.7 · 57 tokens · stopped`."""
    if not node.runs:
        return ""
    sampling = node.runs[-1].settings.get("sampling", {})
    said = [f"{name} {sampling[name]}" for name in ("seed", "temperature") if sampling.get(name) is not None]
    said.append(f"{len(node.token_ids)} tokens")
    return " · ".join([*said, *filter(None, [_ENDINGS.get(node.finish or "")])])


def _quoted(text: str) -> str:
    return "\n> ".join(text.strip().splitlines())


def write_export(
    store: SessionStore, id: str, path: Path, replace: bool = False, as_json: bool | None = None
) -> Path:
    """Write a chat to a file, as JSON or Markdown; by default JSON if its name ends in `.json`.

    Raises:
        SessionError: there is no such chat.
        WorkspaceError: the file exists and is not to be replaced, or cannot be written.
    """
    target = path.expanduser()
    if not replace:
        check_free(target)
    chosen = target.suffix.casefold() == ".json" if as_json is None else as_json
    atomic_write_text(target, exported(store, id, chosen))
    return target


def exported(store: SessionStore, id: str, as_json: bool) -> str:
    """Return a chat as JSON or Markdown, with the end of its last line; half a character becomes a "?"."""
    conversation, _ = store.load(id)
    info = store.info(id)
    if as_json:
        text = json.dumps(export_json(conversation, info), ensure_ascii=False, indent=2) + "\n"
    else:
        text = export_markdown(conversation, info)
    return text.encode("utf-8", "replace").decode("utf-8")
