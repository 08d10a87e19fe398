"""Says in the chat when a reply has sunk below the range of ordinary replies along the assistant axis.

A model that slips into a character moves down that axis first; above the range it is more of an assistant
than usual, which is no sign of anything. Where a reply was is known from the pass that wrote it, token by
token, steering and floor included. One of which that is not known for every token, such as a reply of a
resumed session that goes on, is read again, as it was spoken.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import TYPE_CHECKING

from textual.message import Message

from persona_tui.core.errors import PersonaTuiError
from persona_tui.tui.messages import LogLine

if TYPE_CHECKING:
    from persona_tui.chat import Conversation
    from persona_tui.chat.replies import ChatReply
    from persona_tui.tui.inspection import TokenReading
    from persona_tui.tui.stage import AppStage

AXIS = "assistant"


@dataclass
class DriftMeasured(Message):
    """A reply was read again along the assistant axis."""

    conversation: Conversation
    node: int
    readings: Sequence[float | None]  # by token, in σ of ordinary replies


class DriftWatch:
    """Tells the first one of replies in a row that are no ordinary ones."""

    def __init__(self, app: AppStage) -> None:
        self._app = app
        self._below: dict[int, bool] = {}  # by reply: whether it was below the ordinary range
        self._conversation: Conversation | None = None

    def ended(self, reply: ChatReply, readings: Sequence[TokenReading]) -> None:
        """Look at a reply that has ended, if there is an axis to read it along.

        Args:
            reply: in the conversation, or none of the conversation's.
            readings: what is known of its tokens.
        """
        conversation, node = self._app.chat.conversation, reply.node
        axes = self._app.project.personas.axes
        if axes is None or AXIS not in axes.names or node is None or reply.empty or reply.taken_back:
            return
        if len(readings) == len(conversation.node(node).token_ids):
            self._read(conversation, node, [each.projections.get(AXIS) for each in readings])
        else:
            self._reread(conversation, node)

    def _reread(self, conversation: Conversation, node: int) -> None:
        project, post = self._app.project, self._app.post_message

        def work() -> None:
            from persona_tui.chat.reread import reread

            try:
                events = reread(project.engine, conversation, node).events
                post(DriftMeasured(conversation, node, [event.projections.get(AXIS) for event in events]))
            except PersonaTuiError as error:
                post(LogLine(f"the reply was not read along the {AXIS} axis: {error}"))

        self._app.worker.submit_turn(work)

    def measured(self, message: DriftMeasured) -> None:
        """Take note of where a reply was that has been read again."""
        if message.conversation is self._app.chat.conversation:
            self._read(message.conversation, message.node, message.readings)

    def _read(self, conversation: Conversation, node: int, readings: Sequence[float | None]) -> None:
        """Say so if a reply was below the ordinary range, and the one before was not."""
        from persona_tui.pictures.drift import ordinary_range

        ordinary = ordinary_range(self._app.project.engine, AXIS)
        known = [each for each in readings if each is not None]
        if not known or ordinary is None:
            return
        if conversation is not self._conversation:
            self._conversation, self._below = conversation, {}
        reading = fmean(known)
        below = self._below[node] = reading < ordinary[0]
        lineage = conversation.lineage(node)[:-1]
        before = next((each.id for each in reversed(lineage) if each.role == "assistant"), 0)
        if below and not self._below.get(before, False):
            low, high = ordinary
            self._app.say(
                f"Reply #{node} was spoken at {reading:+.2f}σ on the assistant axis, below where 95% of "
                f"ordinary replies lie ({low:+.2f} to {high:+.2f}σ). {self._advice()}/drift shows the way."
            )

    def _advice(self) -> str:
        """Say what can be done: a floor holds it back."""
        app = self._app
        engine, mix = app.project.loaded_engine, app.chat.mix
        if engine is None:
            return ""
        if mix.capping:
            return "Capping is on. " if engine.floor_of(mix) is not None else f"{engine.unenforced(mix)} "
        return f"{app.key_label('cap')} caps from here on. "
