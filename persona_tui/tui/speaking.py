"""Writes replies into the chat: starts them, drains their tokens ten times a second, ends them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from textual.timer import Timer

from persona_tui.chat import Conversation, Node
from persona_tui.core.errors import PersonaTuiError, SessionError
from persona_tui.monitors.guard import verdict_of
from persona_tui.tui import collector
from persona_tui.tui.blocks import Badge, Heading, MessageBlock
from persona_tui.tui.context import Context
from persona_tui.tui.fluency import FluencyMeter
from persona_tui.tui.messages import TurnEnded
from persona_tui.tui.transcript import (
    Scene,
    breach_badges,
    faders_of,
    heading_of,
    sync,
    verdict_badge,
)
from persona_tui.tui.turn import Turn, write
from persona_tui.tui.widgets.trace import Reading
from persona_tui.tui.writing import Writing

if TYPE_CHECKING:
    from persona_tui.model.wrapper import TokenEvent
    from persona_tui.tui.app import PersonaApp

DRAIN = 0.1  # seconds; painting every token makes keys wait
IDLE = 2.0  # seconds after a reply until the garbage collector may run

_BUSY = "A reply is being written. Stop it with esc, or wait."


@dataclass
class _Reply:
    """What is on the screen of the reply that is being written."""

    turn: Turn
    block: MessageBlock
    timer: Timer
    writing: Writing | None = None  # once it is known what it began with
    verdicts: dict[str, Badge] = field(default_factory=dict)  # a guard's latest, about message and reply
    breaches: list[str] = field(default_factory=list)  # of a policy, so far


class Speaker:
    """Owns the conversation and the reply that is being written."""

    def __init__(self, app: PersonaApp) -> None:
        self._app = app
        self.conversation = Conversation()
        self.sampling: dict[str, Any] = {}
        self.fluency = FluencyMeter()
        self.context = Context(app)
        self.last: Turn | None = None
        self._reply: _Reply | None = None

    @property
    def busy(self) -> bool:
        """Whether a reply is being written, or waits for the model; or two of them are, side by side."""
        return self._reply is not None or self._app.comparing.busy

    def check_free(self) -> None:
        """Raise an error that says so if a reply is being written."""
        if self.busy:
            raise PersonaTuiError(_BUSY)

    def check_idle(self) -> None:
        """Raise an error that says so if a reply is being written, or one of two has to be chosen."""
        self.check_free()
        self._app.comparing.check_settled()

    # --- starting

    def send(self, text: str) -> None:
        """Take what the user says and have it answered."""
        self.check_idle()
        self._app.switching.check_model()
        self._app.saving.begin()
        self.conversation.add_user(text)
        self.write(self.conversation.begin_reply())

    def regenerate(self, key: int | None = None) -> None:
        """Have a message answered anew, by default the last; what was said before is kept beside it."""
        self.check_idle()
        self.write(self.conversation.regenerate(key))

    def go_on(self) -> None:
        """Have the last reply continued."""
        self.check_idle()
        self.write(self.conversation.continue_reply())

    def write(self, key: int) -> None:
        """Write a reply that was begun in the conversation."""
        app = self._app
        self.show()
        turn = Turn(self.conversation, key, dict(self.sampling))
        block = next(block for block in app.main.chat.messages if block.key == key)
        self._reply = _Reply(turn, block, app.set_interval(DRAIN, self._drain))
        self.last = turn
        block.set_heading(self._heading("…" if app.model_ready else "waiting for the model"))
        app.main.chat.rearrange()
        app.main.chat.follow()
        self.begin_measuring()
        app.worker.submit_turn(self._work(turn), turn.stop)
        app.show_status()

    def _work(self, turn: Turn) -> Callable[[], None]:
        """Return what the model's thread does; it ends with one message, whatever happens."""
        project, post = self._app.project, self._app.post_message

        def work() -> None:
            error: Exception | None = None
            try:
                write(project, turn)
            except Exception as problem:
                error = problem
            post(TurnEnded(turn, error))

        return work

    def show(self) -> None:
        """Show the conversation as it is now."""
        sync(self._app.main.chat, self.conversation)

    # --- writing

    def _drain(self) -> None:
        """Show what has been written since the last time."""
        if self._reply is None or not self._app.is_running:  # the timer may tick while the app is closing
            return
        events = self._reply.turn.drain()
        if events and self._reply.turn.run is not None:  # it is taken back when it was stopped before a word
            self._write_down(self._reply, events)
            self.measure(events)
            self._judge(self._reply, events)
            self._reply.block.set_heading(self._heading("…"))
            self._app.main.chat.rearrange()
            self._app.show_status()

    def _write_down(self, reply: _Reply, events: Sequence[TokenEvent]) -> None:
        """Add tokens to the reply, with a ruler before the first one of every new mix."""
        run = reply.turn.run
        assert run is not None
        if reply.writing is None:
            reply.writing = Writing(reply.block, faders_of(run))
        reply.writing.take(events, run.changes)
        self._app.inspecting.take(reply.turn.reply, run.start, events)

    def begin_measuring(self) -> None:
        """Clear the trace and the fluency gauge for another reply."""
        self._app.main.trace.clear()
        self.fluency.clear()
        collector.pause()

    def measure(self, events: Sequence[TokenEvent]) -> None:
        """Draw tokens of the reply in the trace and the fluency gauge."""
        trace = self._app.main.trace
        for event in events:
            if event.token_id >= 0:
                trace.add(Reading(event.projections, event.capped))
                self.fluency.add(event.text, event.entropy)
        trace.refresh()
        self._app.show_fluency()

    def _judge(self, reply: _Reply, events: Sequence[TokenEvent]) -> None:
        """Take in what a guard and a policy say; what they say of the message is shown there."""
        from persona_tui.monitors.events import breaches_of

        for event in events:
            if (verdict := verdict_of(event)) is not None:
                reply.verdicts[verdict.about] = verdict_badge(verdict)
            reply.breaches += [breach.badge for breach in breaches_of(event)]
        badge = reply.verdicts.get("message")
        if badge is None:
            return
        asked = self.conversation.node(reply.turn.reply).parent
        block = next((each for each in self._app.main.chat.messages if each.key == asked), None)
        if block is not None:
            heading = heading_of(
                self.conversation.node(asked or 0), Scene(*self.conversation.siblings(asked or 0))
            )
            block.set_heading(replace(heading, badges=[badge]))

    def _heading(self, note: str | None = None) -> Heading:
        assert self._reply is not None
        node = self.conversation.node(self._reply.turn.reply)
        heading = heading_of(node, Scene(*self.conversation.siblings(node.id)), note)
        said = [badge for about, badge in self._reply.verdicts.items() if about == "reply"]
        return replace(heading, badges=[*said, *breach_badges(self._reply.breaches)])

    # --- ending

    def stop(self) -> bool:
        """End the reply after the present token; whether there was one."""
        if self._reply is None:
            return self._app.comparing.stop()
        turn = self._reply.turn
        if not turn.stop.is_set():
            turn.stop.set()
            self._note_stop(turn)
        return True

    def _note_stop(self, turn: Turn) -> None:
        """Write down where a reply was stopped: hardly a token follows."""
        with suppress(SessionError):  # a full disk keeps nobody from stopping; the reply's end reports it
            if self.conversation.record is not None:
                self.conversation.record("stop", node=turn.reply)

    def ended(self, turn: Turn, error: Exception | None) -> None:
        """Take note that the model's thread is done with a reply."""
        reply = self._reply
        if reply is None or reply.turn is not turn:
            return
        self._drain()
        self._reply = None
        reply.timer.stop()
        self.show()
        self._say_how_it_went(turn, error)
        self._app.inspecting.show()
        self.end_measuring()
        self._app.show_status()

    def end_measuring(self) -> None:
        """Take note that the reply that was measured has ended."""
        self.fluency.finish(steered=bool(self._app.voice.faders.speaking))
        collector.resume()
        self._app.set_timer(IDLE, self._collect)

    def _say_how_it_went(self, turn: Turn, error: Exception | None) -> None:
        chat = self._app.main.chat
        if error is not None:
            self._app.show_error(error)
        elif turn.run is None:
            chat.note("Stopped before the first word.")
        elif not self.conversation.node(turn.reply).text.strip() and turn.finish != "refused":
            chat.note("It said nothing.")
        self.context.turn_ended(turn)

    def _collect(self) -> None:
        if not self.busy:
            collector.collect()

    def kept(self) -> None:
        """Show a reply that has come into the conversation otherwise, and go on from there."""
        engine = self._app.project.loaded_engine
        if engine is not None and (present := engine.describe(engine.mix)) != self.conversation.mix:
            self.conversation.change_mix(present)
        self.last = None
        self.context.opened(self.last_reply)
        self.show()
        self._app.main.chat.follow()
        self._app.inspecting.show()
        self._app.show_status()

    def forget_model(self) -> None:
        """Forget what was measured on a model that is not in use any more."""
        self.fluency = FluencyMeter()
        self._app.main.trace.clear()

    # --- another conversation

    def take(self, conversation: Conversation) -> None:
        """Go on with another conversation."""
        self.check_idle()
        self.conversation = conversation
        self.last = None
        self._app.main.chat.clear()
        self._app.main.trace.clear()
        self.fluency.clear()
        self.context.opened(self.last_reply)
        self.show()
        self._app.inspecting.forget()
        self._app.show_status()

    @property
    def last_reply(self) -> Node | None:
        """The last reply of the path, if there is one."""
        return self.conversation.last_reply()
