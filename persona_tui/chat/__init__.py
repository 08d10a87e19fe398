"""Conversations without a screen: a tree of messages, and a file that has all of it as it happened.

`chat.Chat` is what front ends stand on. Below it, whoever has replies of their own does this:

    store = SessionStore(workspace)
    log = store.create(model_name, fingerprint)     # the file begins with the first event
    conversation = Conversation(record=log.record)  # every change of it is an event
    conversation.add_user("Hello.")
    reply = conversation.begin_reply(settings)
    conversation.extend(reply, text, token_id)      # for every token; written in batches
    conversation.finish(reply, "stop", tokens=12)
    log.close()

    conversation, events = store.load(id)           # later
    log = store.open(id)
    conversation.record = log.record
"""

from persona_tui.chat.conversation import Change, Conversation, Node, Run
from persona_tui.chat.export import (
    export_json,
    export_markdown,
    floor_of_record,
    how_written,
    voice_of_record,
)
from persona_tui.chat.log import Event, SessionLog
from persona_tui.chat.prepare import FittedPrompt, fit_context
from persona_tui.chat.store import Found, SessionInfo, SessionStore

__all__ = [
    "Change",
    "Conversation",
    "Event",
    "FittedPrompt",
    "Found",
    "Node",
    "Run",
    "SessionInfo",
    "SessionLog",
    "SessionStore",
    "export_json",
    "export_markdown",
    "fit_context",
    "floor_of_record",
    "how_written",
    "voice_of_record",
]
