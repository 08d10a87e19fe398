"""Pictures: the actions that open them, and what watches for drift. Screens are imported when they open."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import TYPE_CHECKING

from textual import on
from textual.message import Message

from persona_tui.chat.reread import text_before
from persona_tui.core.errors import PersonaTuiError
from persona_tui.tui.messages import ChoicesRead, HeatRead, LogLine, MessageReread, ReplyEnded
from persona_tui.tui.stage import AppStage
from persona_tui.tui.sweeps import Sweeps
from persona_tui.tui.tints import Tints
from persona_tui.tui.widgets.token_view import TokenView

if TYPE_CHECKING:
    from persona_tui.chat import Conversation
    from persona_tui.chat.replies import ChatReply
    from persona_tui.tui.inspection import Inspection, TokenReading
    from persona_tui.tui.message_menu import MessageMenu
    from persona_tui.tui.replies import ReplyView

AXIS = "assistant"


@dataclass
class DriftMeasured(Message):
    """A reply was read again along the assistant axis."""

    conversation: Conversation
    node: int
    readings: Sequence[float | None]  # by token, in σ of ordinary replies


class DriftWatch:
    """Says in the chat when a reply has sunk below the range of ordinary replies along the assistant axis.

    A model that slips into a character moves down that axis first; above the range it is more of an assistant
    than usual, which is no sign of anything. Where a reply was is known from the pass that wrote it, token by
    token, steering and floor included. One of which that is not known for every token, such as a reply of a
    resumed session that goes on, is read again, as it was spoken. Only the first of several such replies in a
    row is told.
    """

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
        engine = self._app.project.engine
        axes = engine.personas.axes
        ordinary = None if axes is None else axes.ordinary_range(AXIS, engine.capping_layers)
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


class PictureActions(AppStage):
    """The actions that show what steering does."""

    inspection: Inspection
    menu: MessageMenu
    replies: ReplyView

    def __init__(self) -> None:
        super().__init__()
        self.sweeps = Sweeps(self)
        self.drift_watch = DriftWatch(self)
        self.tints = Tints(self)

    def action_map(self) -> None:
        """Show where the personas lie."""
        self.attempt(self._show_map)

    def _show_map(self) -> None:
        self.check_model()
        from persona_tui.tui.screens.map import MapScreen

        if not isinstance(self.screen, MapScreen):
            self.push_screen(MapScreen())

    def action_drift(self) -> None:
        """Show where the conversation drifts."""
        self.attempt(self._show_drift)

    def _show_drift(self) -> None:
        self.check_model()
        from persona_tui.tui.screens.drift import DriftScreen

        if not isinstance(self.screen, DriftScreen):
            self.push_screen(DriftScreen())

    def action_heat(self) -> None:
        """Show the marked reply, or the last one, layer by layer."""
        self.attempt(self._show_heat)

    def _show_heat(self) -> None:
        self.check_model()
        from persona_tui.tui.screens.heat import HeatScreen

        if not isinstance(self.screen, HeatScreen):
            self.push_screen(HeatScreen(self._reply_in_hand()))

    def _reply_in_hand(self) -> int | None:
        """Return the reply that is marked in the chat, else the last one that has a word."""
        marked = self.main.chat.marked
        if marked is not None and marked.role == "assistant" and marked.key is not None:
            return marked.key
        said = [
            node for node in self.chat.conversation.path() if node.role == "assistant" and not node.writing
        ]
        return next((node.id for node in reversed(said) if node.text.strip()), None)

    @on(ReplyEnded)
    def _reply_to_watch(self, message: ReplyEnded) -> None:
        reply, node = message.reply, message.reply.node
        if message.error is None and node is not None:
            self.attempt(lambda: self.drift_watch.ended(reply, self.readings(node)))

    def readings(self, message: int) -> list[TokenReading]:
        """Return what was measured of a reply's tokens while it was written."""
        return self.inspection.read(message)

    @on(DriftMeasured)
    def _drift_measured(self, message: DriftMeasured) -> None:
        self.drift_watch.measured(message)

    def action_tint(self) -> None:
        """Tint replies by the next thing in turn."""
        self.attempt(lambda: self.notify(self.tints.turn(self.replies, self.inspection), title="Tint"))

    def tint(self, mode: str) -> None:
        """Tint replies by something; "" = the next in turn."""
        self.notify(self.tints.turn(self.replies, self.inspection, mode.casefold()), title="Tint")

    @on(MessageReread)
    def _readings_came(self, _: MessageReread) -> None:
        if self.tints.mode != "off":
            self.tints.apply(self.inspection)

    @on(ChoicesRead)
    def _choices_read(self, message: ChoicesRead) -> None:
        self.inspection.choices_read(message)
        if self.tints.mode != "off":
            self.tints.apply(self.inspection)

    @on(HeatRead)
    def _heat_read(self, message: HeatRead) -> None:
        self.inspection.heat_read(message)

    @on(TokenView.Picked)
    def _token_picked(self, message: TokenView.Picked) -> None:
        self.attempt(lambda: self._ask_instead(message.place))

    def _ask_instead(self, place: int) -> None:
        """Ask what a reply should say in place of a token, and go on from there."""
        from persona_tui.tui.screens.fork import ForkScreen
        from persona_tui.tui.screens.inspector import InspectorScreen

        node, place = self.inspection.token_in_hand(place)
        choices = self.inspection.choices_of(node)
        choice = choices[place] if place < len(choices) else None

        def answered(text: str | None) -> None:
            if text is None:
                return
            if isinstance(self.screen, InspectorScreen):
                self.screen.dismiss()
            self.attempt(lambda: self.menu.fork(node, place, text))
            self.main.set_focus(self.main.prompt)

        self.push_screen(ForkScreen(text_before(node, place), node.token_texts[place], choice), answered)

    def action_cap(self) -> None:
        """Cap from here on, if that is not so already, and say what that comes to."""
        self.attempt(self._cap)

    def _cap(self) -> None:
        self.check_model()
        if not self.chat.mix.capping:
            self.chat.change_mix(capping=True)
        engine, mix = self.project.engine, self.chat.mix
        floor = engine.floor_of(mix)
        where = f"Capping from here on: the floor is on the {floor.axis} axis." if floor is not None else ""
        self.say(engine.unenforced(mix) or where)

    def action_sweep(self) -> None:
        """Show the last sweep, or answer the last message at five strengths."""
        self.attempt(self.sweeps.open)

    def sweep(self, prompt: str) -> None:
        """Answer a prompt at five strengths."""
        self.sweeps.open(prompt)
