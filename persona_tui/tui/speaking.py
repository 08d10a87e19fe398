"""Writes replies into the chat: starts them, drains their tokens ten times a second, ends them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from textual.content import Content
from textual.timer import Timer

from persona_tui.errors import PersonaTuiError
from persona_tui.tui import collector
from persona_tui.tui.conversation import Conversation
from persona_tui.tui.messages import TurnEnded
from persona_tui.tui.turn import Turn, speak
from persona_tui.tui.widgets.message import MessageView

if TYPE_CHECKING:
    from persona_tui.tui.app import PersonaApp

DRAIN = 0.1  # seconds; painting every token makes keys wait
IDLE = 2.0  # seconds after a reply until the garbage collector may run

_ENDINGS = {"cancelled": "stopped", "length": "cut off at max_new_tokens"}
_TRACE = "assistant"


@dataclass
class _Reply:
    turn: Turn
    view: MessageView
    timer: Timer
    shown: str = ""  # what its heading says of the voice


class Speaker:
    """Owns the conversation and the reply that is being written."""

    def __init__(self, app: PersonaApp) -> None:
        self._app = app
        self.conversation = Conversation()
        self.sampling: dict[str, Any] = {}
        self.last: Turn | None = None
        self._reply: _Reply | None = None

    @property
    def busy(self) -> bool:
        """Whether a reply is being written, or waits for the model."""
        return self._reply is not None

    # --- starting

    def send(self, text: str) -> None:
        """Take what the user says and have it answered."""
        self.conversation.say(text)
        self._app.main.chat.add(MessageView("user", Content.styled("you", "bold"), text))
        self._answer()

    def regenerate(self) -> None:
        """Have the last message answered anew."""
        chat = self._app.main.chat
        if self.busy or not self.conversation.messages:
            self._app.notify(
                "There is no reply to write anew yet." if not self.busy else "Stop this reply first (esc)."
            )
            return
        self.conversation.take_back_answer()
        last = chat.last_message()
        if last is not None and last.role == "assistant":
            last.remove()
        self._answer()

    def _answer(self) -> None:
        app = self._app
        turn = Turn([dict(message) for message in self.conversation.messages], self.conversation.system)
        turn.sampling = dict(self.sampling)
        voice = app.voice.faders.label()
        view = MessageView("assistant", _heading(voice, "…" if app.model_ready else "waiting for the model"))
        app.main.chat.add(view)
        app.main.chat.follow()
        app.main.trace.clear()
        self._reply = _Reply(turn, view, app.set_interval(DRAIN, self._drain))
        collector.pause()
        app.worker.submit_turn(self._work(turn), turn.stop)
        app.show_status()

    def _work(self, turn: Turn) -> Callable[[], None]:
        """Return what the model's thread does; it ends with one message, whatever happens."""
        runtime, post = self._app.runtime, self._app.post_message

        def work() -> None:
            error: Exception | None = None
            try:
                speak(runtime, turn)
            except Exception as problem:
                error = problem
            post(TurnEnded(turn, error))

        return work

    # --- writing

    def _drain(self) -> None:
        """Show what has been written since the last time."""
        if self._reply is None or not self._app.is_running:  # the timer may tick while the app is closing
            return
        reply = self._reply
        events = reply.turn.drain()
        if not events:
            return
        reply.view.write("".join(event.text for event in events))
        for event in events:
            if event.token_id >= 0:
                self._app.main.trace.add(event.projections.get(_TRACE), event.capped)
        self._app.main.trace.refresh()
        self._show_voice(reply)
        self.last = reply.turn
        self._app.show_status()

    def _show_voice(self, reply: _Reply) -> None:
        """Say above the reply who speaks now; faders may have moved since its last token."""
        voice = self._app.voice.faders.label()
        if reply.shown != voice:
            reply.shown = voice
            reply.view.set_heading(_heading(voice, ""))

    # --- ending

    def stop(self) -> bool:
        """End the reply after the present token; whether there was one."""
        if self._reply is None:
            return False
        self._reply.turn.stop.set()
        return True

    def ended(self, turn: Turn, error: Exception | None) -> None:
        """Take note that the model's thread is done with a reply."""
        if self._reply is None or self._reply.turn is not turn:
            return
        self._drain()
        reply, self._reply = self._reply, None
        reply.timer.stop()
        self.conversation.answer(reply.view.source)
        self._close(reply, error)
        collector.resume()
        self._app.set_timer(IDLE, self._collect)
        self.last = turn
        self._app.show_status()

    def _close(self, reply: _Reply, error: Exception | None) -> None:
        if error is not None:
            self._app.show_error(error)
        if reply.turn.forgotten:
            self._app.main.chat.note(
                f"The context is full: the model no longer sees the oldest {reply.turn.forgotten} messages."
            )
        if not reply.view.source.strip():
            reply.view.remove()
            if error is None:
                self._app.main.chat.note(
                    "Stopped." if reply.turn.finish in (None, "cancelled") else "It said nothing."
                )
            return
        reply.view.set_heading(_heading(self._app.voice.faders.label(), _summary(reply.turn, error)))

    def _collect(self) -> None:
        if not self.busy:
            collector.collect()

    def clear(self) -> None:
        """Begin another conversation."""
        if self.busy:
            raise PersonaTuiError("A reply is being written; esc stops it.")
        self.conversation.clear()
        self.last = None
        self._app.main.chat.clear_messages()
        self._app.main.trace.clear()
        self._app.show_status()


def _heading(voice: str, note: str) -> Content:
    who = "assistant" if voice == "no persona" else voice
    return Content.assemble((who, "bold $text-primary"), (f"  {note}" if note else "", "dim"))


def _summary(turn: Turn, error: Exception | None) -> str:
    """Say how a reply went: `stopped · 57 tokens`."""
    ending = "failed" if error is not None else _ENDINGS.get(turn.finish or "cancelled", "")
    return " · ".join(part for part in (ending, f"{turn.count} tokens") if part)
