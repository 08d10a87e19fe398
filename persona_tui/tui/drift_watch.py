"""Says in the chat when a reply has left the range of ordinary replies along the assistant axis.

A model that slips into a character moves along that axis first. Every reply is read once more when it has
ended, by the unsteered model, as the drift screen reads it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from textual.message import Message

from persona_tui.core.errors import PersonaTuiError
from persona_tui.tui.messages import LogLine

if TYPE_CHECKING:
    from persona_tui.chat import Conversation
    from persona_tui.chat.replies import ChatReply
    from persona_tui.pictures.drift import Drift
    from persona_tui.tui.stage import AppStage

AXIS = "assistant"


@dataclass
class DriftMeasured(Message):
    """A reply was read along the assistant axis."""

    conversation: Conversation
    node: int
    found: Drift


class DriftWatch:
    """Has replies read, and tells the first one of those in a row that are no ordinary ones."""

    def __init__(self, app: AppStage) -> None:
        self._app = app
        self._outside: dict[int, bool] = {}  # by reply
        self._conversation: Conversation | None = None

    def ended(self, reply: ChatReply) -> None:
        """Have a reply read that has ended, if there is an axis to read it along."""
        from persona_tui.chat.reread import turns_of

        project, conversation, node = self._app.project, self._app.chat.conversation, reply.node
        axes = project.personas.axes
        if axes is None or AXIS not in axes.names or node is None or reply.empty or reply.taken_back:
            return
        turns, post = turns_of(conversation, until=node)[-1:], self._app.post_message

        def work() -> None:
            from persona_tui.pictures.drift import drift

            try:
                post(DriftMeasured(conversation, node, drift(project.engine, turns, AXIS)))
            except PersonaTuiError as error:
                post(LogLine(f"the reply was not read along the {AXIS} axis: {error}"))

        self._app.worker.submit_turn(work)

    def measured(self, message: DriftMeasured) -> None:
        """Say so if a reply has left the ordinary range, and the one before had not."""
        conversation, found = message.conversation, message.found
        if conversation is not self._app.chat.conversation or not found.readings or found.ordinary is None:
            return
        if conversation is not self._conversation:
            self._conversation, self._outside = conversation, {}
        outside = self._outside[message.node] = found.is_outside(found.readings[0])
        lineage = conversation.lineage(message.node)[:-1]
        before = next((node.id for node in reversed(lineage) if node.role == "assistant"), 0)
        if outside and not self._outside.get(before, False):
            low, high = found.ordinary
            self._app.say(
                f"Reply #{message.node} is at {found.readings[0]:+.2f}σ on the assistant axis, outside of "
                f"where 95% of ordinary replies lie ({low:+.2f} to {high:+.2f}σ). "
                f"{self._advice(below=found.readings[0] < low)}/drift shows the way."
            )

    def _advice(self, below: bool) -> str:
        """Say what can be done: a floor holds back what sinks, and nothing else."""
        app = self._app
        engine, mix = app.project.loaded_engine, app.chat.mix
        if not below or engine is None:
            return ""
        if mix.capping:
            return "Capping is on. " if engine.floor_of(mix) is not None else f"{engine.unenforced(mix)} "
        return f"{app.key_label('cap')} caps from here on. "
