"""A message of a conversation, read again token by token: what was projected, and where the floor acted.

A reply is read as it was written, with the mixes that its transcript has, so that the projections are those
of the writing. Where that cannot be done any more (a persona is gone), it is read without any mix.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from persona_tui.errors import PersonaTuiError
from persona_tui.model import Message, TokenEvent
from persona_tui.steering.mix import Mix

if TYPE_CHECKING:
    from persona_tui.sessions import Conversation, Node, Run
    from persona_tui.steering import SteeringEngine


@dataclass(frozen=True)
class Reread:
    """What came of reading a message again.

    Attributes:
        events: one per token, in order, with projections and what the floor did.
        steered: whether a reply was read with what it was written with; True also if that was nothing.
    """

    events: list[TokenEvent]
    steered: bool = True


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
    if not node.runs:
        said = conversation.messages(until=id)
        return Reread(engine.reread_reply(said, node.text.strip(), system=conversation.system or None))
    events, steered = list[TokenEvent](), True
    for place, run in enumerate(node.runs):
        tokens = conversation.run_tokens(id, place)
        messages = conversation.prompt(id, place)[run.settings.get("forgotten", 0) :]
        found = _reread_run(engine, run, messages, tokens) if tokens else Reread([])
        events += [replace(event, index=run.start + event.index) for event in found.events]
        steered = steered and found.steered
    return Reread(events, steered)


def _up_to(conversation: Conversation, node: Node) -> list[Message]:
    """The conversation up to a message of the user's, which is the last one."""
    said = conversation.messages(until=node.id)
    if said and said[-1]["role"] == "user":
        return [*said[:-1], {"role": "user", "content": f"{said[-1]['content']}\n\n{node.text}"}]
    return [*said, {"role": "user", "content": node.text}]


def _reread_run(
    engine: SteeringEngine, run: Run, messages: Sequence[Message], tokens: Sequence[int]
) -> Reread:
    system = run.settings.get("system")
    recorded = {0: run.settings.get("mix") or {}, **{change.index: change.mix for change in run.changes}}
    try:
        mixes = {index: Mix.from_record(mix, settled=True) for index, mix in recorded.items()}
        return Reread(engine.reread_reply(messages, tokens, mixes, system))
    except PersonaTuiError:
        return Reread(engine.reread_reply(messages, tokens, system=system), steered=False)
