"""A message of a conversation, read again token by token: what was projected, and where the floor acted.

A reply is read as it was written, with the mixes that its transcript has, so that the projections are those
of the writing. Where that cannot be done any more (a persona is gone, or another model wrote it), it is read
without any mix.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from persona_tui.core.errors import PersonaTuiError
from persona_tui.core.mix import Mix
from persona_tui.model import Message, TokenEvent

if TYPE_CHECKING:
    from persona_tui.chat import Conversation, Node
    from persona_tui.steering import SteeringEngine


@dataclass(frozen=True)
class Reread:
    """What came of reading a message again.

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
    """The conversation up to a message of the user's, which is the last one."""
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
