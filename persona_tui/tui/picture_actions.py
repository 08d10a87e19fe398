"""What opens the pictures: actions of the app. Their screens are imported when they open."""

from __future__ import annotations

from typing import TYPE_CHECKING

from textual import on

from persona_tui.chat.reread import text_before
from persona_tui.tui.drift_watch import DriftMeasured, DriftWatch
from persona_tui.tui.messages import ChoicesRead, HeatRead, MessageReread, ReplyEnded
from persona_tui.tui.stage import AppStage
from persona_tui.tui.sweeps import Sweeps
from persona_tui.tui.tints import Tints
from persona_tui.tui.widgets.token_view import TokenView

if TYPE_CHECKING:
    from persona_tui.tui.inspection import Inspection, TokenReading
    from persona_tui.tui.message_menu import MessageMenu
    from persona_tui.tui.replies import ReplyView


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
