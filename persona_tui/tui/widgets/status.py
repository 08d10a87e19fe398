"""The first row: model, who speaks and how loud, speed, how full the context is."""

from dataclasses import dataclass

from textual.content import Content
from textual.reactive import reactive
from textual.widget import Widget

_NEARLY_FULL = 0.9


@dataclass(frozen=True)
class Status:
    """What the status line says.

    Attributes:
        model: its name, or what is happening to it.
        voice: the personas and their strength.
        capping: whether the floor is enforced.
        speed: tokens per second of the latest reply; None = no reply yet.
        used: tokens in the context; None = not counted yet.
        context: how many fit; None = not known.
        job: a job under way, in a few words.
    """

    model: str = ""
    voice: str = ""
    capping: bool = True
    speed: float | None = None
    used: int | None = None
    context: int | None = None
    job: str = ""


class StatusLine(Widget):
    """One row of facts; the least important go first when the row is narrow."""

    DEFAULT_CSS = """
    StatusLine { height: 1; width: 1fr; }
    """

    status: reactive[Status] = reactive(Status())

    def render(self) -> Content:
        """Return the facts that fit."""
        facts = self._facts()
        while len(facts) > 1 and self._joined(facts).cell_length > self.size.width:
            facts.pop()
        return self._joined(facts)

    def _facts(self) -> list[Content]:
        """Return the facts, the most important first."""
        status = self.status
        facts = [Content.styled(status.model, "bold"), Content.styled(status.voice, "$text-accent")]
        if status.job:
            facts.append(Content.styled(status.job, "$text-warning"))
        if status.used is not None:
            facts.append(self._context_gauge(status.used, status.context))
        if status.speed is not None:
            facts.append(Content(f"{status.speed:.0f} tok/s"))
        facts.append(
            Content("capping on") if status.capping else Content.styled("capping off", "$text-warning")
        )
        return [fact for fact in facts if fact]

    def _context_gauge(self, used: int, context: int | None) -> Content:
        if context is None:
            return Content(f"{used} tokens")
        full = used >= context * _NEARLY_FULL
        return Content.styled(f"{used}/{context} tokens", "bold $text-error" if full else "")

    def _joined(self, facts: list[Content]) -> Content:
        return Content.styled(" · ", "dim").join(facts)
