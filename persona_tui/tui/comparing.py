"""A/B in the app: the next message is answered with two settings side by side, and one answer is kept.

1. `open` splits the chat. A is spoken as the faders stand, B with a setting of its own.
2. `ask` has both written as the rows of one batch. The faders act on A meanwhile.
3. Until one is kept, neither is in the conversation: they only stand on the screen.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from textual.timer import Timer

from persona_tui.chat.comparison import LETTERS, Comparison, counterpart, parse_setting, setting_in_words
from persona_tui.core.errors import PersonaTuiError
from persona_tui.tui.blocks import Heading, MessageBlock
from persona_tui.tui.messages import TrialEnded
from persona_tui.tui.screens.compare import SettingScreen
from persona_tui.tui.screens.confirm import ConfirmScreen
from persona_tui.tui.speaking import DRAIN
from persona_tui.tui.transcript import ENDINGS, breach_badges, verdict_badge
from persona_tui.tui.trial import Trial, write
from persona_tui.tui.voice import NOBODY, Faders
from persona_tui.tui.writing import Writing

if TYPE_CHECKING:
    from persona_tui.chat.comparison import Answer
    from persona_tui.core.mix import Mix
    from persona_tui.tui.app import PersonaApp
    from persona_tui.tui.widgets.split import Split

_LOADING = "The model is still loading."


@dataclass
class _View:
    """What is on the screen of a trial."""

    trial: Trial
    asked: list[MessageBlock]
    writings: list[Writing]
    timer: Timer | None


class Comparing:
    """Owns the split chat and the answers in it."""

    def __init__(self, app: PersonaApp) -> None:
        self._app = app
        self.active = False
        self._setting = ""  # of B, as the user typed or chose it; "" = what suggests itself
        self._view: _View | None = None

    # --- what there is

    @property
    def busy(self) -> bool:
        """Whether answers are being written, or wait for the model."""
        return self._view is not None and self._view.timer is not None

    @property
    def pending(self) -> bool:
        """Whether there are answers that none was kept of."""
        return self._view is not None and not self.busy

    def check_settled(self) -> None:
        """Raise an error that says what to do if there are answers that none was kept of."""
        if self.pending:
            raise PersonaTuiError(f"keep one of the two answers first: {self._ways_to_keep()}")

    def _ways_to_keep(self) -> str:
        label = self._app.key_label
        return f"{label('keep_a')} keeps A, {label('keep_b')} keeps B"

    def answer_of(self, block: MessageBlock) -> Answer | None:
        """Return the answer that a message on the screen is, if it is one."""
        for row, writing in enumerate(self._view.writings if self._view is not None else ()):
            if writing.block is block:
                return self._view.trial.comparison.answers[row] if self._view is not None else None
        return None

    @property
    def _split(self) -> Split:
        return self._app.main.split

    # --- settings

    def mixes(self) -> list[Mix]:
        """Return what A and B are spoken with.

        Raises:
            PersonaTuiError: the model is still loading.
        """
        if not self._app.model_ready:
            raise PersonaTuiError(_LOADING)
        present = self._app.voice.faders.mix()
        loaded = self._app.project.personas.list_loaded()
        if self._setting:
            return [present, parse_setting(self._setting, present)]
        return [present, counterpart(present, loaded)]

    def choose(self) -> None:
        """Ask what B is to be spoken with."""
        self._app.speaker.check_free()
        mixes, personas = self.mixes(), self._app.project.personas
        names = [*personas.list_available(), *personas.list_traits()]

        def answered(text: str | None) -> None:
            if text == "":
                self.leave()
            elif text is not None:
                self._setting = text
                if self.pending:
                    again = self._app.key_label("regenerate")
                    self._app.notify(f"{again} has the message answered again, with this.")
                self.show()

        self._app.push_screen(SettingScreen(mixes[1], mixes[0], names), answered)

    # --- opening and leaving

    def toggle(self) -> None:
        """Split the chat; if it is, choose the setting of B.

        Raises:
            PersonaTuiError: the model is still loading, or a reply is being written.
        """
        if self.active:
            self.choose()
        else:
            self._app.speaker.check_free()
            self.open()

    def open(self) -> None:
        """Split the chat.

        Raises:
            PersonaTuiError: the model is still loading.
        """
        self.mixes()
        if not self.active:
            self.active = True
            self._app.main.show_split(True)
        self.show()

    def leave(self) -> bool:
        """Close the split, after asking if an answer would be lost; whether there was anything to close."""
        if not self.active or self.busy:
            return False
        if self.pending:
            question = "Leave A/B? Neither answer is kept then."
            self._app.push_screen(ConfirmScreen(question, "Leave", "Stay"), self._left)
        else:
            self._left(True)
        return True

    def _left(self, yes: bool | None) -> None:
        if yes and not self.busy:
            self._drop()
            self._close()

    def _close(self) -> None:
        self.active = False
        self._app.main.show_split(False)
        self._app.show_status()

    def _drop(self) -> None:
        """Take the answers from the screen."""
        if self._view is None:
            return
        chat, beside = self._split.logs
        for block in [*self._view.asked, *(writing.block for writing in self._view.writings)]:
            chat.take_out(block)
        beside.clear()
        self._view = None

    # --- asking

    def send(self, text: str) -> None:
        """Have what the user says answered by both; if that cannot be, it is in the prompt again."""
        try:
            self.ask(text)
        except PersonaTuiError:
            self._app.main.prompt.replace_text(text)
            raise

    def again(self) -> None:
        """Have the last message answered anew by both."""
        self.ask(self._view.trial.comparison.question if self._view is not None else None)

    def ask(self, question: str | None, mixes: Sequence[Mix] | None = None) -> None:
        """Have a question (None = the last message) answered side by side.

        Args:
            question: what is asked.
            mixes: what A and B are spoken with; None = the faders, and the setting of B.

        Raises:
            PersonaTuiError: that cannot be done: says why.
        """
        app = self._app
        app.speaker.check_free()
        present, _ = own = self.mixes()
        wanted = list(mixes or own)
        for name in {name for mix in wanted for name in mix.weights}:
            app.project.personas.get(name)
        follower = 0 if wanted[0] == present else None
        comparison = Comparison(app.speaker.conversation, wanted, question, follower)
        self._drop()
        self.open()
        self._begin(Trial(comparison, dict(app.speaker.sampling)))

    def _begin(self, trial: Trial) -> None:
        app, comparison = self._app, trial.comparison
        asked = [MessageBlock("user", _YOU, comparison.asked) for _ in comparison.answers]
        writings = [Writing(_block_of(each), Faders.of(each.mix)) for each in comparison.answers]
        self._view = _View(trial, asked, writings, app.set_interval(DRAIN, self._drain))
        for row, log in enumerate(self._split.logs):
            if row or comparison.question is not None:  # the last message is in the chat already
                log.add(asked[row])
            log.add(writings[row].block)
            log.follow()
        app.speaker.begin_measuring()
        app.worker.submit_turn(self._work(trial), trial.stop)
        self.show()
        app.show_status()

    def _work(self, trial: Trial) -> Callable[[], None]:
        """Return what the model's thread does; it ends with one message, whatever happens."""
        project, post = self._app.project, self._app.post_message

        def work() -> None:
            error: Exception | None = None
            try:
                write(project, trial)
            except Exception as problem:
                error = problem
            post(TrialEnded(trial, error))

        return work

    # --- writing

    def _drain(self) -> None:
        """Show what has been written since the last time."""
        view = self._view
        if view is None or not self._app.is_running:  # the timer may tick while the app is closing
            return
        events = view.trial.drain()
        if not events:
            return
        for row, (answer, log) in enumerate(
            zip(view.trial.comparison.answers, self._split.logs, strict=True)
        ):
            writing = view.writings[row]
            writing.take([event for event in events if event.row == row], answer.changes)
            writing.block.set_heading(_heading(answer))
            log.rearrange()
        self._app.speaker.measure([event for event in events if event.row == 0])
        self._app.inspecting.show()
        self._judge(view)
        self.show()
        self._app.show_status()

    def _judge(self, view: _View) -> None:
        """Show what a guard says of the message."""
        verdicts = [answer.verdicts.get("message") for answer in view.trial.comparison.answers]
        for block, verdict in zip(view.asked, verdicts, strict=True):
            if verdict is not None:
                block.set_heading(Heading(_YOU.who, _YOU.style, badges=[verdict_badge(verdict)]))

    def stop(self) -> bool:
        """End both answers after the present token; whether there were any."""
        if self._view is None or not self.busy:
            return False
        self._view.trial.stop.set()
        return True

    def ended(self, trial: Trial, error: Exception | None) -> None:
        """Take note that the model's thread is done with the answers."""
        view = self._view
        if view is None or view.trial is not trial or view.timer is None:
            return
        self._drain()
        view.timer.stop()
        view.timer = None
        self._app.speaker.end_measuring()
        self._say_how_it_went(view, error)
        self._app.inspecting.show()
        self.show()
        self._app.show_status()

    def _say_how_it_went(self, view: _View, error: Exception | None) -> None:
        """Show an error, or why there is nothing to keep."""
        refusal, chat = view.trial.comparison.refusal, self._app.main.chat
        if view.trial.empty:
            self._drop()
        if error is not None:
            self._app.show_error(error)
        elif refusal is not None:
            chat.note(refusal.refusal, error=True)
        elif self._view is None:
            chat.note("Neither answer has a word.")

    # --- keeping

    def keep(self, row: int) -> str:
        """Put an answer into the conversation, the other one beside it, and close the split; what to say.

        Raises:
            PersonaTuiError: there is nothing to keep.
        """
        app = self._app
        app.speaker.check_free()
        if self._view is None:
            raise PersonaTuiError(f"nothing was compared yet: {app.key_label('compare')}, then a message")
        comparison = self._view.trial.comparison
        app.saving.begin()
        comparison.keep(row)
        for each, node in comparison.nodes.items():
            app.inspecting.take(node, 0, comparison.answers[each].events)
        self._drop()
        self._close()
        app.speaker.kept()
        both = f" {LETTERS[1 - row]} stays beside it." if len(comparison.nodes) > 1 else ""
        return f"Kept {LETTERS[row]}.{both}"

    # --- showing

    def show(self) -> None:
        """Draw settings and figures as they are now."""
        if not self.active:
            return
        view = self._view
        answers = view.trial.comparison.answers if view is not None else []
        mixes = [answer.mix for answer in answers] or self.mixes()
        for row, head in enumerate(self._split.heads):
            facts = _facts(answers[row]) if answers else self._origin(row)
            words = setting_in_words(mixes[row])
            who = mixes[row].label or words.partition(",")[0]
            head.show(who, words.removeprefix(who), facts)
        self._split.say(self._advice())

    def _origin(self, row: int) -> str:
        return f"{self._app.key_label('compare')} changes it" if row else "as the faders stand"

    def _advice(self) -> str:
        label = self._app.key_label
        if self.busy:
            return f"A/B: {label('back')} stops both · the faders act on A"
        if self.pending:
            return f"A/B: {self._ways_to_keep()} · {label('regenerate')} again · {label('back')} leaves"
        return f"A/B: your next message is answered by both · {label('back')} leaves"


_YOU = Heading("you", "$text-secondary")


def _block_of(answer: Answer) -> MessageBlock:
    return MessageBlock("assistant", _heading(answer))


def _heading(answer: Answer) -> Heading:
    """Return the first line of an answer: who speaks, how it ended, and how it was judged."""
    label = Faders.of(answer.mix).label()
    verdict = answer.verdicts.get("reply")
    judged = [verdict_badge(verdict)] if verdict is not None else []
    badges = [*judged, *breach_badges(breach.badge for breach in answer.breaches)]
    ending = ENDINGS.get(answer.finish or "", "") if answer.finish else "…"
    facts = [ending] if ending else []
    return Heading("assistant" if label == NOBODY else label, "$text-primary", facts=facts, badges=badges)


def _facts(answer: Answer) -> str:
    """Say how far an answer is: `42 tokens · 31 tok/s · capped 12%`."""
    tokens = answer.tokens
    if not tokens:
        return "…"
    return f"{tokens} tokens · {answer.speed:.0f} tok/s · capped {answer.capped / tokens:.0%}"
