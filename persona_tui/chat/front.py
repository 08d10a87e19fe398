"""What a chat asks of a front end: where work runs, and what is shown meanwhile.

`Front` itself is the simplest one, for programs and tests: all work is done here and now, in silence.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, TypeAlias

from persona_tui.chat.replies import LETTERS, ChatReply
from persona_tui.chat.voice import setting_in_words
from persona_tui.core.jobs import JobContext, run_inline
from persona_tui.project import models
from persona_tui.project.models import ModelChoice
from persona_tui.project.project import Project

if TYPE_CHECKING:
    from persona_tui.chat.chat import Chat
    from persona_tui.core.mix import Mix

Work: TypeAlias = Callable[[JobContext], str]


class Front:
    """Does all work on the calling thread, and shows nothing before it is done."""

    def write(self, chat: Chat, reply: ChatReply) -> str:
        """Have a reply written, here or in the background; return what to show at once."""
        for _ in chat.events(reply):
            pass
        if (again := chat.answer_again(reply)) is not None:
            return self.write(chat, again)
        return reply.rows[0].text.strip() if reply.node is not None else answers_in_words(reply)

    def run(self, name: str, work: Work) -> str:
        """Do long work, here or in the background; return what to show at once."""
        return run_inline(work)

    def load(self, chat: Chat, other: Project, choice: ModelChoice) -> str:
        """Load another model, here or in the background, and have the chat adopt it; what to show at once."""

        def work(context: JobContext) -> str:
            models.load(other, context)
            return ""

        self.run(f"load {choice.name}", work)
        there = ", ".join(other.personas.list_available()) or "none"
        return f"{chat.adopt(other, choice)} Personas: {there}."

    def ask(self, question: str) -> str | None:
        """Put a question and return the answer; None if that cannot be done in between."""
        return None

    def mixed(self, mix: Mix) -> None:
        """Take note that the chat is spoken with another mix."""

    def kept(self, reply: ChatReply) -> None:
        """Take note that one of a reply's rows has come into the conversation, the others beside it."""

    def opened(self) -> None:
        """Take note that another conversation is had."""


def answers_in_words(reply: ChatReply) -> str:
    """Return rows one above the other, and how to keep one; or why there is none."""
    refusal = reply.refusal
    if refusal is not None and reply.empty:
        return refusal.refusal
    parts = [
        f"{letter}: {setting_in_words(row.mix, row.floor is not None)}\n{row.text.strip()}"
        for letter, row in zip(LETTERS, reply.rows, strict=False)
    ]
    if refusal is not None:
        parts.append(refusal.refusal)
    return "\n\n".join(
        [*parts, "/keep A or /keep B puts one into the conversation; the other stays beside it."]
    )
