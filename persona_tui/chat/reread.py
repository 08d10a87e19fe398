"""The messages of a conversation with what they answer, and read again token by token.

A reply is read as it was written, with the mixes that its transcript has, so that the projections are those
of the writing. Where that cannot be done any more (a persona is gone, or another model wrote it), it is read
without any mix.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from persona_tui.chat.conversation import Conversation, Message, Node
from persona_tui.core.errors import PersonaTuiError
from persona_tui.core.mix import Mix

if TYPE_CHECKING:  # torch is not imported before a message is read
    from persona_tui.model import TokenEvent
    from persona_tui.steering import SteeringEngine

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


@dataclass(frozen=True)
class Reread:
    """The result of reading a message again.

    Attributes:
        events: one per token, in order, with projections and what the floor did.
        missing: what a reply was written with and not read with, in a few words; "" = nothing.
        own_tokens: whether the tokens are those of the transcript; False = its text was tokenized again.
    """

    events: list[TokenEvent]
    missing: str = ""
    own_tokens: bool = True


def reread(engine: SteeringEngine, conversation: Conversation, id: int) -> Reread:
    """Read a message again, in one pass, or a few where its mix changed.

    A reply's tokens are read at the position that chose them, as while it was written; those of a message of
    the user's at their own position, without any mix.

    Raises:
        GenerationError: it does not fit the context, or memory ran out.
        VectorFileError: the axes' file cannot be used.
    """
    node = conversation.node(id)
    if node.role == "user":
        return Reread(engine.reread_message(_up_to(conversation, node), conversation.system or None))
    models = {run.settings.get("fingerprint", engine.model.fingerprint) for run in node.runs}
    if models != {engine.model.fingerprint}:
        said = conversation.messages(until=id)
        events = engine.reread_reply(said, node.text.strip(), system=conversation.system or None)
        return Reread(events, "its model" if models else "", own_tokens=False)
    found = [_reread_run(engine, conversation, node, place) for place in range(len(node.runs))]
    return Reread(
        [event for each in found for event in each.events],
        next((each.missing for each in found if each.missing), ""),
    )


def _up_to(conversation: Conversation, node: Node) -> list[Message]:
    """Return the conversation up to a message of the user's, which is the last one."""
    said = conversation.messages(until=node.id)
    if said and said[-1]["role"] == "user":
        return [*said[:-1], {"role": "user", "content": f"{said[-1]['content']}\n\n{node.text}"}]
    return [*said, {"role": "user", "content": node.text}]


def _reread_run(engine: SteeringEngine, conversation: Conversation, node: Node, place: int) -> Reread:
    """One stretch of a reply."""
    run, tokens = node.runs[place], conversation.run_tokens(node.id, place)
    if not tokens:
        return Reread([])
    messages = conversation.prompt(node.id, place)[run.settings.get("forgotten", 0) :]
    system, missing = run.settings.get("system"), ""
    recorded = {0: run.settings.get("mix") or {}, **{change.index: change.mix for change in run.changes}}
    with engine.model.rendered_as(run.settings.get("rendering")):
        try:
            mixes = {index: Mix.from_record(mix, settled=True) for index, mix in recorded.items()}
            events = engine.reread_reply(messages, tokens, mixes, system)
        except PersonaTuiError:
            events, missing = engine.reread_reply(messages, tokens, system=system), "its mix"
    return Reread([replace(event, index=run.start + event.index) for event in events], missing)
