"""The assistant-axis projection of the tokens of a reply, as they come; capped tokens stand out."""

from collections import deque

from textual.content import Content
from textual.widget import Widget

_BARS = "▁▂▃▄▅▆▇█"
_LABEL = "assistant "
_KEPT = 1000
# Projections are in standard deviations of ordinary replies, 0 = their mean; this much is always in view.
_LOWEST, _HIGHEST = -3.0, 2.0


class Trace(Widget):
    """One row: `assistant ▂▃▅▇▆▃ +1.82 · 3 of 57 capped`."""

    DEFAULT_CSS = """
    Trace { height: 1; width: 1fr; }
    """

    def __init__(self, *, id: str | None = None) -> None:
        super().__init__(id=id)
        self._tokens: deque[tuple[float, bool]] = deque(maxlen=_KEPT)
        self._total = 0
        self._capped = 0

    @property
    def capped(self) -> int:
        """How many tokens of this reply the floor lifted."""
        return self._capped

    def clear(self) -> None:
        """Begin another reply."""
        self._tokens.clear()
        self._total = self._capped = 0
        self.refresh()

    def add(self, projection: float | None, lifted: float) -> None:
        """Take one token: its projection (None = not measured) and how far the floor lifted it."""
        self._total += 1
        self._capped += lifted > 0
        if projection is not None:
            self._tokens.append((projection, lifted > 0))

    def render(self) -> Content:
        """Return the row for the tokens that fit."""
        if not self._tokens:
            return Content.styled(f"{_LABEL}·", "dim")
        ending = f" {self._tokens[-1][0]:+.2f}"
        if self._capped:
            ending += f" · {self._capped} of {self._total} capped"
        room = max(self.size.width - len(_LABEL) - len(ending), 1)
        return Content.assemble((_LABEL, "dim"), self._bars(room), (ending, "dim"))

    def _bars(self, room: int) -> Content:
        shown = list(self._tokens)[-room:]
        low = min(_LOWEST, *(value for value, _ in shown))
        span = max(_HIGHEST, *(value for value, _ in shown)) - low
        top = len(_BARS) - 1
        return Content.assemble(
            *(
                (
                    _BARS[round((value - low) / span * top)],
                    "bold $text-warning" if capped else "$text-primary",
                )
                for value, capped in shown
            )
        )
