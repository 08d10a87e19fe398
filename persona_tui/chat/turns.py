"""A conversation's replies as the pictures want them: each with what it answers, and how it was spoken."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from persona_tui.chat.conversation import Conversation, Message, Node
from persona_tui.core.mix import Mix

_WHOLE = "stop"  # how a stretch ends whose last token is the end of the turn


@dataclass(frozen=True)
class Spoken:
    """A message, ready to be read again.

    Attributes:
        messages: what it answers, with the system prompt.
        reply: its token ids; its text, if it was typed or its tokens are not known.
        mixes: by token: what it was spoken with from that one on; empty if that is not known.
        rendering: how its conversation was rendered (`ModelWrapper.rendered_as`); None = that is not known.
    """

    messages: list[Message]
    reply: str | Sequence[int]
    mixes: Mapping[int, Mix] = field(default_factory=dict)
    rendering: Mapping[str, Any] | None = None


def turns_of(conversation: Conversation, until: int | None = None) -> list[tuple[list[Message], str]]:
    """Return every reply that has a word, each with what it answers, the system prompt included.

    Args:
        conversation: where they were said.
        until: a message, which is the last; None = the end of the path. A reply under way is left out.
    """
    return [(_asked(conversation, node), node.text.strip()) for node in replies_of(conversation, until)]


def replies_of(conversation: Conversation, until: int | None = None) -> list[Node]:
    """Return every reply that has a word; see `turns_of`."""
    nodes = conversation.path() if until is None else conversation.lineage(until)
    return [node for node in nodes if node.role == "assistant" and node.text.strip() and not node.writing]


def spoken(conversation: Conversation, id: int) -> Spoken:
    """Return a reply as it was spoken: its own tokens, with the mixes that its transcript has.

    What was typed, or has no record of its mixes, is a text without mixes.
    """
    node = conversation.node(id)
    if not node.runs or not all(run.settings.get("mix") for run in node.runs):
        return Spoken(_asked(conversation, node), node.text.strip())
    first = node.runs[0].settings
    system = first.get("system", conversation.system)
    asked = conversation.prompt(id, 0)[first.get("forgotten", 0) :]
    asked = [{"role": "system", "content": system}, *asked] if system else asked
    ids: list[int] = []
    mixes: dict[int, Mix] = {}
    for place, run in enumerate(node.runs):
        mixes[len(ids)] = Mix.from_record(run.settings["mix"], settled=True)
        mixes |= {len(ids) + each.index: Mix.from_record(each.mix, settled=True) for each in run.changes}
        tokens = conversation.run_tokens(id, place)
        ended = place < len(node.runs) - 1 and run.finish == _WHOLE
        ids += tokens[:-1] if ended else tokens
    if not ids:
        return Spoken(_asked(conversation, node), node.text.strip())
    return Spoken(asked, ids, mixes, first.get("rendering"))


def text_before(node: Node, place: int) -> str:
    """Return a reply's text up to one of its tokens."""
    begun = len(node.text) - sum(map(len, node.token_texts))
    return node.text[: begun + sum(map(len, node.token_texts[:place]))]


def _asked(conversation: Conversation, node: Node) -> list[Message]:
    system = [{"role": "system", "content": conversation.system}] if conversation.system else []
    return [*system, *conversation.messages(until=node.id)]
