"""Replies on the screen: begun, drained of their tokens up to ten times a second, measured less often, ended.

One reply stands in the chat; answers side by side are the rows of one reply, each in its own log. The model's
thread writes their tokens (`Chat.events`), and tells the app with one message when it is done. How full the
model's context is by then is counted here, and said before it overflows.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from textual.timer import Timer

from persona_tui.chat import Node
from persona_tui.chat.replies import ChatReply, ReplyRow
from persona_tui.core.errors import PersonaTuiError, SessionError
from persona_tui.core.wording import differences, in_pieces
from persona_tui.tui.blocks import DIFFERS, Badge, Heading, MessageBlock
from persona_tui.tui.inspection import readings_of
from persona_tui.tui.messages import ReplyEnded
from persona_tui.tui.transcript import (
    ENDINGS,
    Scene,
    Writer,
    breach_badges,
    heading_of,
    mix_of,
    sync,
    verdict_badge,
    voice_of,
)

if TYPE_CHECKING:
    from persona_tui.model import TokenEvent
    from persona_tui.tui.inspection import Inspection
    from persona_tui.tui.mixer import Mixer
    from persona_tui.tui.stage import AppStage
    from persona_tui.tui.widgets.chat_log import ChatLog

# Painting every token makes keys and the model wait, and figures take longer to draw than text.
TICK = 0.1  # seconds between two looks at what was written
PIECE = 8  # tokens a tick that are faster than anybody reads: they wait for the next tick once, and cost half
MEASURED = 3  # ticks between two looks at the figures

_BUSY = "A reply is being written. Stop it with esc, or wait."
_YOU = Heading("you", "$text-secondary")
NEARLY = 0.85  # of the room for a prompt


class Context:
    """Keeps count, and warns once each time that it gets nearly full, and when messages are left out."""

    def __init__(self, app: AppStage) -> None:
        self._app = app
        self.size: int | None = None
        self.reply: ChatReply | None = None  # the latest one
        self._used: int | None = None
        self._warned = False
        self._forgotten = 0

    @property
    def used(self) -> int | None:
        """Tokens of the conversation so far, as of the last reply; None = not counted yet."""
        if self.reply is not None and self.reply.prompt_tokens:
            return self.reply.prompt_tokens + self.reply.count
        return self._used

    @property
    def room(self) -> int | None:
        """Tokens that a prompt may have, so that the longest reply still fits; None = any number."""
        if self.size is None:
            return None
        chat = self._app.chat
        longest = (
            chat.sampling_changes.get("max_new_tokens") or chat.project.settings.generation.max_new_tokens
        )
        return self.size - min(int(longest), self.size // 2)

    @property
    def nearly_full(self) -> bool:
        """Whether the next message may push the oldest ones out."""
        return self.room is not None and self.used is not None and self.used > self.room * NEARLY

    def opened(self, last: Node | None) -> None:
        """Begin with another conversation."""
        self.moved(last)
        self._warned, self._forgotten = False, 0

    def moved(self, last: Node | None) -> None:
        """Count what the reply that the path ends with now was written after."""
        stats = last.runs[-1].stats if last is not None and last.runs else {}
        counted = stats.get("prompt_tokens", 0) + stats.get("tokens", 0)
        self._used, self.reply = counted or None, None

    def ended(self, reply: ChatReply) -> None:
        """Warn if the next prompt will hardly fit, or this one did not."""
        if reply.forgotten > self._forgotten:
            self._app.say(
                f"The context is full: the model no longer sees the oldest {reply.forgotten} messages. "
                f"/new starts another conversation."
            )
        elif self.nearly_full and not self._warned:
            self._app.say(self._warning())
        self._warned = self.nearly_full
        self._forgotten = reply.forgotten

    def _warning(self) -> str:
        return (
            f"The context is nearly full: {self.used} of {self.size} tokens, and a reply may need "
            f"{(self.size or 0) - (self.room or 0)}. Soon the oldest messages will be left out. "
            "A shorter longest reply (/max-tokens) or another conversation (/new) makes room."
        )


@dataclass
class _View:
    """What is on the screen of a reply."""

    reply: ChatReply
    logs: Sequence[ChatLog]
    blocks: list[MessageBlock]
    asked: list[MessageBlock]  # of answers side by side
    said: str = ""  # what the user said for it
    writers: list[Writer] = field(default_factory=list)  # once it is known what the rows began with
    timer: Timer | None = None  # None = it has ended
    shown: int = 0  # events
    measured: int = 0  # of those
    held: bool = False  # whether the last tick let what had come wait
    ticks: int = 0  # since the figures were drawn

    def hold(self) -> bool:
        """Return whether what has come waits for the next tick: a fast model is drawn in larger pieces."""
        self.held = not self.held and len(self.reply.events) - self.shown > PIECE
        return self.held

    def take(self) -> Sequence[TokenEvent]:
        """Return the events that came since the last time."""
        new = self.reply.events[self.shown :]
        self.shown += len(new)
        return new

    def take_shown(self) -> Sequence[TokenEvent]:
        """Return the events that were shown since the last time."""
        new = self.reply.events[self.measured : self.shown]
        self.measured = self.shown
        return new


class ReplyView:
    """Owns the reply that is being written, and answers side by side until one is kept."""

    def __init__(self, app: AppStage, mixer: Mixer, inspection: Inspection) -> None:
        self._app, self._mixer, self._inspection = app, mixer, inspection
        self.context = Context(app)
        self.last: ChatReply | None = None
        self.on_change: Callable[[], None] = lambda: None  # told when rows side by side have grown, or ended
        self.on_shown: Callable[[], None] = lambda: None  # told when the conversation is drawn as it is now
        self._view: _View | None = None
        self._measured: int | None = None  # the reply that trace, gauges and counts are about

    # --- what there is

    @property
    def busy(self) -> bool:
        """Whether a reply is being written, or waits for the model."""
        return self._view is not None and self._view.timer is not None

    @property
    def pending(self) -> bool:
        """Whether there are answers side by side that none was kept of."""
        return self._view is not None and not self.busy

    @property
    def rows(self) -> Sequence[ReplyRow]:
        """The answers that stand side by side; none if there are none."""
        return self._view.reply.rows if self._view is not None and self._view.reply.node is None else ()

    @property
    def question(self) -> str | None:
        """What the answers side by side were asked; None = the last message."""
        return self._view.reply.question if self._view is not None else None

    def row_of(self, block: MessageBlock) -> ReplyRow | None:
        """Return the answer that a message on the screen is, if it is one."""
        for place, row in enumerate(self.rows):
            if self._view is not None and self._view.blocks[place] is block:
                return row
        return None

    def check_free(self) -> None:
        """Raise an error that says so if a reply is being written."""
        if self.busy:
            raise PersonaTuiError(_BUSY)

    def check_idle(self) -> None:
        """Raise an error that says so if a reply is being written, or one of two has to be chosen."""
        self.check_free()
        if self.pending:
            raise PersonaTuiError(f"keep one of the two answers first: {self.ways_to_keep()}")

    def ways_to_keep(self) -> str:
        """Return the keys that keep an answer."""
        label = self._app.key_label
        return f"{label('keep_a')} keeps A, {label('keep_b')} keeps B"

    # --- beginning

    def send(self, text: str) -> None:
        """Take what the user says and have it answered."""
        self.check_idle()
        self._app.check_not_missing()
        self.begin(self._app.chat.say(text), text)

    def regenerate(self, key: int | None = None) -> None:
        """Have a message answered again, by default the last; what was said before is kept beside it."""
        self.check_idle()
        self.begin(self._app.chat.regenerate(key))

    def go_on(self) -> None:
        """Have the last reply continued."""
        self.check_idle()
        self.begin(self._app.chat.go_on())

    def begin(self, reply: ChatReply, said: str = "") -> None:
        """Have a reply written that was begun in the conversation."""
        self.show()
        log = self._app.main.chat
        block = next(block for block in log.messages if block.key == reply.node)
        job = self._app.jobs.running
        waits = (
            "waiting for the model"
            if not self._app.model_ready
            else f"after a step of {job.name}"
            if job
            else "…"
        )
        self._view = _View(reply, [log], [block], [], said)
        block.set_heading(self._heading_in_chat(reply, waits))
        log.rearrange()
        log.follow()
        self._start(self._view)

    def begin_beside(self, reply: ChatReply) -> None:
        """Have answers written side by side."""
        logs = self._app.main.split.logs
        asked = [MessageBlock("user", _YOU, reply.asked) for _ in reply.rows]
        blocks = [MessageBlock("assistant", _heading_beside(row)) for row in reply.rows]
        writers = [Writer(block, row.mix) for block, row in zip(blocks, reply.rows, strict=True)]
        for place, log in enumerate(logs):
            if place or reply.question is not None:  # the last message is in the chat already
                log.add(asked[place])
            log.add(blocks[place])
            log.follow()
        self._view = _View(reply, logs, blocks, asked, writers=writers)
        self._start(self._view)

    def _start(self, view: _View) -> None:
        self.last = self.context.reply = view.reply
        self._measured = view.reply.node
        view.timer = self._app.set_interval(TICK, self._tick)
        self._mixer.begin_measuring()
        if self._measured is not None:  # a reply that goes on has been measured so far
            self._mixer.measure(self._inspection.read(self._measured))
        self._app.worker.submit_turn(self._work(view.reply), view.reply.stopping)
        self.on_change()
        self._app.show_status()

    def _work(self, reply: ChatReply) -> Callable[[], None]:
        """Return what the model's thread does; it ends with one message, whatever happens."""
        chat, post = self._app.chat, self._app.post_message

        def work() -> None:
            error: Exception | None = None
            try:
                for _ in chat.events(reply):
                    pass
            except Exception as problem:
                error = problem
            post(ReplyEnded(reply, error))

        return work

    def show(self) -> None:
        """Show the conversation as it is now, and what was measured of the reply that it ends with."""
        sync(self._app.main.chat, self._app.chat.conversation)
        self.on_shown()
        last = self._app.chat.conversation.last_reply()
        node = last.id if last is not None else None
        if self._view is None and node != self._measured:
            self._measured, self.last = node, None
            self.context.moved(last)
            self._mixer.show_measures(self._inspection.read(node) if node is not None else ())
            self._app.show_status()

    @property
    def speed(self) -> float | None:
        """Tokens per second of the reply that is shown; None if that is not known."""
        if self.last is not None:
            return self.last.speed
        last = self._app.chat.conversation.last_reply()
        known = last.runs[-1].stats.get("tokens_per_second") if last is not None and last.runs else None
        return float(known) if known else None

    # --- writing

    def _tick(self) -> None:
        """Draw the text, and with it, less often, the figures: two paintings cost more than one."""
        if (view := self._view) is None:
            return
        view.ticks += 1
        if not view.hold():
            self._drain()
            if view.ticks >= MEASURED:
                view.ticks = 0
                self._measure()

    def _drain(self) -> None:
        """Show what has been written since the last time."""
        view = self._view
        # The timer may tick while the app is closing; and a reply stopped before a word was taken back.
        if (
            view is None
            or not self._app.is_running
            or (view.reply.node is not None and view.reply.run is None)
        ):
            return
        if events := view.take():
            self._write(view, events)

    def _measure(self) -> None:
        """Draw what was measured of the tokens that were shown since the last time."""
        view = self._view
        if view is None or not self._app.is_running or not (events := view.take_shown()):
            return
        reply, run = view.reply, view.reply.run
        self._mixer.measure(readings_of(event for event in events if event.row == 0))
        self._judge(view)
        if reply.node is not None and run is not None:
            self._inspection.take(reply.node, run.start, events)
        else:
            self._inspection.show()
        self.on_change()
        self._app.show_status()

    def _write(self, view: _View, events: Sequence[TokenEvent]) -> None:
        """Add tokens to their rows."""
        reply = view.reply
        if reply.run is not None:
            view.writers = view.writers or [Writer(view.blocks[0], mix_of(reply.run))]
        for place, row in enumerate(reply.rows):
            view.writers[place].take([event for event in events if event.row == place], row.changes)
            heading = self._heading_in_chat(reply, "…") if reply.node is not None else _heading_beside(row)
            view.blocks[place].set_heading(heading)
            view.logs[place].rearrange()

    def _judge(self, view: _View) -> None:
        """Show what a guard says of the message that is answered."""
        verdicts = [row.verdicts.get("message") for row in view.reply.rows]
        if view.reply.node is not None and verdicts[0] is not None:
            self._judge_in_chat(view.reply, verdict_badge(verdicts[0]))
        for block, verdict in zip(view.asked, verdicts, strict=False):
            if verdict is not None:
                block.set_heading(replace(_YOU, badges=[verdict_badge(verdict)]))

    def _judge_in_chat(self, reply: ChatReply, badge: Badge) -> None:
        conversation = self._app.chat.conversation
        asked = conversation.node(reply.node or 0).parent
        block = next((each for each in self._app.main.chat.messages if each.key == asked), None)
        if block is not None and asked is not None:
            heading = heading_of(conversation.node(asked), Scene(*conversation.siblings(asked)))
            block.set_heading(replace(heading, badges=[badge]))

    def _heading_in_chat(self, reply: ChatReply, note: str) -> Heading:
        assert reply.node is not None
        node, conversation = self._app.chat.conversation.node(reply.node), self._app.chat.conversation
        heading = heading_of(node, Scene(*conversation.siblings(node.id)), note)
        if mix_of(node.runs[0]) is None:  # it waits: it will be spoken with what is set then
            heading = replace(heading, who=voice_of(self._app.chat.mix))
        return replace(heading, badges=_badges(reply.rows[0]))

    # --- ending

    def stop(self) -> bool:
        """End the reply after the present token; whether there was one."""
        if self._view is None or not self.busy:
            return False
        with suppress(SessionError):  # a full disk keeps nobody from stopping; the reply's end reports it
            self._view.reply.stop()
        return True

    def ended(self, reply: ChatReply, error: Exception | None) -> None:
        """Take note that the model's thread is done with a reply."""
        view = self._view
        if view is None or view.reply is not reply or view.timer is None:
            return
        self._drain()
        self._measure()
        view.timer.stop()
        view.timer = None
        if reply.node is not None:
            self._view = None
            self.show()
            self._say_how_it_went(view, error)
        else:
            self._say_how_they_went(view, error)
        self._inspection.show()
        self._mixer.end_measuring()
        self.on_change()
        self._app.show_status()
        if error is None and (again := self._app.chat.answer_again(reply)) is not None:
            self.begin(again)

    def _say_how_it_went(self, view: _View, error: Exception | None) -> None:
        reply, prompt = view.reply, self._app.main.prompt
        if reply.taken_back and view.said and not prompt.text:
            prompt.replace_text(view.said)
        if error is not None:
            self._app.show_error(error)
        elif reply.taken_back:
            self._app.say("Stopped before the first word.")
        elif reply.run is not None and reply.empty and reply.finish != "refused":
            self._app.say("The reply is empty.")
        for opinion in reply.rows[0].opinions:
            if opinion.safe is not True:
                self._app.say(f"{opinion.sentence[0].upper()}{opinion.sentence[1:]}.")
        self.context.ended(reply)

    def _say_how_they_went(self, view: _View, error: Exception | None) -> None:
        """Show an error, or why there is nothing to keep."""
        refusal = view.reply.refusal
        if view.reply.empty:
            self.drop()
        if error is not None:
            self._app.show_error(error)
        elif refusal is not None:
            self._app.say(refusal.refusal, error=True)
        elif self._view is None:
            self._app.say("Both answers are empty.")
        else:
            self._show_differences(view)

    def _show_differences(self, view: _View) -> None:
        """Tint the words of two answers that the other one does not have there."""
        texts = [row.text.strip() for row in view.reply.rows]
        if not all(texts):
            return
        for place, spans in enumerate(differences(*texts)):
            pieces = in_pieces(texts[place], spans)
            view.blocks[place].tint([(text, DIFFERS if differs else "") for text, differs in pieces])
            view.logs[place].rearrange()

    # --- answers side by side

    def drop(self) -> None:
        """Take answers side by side from the screen."""
        if self._view is None:
            return
        chat, beside = self._app.main.split.logs
        for block in [*self._view.asked, *self._view.blocks]:
            chat.take_out(block)
        beside.clear()
        self._view = None
        self.show()

    def kept(self, reply: ChatReply) -> None:
        """Show the conversation with the rows of a reply in it, and go on from there."""
        for place, node in reply.nodes.items():
            self._inspection.take(node, 0, reply.rows[place].events)
        self.drop()
        self._app.main.chat.follow()
        self._inspection.show()
        self._app.show_status()

    # --- another conversation

    def opened(self) -> None:
        """Show another conversation."""
        self.last = self._measured = None
        self._app.main.chat.clear()
        self._inspection.forget()
        self._mixer.clear_measures()
        self.context.opened(self._app.chat.conversation.last_reply())
        self.show()
        self._app.show_status()


def _heading_beside(row: ReplyRow) -> Heading:
    """Return the first line of an answer side by side: who speaks, how it ended, and how it was judged."""
    ending = ENDINGS.get(row.finish, "") if row.finish else "…"
    facts = [ending] if ending else []
    return Heading(voice_of(row.mix), "$text-primary", facts=facts, badges=_badges(row))


def _badges(row: ReplyRow) -> list[Badge]:
    verdict = row.verdicts.get("reply")
    judged = [verdict_badge(verdict)] if verdict is not None else []
    return [*judged, *breach_badges(breach.badge for breach in row.breaches)]
