"""What the faders come to: how much is added, how alike the personas are, whether it still is language."""

from __future__ import annotations

from collections.abc import Mapping

from textual.content import Content
from textual.widget import Widget

from persona_tui.core.mix import layers_text
from persona_tui.tui.fluency import STRAINED, Fluency
from persona_tui.tui.sturdy import Sturdy
from persona_tui.tui.widgets.chooser import LABEL_WIDTH

_CELLS = 8
_WIDEST = 1000
_FULL, _EMPTY = "━", "─"
_MOST_PAIRS = 6
_FAR = 2.0  # nats a token from the plain model that fill the bar


class Gauges(Sturdy, Widget):
    """Size, fluency and distance from the plain model, each with a bar; amber where it is too much."""

    DEFAULT_CSS = "Gauges { height: auto; width: 1fr; }"

    def __init__(self, *, id: str | None = None) -> None:
        super().__init__(id=id)
        self._loudness: Mapping[int, float] = {}
        self._fluency = Fluency()
        self._nats: float | None = None

    @property
    def fluency(self) -> Fluency:
        """The latest reading."""
        return self._fluency

    def show_loudness(self, loudness: Mapping[int, float]) -> None:
        """Show how long the blend's vector is at each layer, as a share of the residual stream."""
        if loudness != self._loudness:
            self._loudness = dict(loudness)
            self._redraw()

    def show_fluency(self, fluency: Fluency) -> None:
        """Show how close the text is to breaking down."""
        if fluency != self._fluency:
            self._fluency = fluency
            self._redraw()

    def show_nats(self, nats: float | None) -> None:
        """Show how far the reply is from what the plain model would say; None = nobody has measured that."""
        if nats != self._nats:
            self._nats = nats
            self._redraw()

    def _redraw(self) -> None:
        """Draw the rows, and lay the screen out again only if there are more or fewer than were drawn."""
        self.refresh(layout=len(self._rows()) != self.size.height)

    def get_content_height(self, *_: object) -> int:
        """Two or three bars, and a line for each that has something to say."""
        return len(self._rows())

    def render(self) -> Content:
        """Return the rows."""
        width = self.size.width or _WIDEST
        return Content("\n").join(row.truncate(width, ellipsis=True) for row in self._rows())

    def _rows(self) -> list[Content]:
        return [*self._size_rows(), *self._nats_rows(), *self._fluency_rows()]

    def _size_rows(self) -> list[Content]:
        if not self._loudness:
            return [_row("size", 0.0, "nothing", amber=False)]
        largest = max(self._loudness.values())
        row = _row("size", largest, f"{largest:.0%}", amber=False)
        return [row, _detail(f"of the norm at {layers_text(sorted(self._loudness))}")]

    def _nats_rows(self) -> list[Content]:
        if self._nats is None:
            return []
        return [_row("from plain", self._nats / _FAR, f"{self._nats:.2f} nats", amber=False)]

    def _fluency_rows(self) -> list[Content]:
        reading = self._fluency
        word = reading.word if reading.broken else "strained" if reading.level > STRAINED else "fine"
        row = _row("fluency", 1 - min(reading.level, 1.0), word, amber=reading.broken)
        return [row, _detail(reading.reason, amber=reading.broken)] if reading.level else [row]


class Likeness(Sturdy, Widget):
    """The cosines between the loaded personas, two by two."""

    DEFAULT_CSS = "Likeness { height: auto; width: 1fr; }"

    def __init__(self, *, id: str | None = None) -> None:
        super().__init__(id=id)
        self._pairs: list[tuple[str, str, float]] = []

    def show(self, cosines: Mapping[tuple[str, str], float]) -> None:
        """Show these; the most alike first."""
        pairs = [(one, other, value) for (one, other), value in cosines.items()]
        self._pairs = sorted(pairs, key=lambda pair: -abs(pair[2]))
        self.display = bool(self._pairs)
        self.refresh(layout=True)

    def get_content_height(self, *_: object) -> int:
        """Return how many rows there are."""
        return self._text().plain.count("\n") + 1

    def render(self) -> Content:
        """Return the rows."""
        return self._text()

    def _text(self) -> Content:
        width = max(self.size.width, 20) - 6
        rows = [_pair(one, other, value, width) for one, other, value in self._pairs[:_MOST_PAIRS]]
        hidden = len(self._pairs) - len(rows)
        more = [Content.styled(f"and {hidden} more pairs", "dim")] if hidden > 0 else []
        return Content("\n").join([Content.styled("alike (cosine)", "dim"), *rows, *more])


def _row(label: str, share: float, value: str, *, amber: bool) -> Content:
    filled = round(max(0.0, min(1.0, share)) * _CELLS)
    style = "$text-warning" if amber else "$text-success" if label == "fluency" else "$text-accent"
    return Content.assemble(
        label.ljust(LABEL_WIDTH),
        " ",
        (_FULL * filled, style),
        (_EMPTY * (_CELLS - filled), "dim"),
        (f" {value}", f"bold {style}" if amber else ""),
    )


def _detail(text: str, *, amber: bool = False) -> Content:
    return Content.styled(f"  {text}", "$text-warning" if amber else "dim")


def _pair(one: str, other: str, value: float, width: int) -> Content:
    names = Content(f"{one} · {other}").truncate(width, ellipsis=True)
    return Content.assemble(names.pad_right(width - names.cell_length), f" {value:+.2f}")
