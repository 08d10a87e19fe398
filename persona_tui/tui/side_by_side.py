"""A/B in the app: the next message is answered with two settings side by side, and one answer is kept.

1. `open` splits the chat. A is spoken as the faders stand, B with a setting of its own.
2. `ask` has both written as the rows of one batch. The faders act on A meanwhile.
3. Until one is kept, neither is in the conversation: they only stand on the screen.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from persona_tui.chat.replies import ChatReply, ReplyRow
from persona_tui.chat.voice import counterpart, parse_setting, setting_in_words
from persona_tui.core.errors import PersonaTuiError
from persona_tui.core.mix import Mix
from persona_tui.tui.screens.compare import SettingScreen
from persona_tui.tui.screens.confirm import ConfirmScreen

if TYPE_CHECKING:
    from persona_tui.tui.replies import ReplyView
    from persona_tui.tui.stage import AppStage
    from persona_tui.tui.widgets.split import Split


class SideBySide:
    """Owns the split of the chat, and the setting of B."""

    def __init__(self, app: AppStage, replies: ReplyView) -> None:
        self._app, self._replies = app, replies
        self.active = False
        self._setting = ""  # of B, as the user typed or chose it; "" = what suggests itself

    @property
    def _split(self) -> Split:
        return self._app.main.split

    # --- settings

    def mixes(self) -> list[Mix]:
        """Return what A and B are spoken with.

        Raises:
            PersonaTuiError: the model is still loading.
        """
        self._app.check_model()
        present = self._app.chat.mix
        if self._setting:
            return [present, parse_setting(self._setting, present)]
        return [present, counterpart(present, self._app.project.personas.list_loaded())]

    def choose(self) -> None:
        """Ask what B is to be spoken with."""
        self._replies.check_free()
        mixes, personas = self.mixes(), self._app.project.personas
        names = [*personas.list_available(), *personas.list_traits()]

        def answered(text: str | None) -> None:
            if text == "":
                self.leave()
            elif text is not None:
                self._setting = text
                if self._replies.pending:
                    again = self._app.key_label("regenerate")
                    self._app.notify(f"{again} answers the message again, with this setting.")
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
            self._replies.check_free()
            self.open()

    def open(self) -> None:
        """Split the chat.

        Raises:
            PersonaTuiError: the model is still loading.
        """
        self.mixes()
        if not self.active:
            self.active, self._replies.on_change = True, self.show
            self._app.main.show_split(True)
        self.show()

    def leave(self) -> bool:
        """Close the split, after asking if an answer would be lost; whether there was anything to close."""
        if not self.active or self._replies.busy:
            return False
        if self._replies.pending:
            question = "Leave A/B? Neither answer will be kept."
            self._app.push_screen(ConfirmScreen(question, "Leave", "Stay"), self._left)
        else:
            self._left(True)
        return True

    def _left(self, yes: bool | None) -> None:
        if yes and not self._replies.busy:
            self._app.chat.compared = None
            self._replies.drop()
            self._close()

    def _close(self) -> None:
        self.active, self._replies.on_change = False, lambda: None
        self._app.main.show_split(False)
        self._app.show_status()

    # --- asking and keeping

    def send(self, text: str) -> None:
        """Have what the user says answered by both; if that cannot be, it is in the prompt again."""
        try:
            self.ask(text)
        except PersonaTuiError:
            self._app.main.prompt.replace_text(text)
            raise

    def again(self) -> None:
        """Have the last message answered again by both."""
        self.ask(self._replies.question)

    def ask(self, question: str | None) -> None:
        """Have a question (None = the last message) answered side by side.

        Raises:
            PersonaTuiError: that cannot be done: says why.
        """
        self._replies.check_free()
        self.begin(self._app.chat.compare(self.mixes(), question))

    def begin(self, reply: ChatReply) -> None:
        """Have answers written side by side."""
        self._replies.drop()
        self.open()
        self._replies.begin_beside(reply)

    def keep(self, row: int) -> str:
        """Put an answer into the conversation, the other one beside it; what to say about it.

        Raises:
            PersonaTuiError: there is nothing to keep.
        """
        self._replies.check_free()
        if not self._replies.pending:
            key = self._app.key_label("compare")
            raise PersonaTuiError(f"nothing to compare yet: {key}, then send a message")
        return self._app.chat.keep(row)

    def kept(self, reply: ChatReply) -> None:
        """Close the split: one of its answers was kept."""
        self._close()
        self._replies.kept(reply)

    # --- showing

    def show(self) -> None:
        """Draw settings and figures as they are now."""
        if not self.active:
            return
        rows = self._replies.rows
        mixes = [row.mix for row in rows] or self.mixes()
        for place, head in enumerate(self._split.heads):
            facts = _facts(rows[place]) if rows else self._origin(place)
            capped = rows[place].floor if rows else self._app.project.engine.floor_of(mixes[place])
            words = setting_in_words(mixes[place], capped is not None)
            who = mixes[place].label or words.partition(",")[0]
            head.show(who, words.removeprefix(who), facts)
        self._split.say(self._advice(rows))

    def _origin(self, place: int) -> str:
        return f"{self._app.key_label('compare')} changes it" if place else "as the faders stand"

    def _advice(self, rows: Sequence[ReplyRow]) -> str:
        label = self._app.key_label
        if self._replies.busy and rows:
            return f"A/B: {label('back')} stops both · the faders act on A"
        if self._replies.pending:
            ways = self._replies.ways_to_keep()
            return f"{ways} · {label('regenerate')} again · {label('back')} leaves · coloured words differ"
        return f"A/B: your next message is answered by both · {label('back')} leaves"


def _facts(row: ReplyRow) -> str:
    """Say how far an answer is: `42 tokens · 31 tok/s · capped 12%`; at its end what a sweep tells."""
    tokens = row.tokens
    if not tokens:
        return "…"
    capped = f"capped {row.capped / tokens:.0%}"
    if row.finish is None:
        facts = [f"{tokens} tokens", f"{row.speed:.0f} tok/s", capped]
    else:
        from persona_tui.extraction.bench import repetition
        from persona_tui.model.results import mean_nats

        nats = mean_nats(row.events)
        facts = [f"{tokens} tokens", capped]
        facts += [f"{nats:+.2f} nats from plain"] if nats is not None else []
        facts.append(f"repetition {repetition(row.text):.0%}")
    return " · ".join(facts)
