"""The first row: model, who speaks and how loud, how full the context is, speed."""

from dataclasses import dataclass

from textual.content import Content
from textual.reactive import reactive
from textual.widget import Widget

from persona_tui.chat.voice import capping_in_words
from persona_tui.tui.sturdy import Sturdy

_CELLS = 5
_SYSTEM = 28  # cells of the system prompt
_ROOMY = 100  # columns from which on it is quoted
_FULL, _EMPTY = "━", "─"


@dataclass(frozen=True)
class Status:
    """What the status line says.

    Attributes:
        model: its name, or what is happening to it.
        voice: the personas and their strength.
        capping: whether a floor is asked for.
        capped: whether it is enforced; None = not known yet.
        system: the system prompt in force; "" = none.
        speed: tokens per second of the latest reply; None = no reply yet.
        used: tokens in the context; None = not counted yet.
        context: how many fit; None = not known.
        nearly_full: whether the oldest messages will soon be left out.
        job: a job under way, in a few words.
        broken: what is wrong with the text that is being written; "" = nothing.
        watched: what judges what is said, such as `guard refuse`; "" = nothing does.
    """

    model: str = ""
    voice: str = ""
    capping: bool = True
    capped: bool | None = None
    system: str = ""
    speed: float | None = None
    used: int | None = None
    context: int | None = None
    nearly_full: bool = False
    job: str = ""
    broken: str = ""
    watched: str = ""


class StatusLine(Sturdy, Widget):
    """One row of facts; the least important go first when the row is narrow."""

    DEFAULT_CSS = """
    StatusLine { height: 1; width: 1fr; }
    """

    status: reactive[Status] = reactive(Status())

    def render(self) -> Content:
        """Return the facts that fit."""
        facts, width = self._facts(), self.size.width
        excess = self._joined(facts).cell_length - width
        if excess > 0 and self.status.model and self.status.voice:  # a blend, or a long name, is cut to half
            room = max(facts[1].cell_length - excess, width // 2)
            facts[1] = facts[1].truncate(room, ellipsis=True)
        while len(facts) > 1 and self._joined(facts).cell_length > width:
            facts.pop()
        return self._joined(facts)

    def _facts(self) -> list[Content]:
        """Return the facts, the most important first."""
        status = self.status
        words = "" if status.capped is None else capping_in_words(status.capping, status.capped)
        capping = (words, "" if status.capping and status.capped else "$text-warning")
        words_of_it = f"system: {status.system}" if self.size.width >= _ROOMY else "system prompt"
        system = Content(words_of_it).truncate(_SYSTEM, ellipsis=True)
        return [
            fact
            for fact in (
                Content.styled(status.model, "bold"),
                Content.styled(status.voice, "$text-accent"),
                Content.styled(status.broken, "bold $text-warning"),
                Content.styled(status.watched, "$text-success"),
                system.stylize("$text-secondary") if status.system else Content(""),
                Content.styled(status.job, "$text-warning"),
                self._gauge(),
                Content(f"{status.speed:.0f} tok/s" if status.speed is not None else ""),
                Content.styled(*capping),
            )
            if fact
        ]

    def _gauge(self) -> Content:
        used, size = self.status.used, self.status.context
        if used is None:
            return Content("")
        if size is None:
            return Content(f"{used} tokens")
        filled = min(_CELLS, round(used / size * _CELLS))
        style = "bold $text-error" if self.status.nearly_full else ""
        return Content.assemble(
            (_FULL * filled, style or "$text-accent"),
            (_EMPTY * (_CELLS - filled), "dim"),
            (f" {used}/{size}{' nearly full' if self.status.nearly_full else ''}", style),
        )

    def _joined(self, facts: list[Content]) -> Content:
        return Content.styled(" · ", "dim").join(facts)
