"""A message token by token: its text, and below every row the projections as bars.

A projection is shown three times over, so that it can be read with any number of colours: by the colour of
the text, by the height of the bar, and as a number for the token under the cursor.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from textual import events
from textual.binding import Binding, BindingType
from textual.content import Content
from textual.geometry import Size
from textual.message import Message
from textual.scroll_view import ScrollView
from textual.strip import Strip
from textual.visual import Visual

from persona_tui.core.mix import TRAIT_PREFIX
from persona_tui.tui.sturdy import Sturdy
from persona_tui.tui.token_layout import Piece, rows_of

_BARS = "▁▂▃▄▅▆▇█"
_LIFTED, _UNKNOWN = "▴", " "
_LEVELS = 3  # of colour, on either side
_TINTS = {-3: "on $error 60%", -2: "on $error 40%", -1: "on $error 20%"} | {
    1: "on $success 20%",
    2: "on $success 40%",
    3: "on $success 60%",
}
# Sixteen colours have no shades: the text is coloured, and the strongest is bold and underlined.
_PLAIN = {-3: "bold underline $text-error", -2: "bold $text-error", -1: "$text-error"} | {
    1: "$text-success",
    2: "bold $text-success",
    3: "bold underline $text-success",
}
_CURSOR = "bold reverse"
_NARROWEST = 4  # cells
AXES = ("assistant", "safety")


def unit_of(direction: str) -> str:
    """Return the unit of projections onto a direction; "" of a trait, whose ends are −1 and 1."""
    return "σ" if direction in AXES else "" if direction.startswith(TRAIT_PREFIX) else " of its own"


ROWS = 2  # of the screen for each row of text


@dataclass(frozen=True)
class TokenValue:
    """A token.

    Attributes:
        text: what it adds to the message.
        value: its projection on the chosen direction; None = not known.
        lifted: how far the floor lifted it, in the units of the residual stream.
    """

    text: str
    value: float | None = None
    lifted: float = 0.0


@dataclass(frozen=True)
class Scale:
    """What projections are shown against.

    Attributes:
        middle: what neither is above nor below: the floor, or the mean of ordinary replies.
        span: how far from there the bars and colours reach.
    """

    middle: float = 0.0
    span: float = 1.0

    def share(self, value: float) -> float:
        """Return how far from the middle a value is, −1 to 1."""
        return max(-1.0, min(1.0, (value - self.middle) / self.span))

    def level(self, value: float) -> int:
        """Return which colour a value has, −3 to 3."""
        return round(self.share(value) * _LEVELS)

    def bar(self, value: float) -> str:
        """Return the bar of a value."""
        return _BARS[round((self.share(value) + 1) / 2 * (len(_BARS) - 1))]


class TokenView(Sturdy, ScrollView, can_focus=True):
    """Rows of text and bars, with a cursor on one token."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("left", "step(-1)", "before", show=False, id="inspect_left"),
        Binding("right", "step(1)", "token", id="inspect_right"),
        Binding("up", "row(-1)", "row above", show=False, id="inspect_up"),
        Binding("down", "row(1)", "row below", show=False, id="inspect_down"),
        Binding("home", "go('first')", "first", show=False, id="inspect_first"),
        Binding("end", "go('last')", "last", show=False, id="inspect_last"),
        Binding("shift+down,l", "go('lowest')", "lowest", id="inspect_lowest"),
        Binding("shift+up,h", "go('highest')", "highest", id="inspect_highest"),
        Binding("pagedown,c", "go('capped')", "next capped", id="inspect_capped"),
        Binding("enter", "pick", "say another one", id="inspect_fork"),
    ]
    DEFAULT_CSS = "TokenView { overflow-x: hidden; }"

    class Moved(Message):
        """The cursor is on another token."""

    @dataclass
    class Picked(Message):
        """Another token is wanted in place of one."""

        place: int

    def __init__(self, *, id: str | None = None) -> None:
        super().__init__(id=id)
        self.tokens: Sequence[TokenValue] = ()
        self.scale = Scale()
        self.cursor = 0
        self._rows: list[list[Piece]] = []
        self._row_of: dict[int, int] = {}

    @property
    def current(self) -> TokenValue | None:
        """The token under the cursor."""
        return self.tokens[self.cursor] if self.tokens else None

    # --- what is in it

    def show(self, tokens: Sequence[TokenValue], scale: Scale, *, anew: bool) -> None:
        """Show these.

        Args:
            tokens: the message.
            scale: of the values.
            anew: whether it is another message, so that the cursor goes to its first token.
        """
        following = not anew and self.cursor >= len(self.tokens) - 1 and bool(self.tokens)
        same = [token.text for token in tokens] == [token.text for token in self.tokens]
        self.tokens, self.scale = tokens, scale
        if anew:
            self.cursor = 0
        elif following:
            self.cursor = max(len(tokens) - 1, 0)
        self.cursor = min(self.cursor, max(len(tokens) - 1, 0))
        if not same or anew:
            self._arrange()
            self.refresh(layout=True)
        self.refresh()

    def _arrange(self) -> None:
        width = self.scrollable_content_region.width
        if width < _NARROWEST:  # it was not laid out yet
            self._rows = []
            return
        self._rows = rows_of([token.text for token in self.tokens], width)
        self._row_of = {}
        for number, row in enumerate(self._rows):
            for piece in row:
                self._row_of[piece.token] = number  # of a blank and a word, the word's
        self.virtual_size = Size(width, len(self._rows) * ROWS)
        self._bring()

    def on_resize(self, _: events.Resize) -> None:
        """Wrap for the new width."""
        self._arrange()

    def get_content_height(self, container: Size, viewport: Size, width: int) -> int:
        """Return how many rows of the screen the message takes, as far as its siblings leave room."""
        rows = len(rows_of([token.text for token in self.tokens], width))
        beside = (each.get_content_height(container, viewport, container.width) for each in self.siblings)
        room = container.height - sum(beside) - self.styles.margin.height
        return max(min(rows, room // ROWS), 1) * ROWS

    # --- the cursor

    def action_step(self, step: int) -> None:
        """Go to the token before or after."""
        self._move_to(self.cursor + step)

    def action_row(self, step: int) -> None:
        """Go to the token above or below."""
        number = self._row_of.get(self.cursor, 0)
        here = next((piece for piece in self._at(number) if piece.token == self.cursor), None)
        target = self._at(number + step)
        if here is not None and target:
            nearest = min(target, key=lambda piece: abs(piece.start - here.start))
            self._move_to(nearest.token)

    def action_go(self, where: str) -> None:
        """Go to the first, last, lowest or highest token, or to the next one that the floor lifted."""
        known = [place for place, token in enumerate(self.tokens) if token.value is not None]
        lifted = [place for place, token in enumerate(self.tokens) if token.lifted > 0]
        after = [place for place in lifted if place > self.cursor]
        target = {
            "first": 0,
            "last": len(self.tokens) - 1,
            "lowest": min(known, key=self._value, default=self.cursor),
            "highest": max(known, key=self._value, default=self.cursor),
            "capped": next(iter(after or lifted), self.cursor),
        }[where]
        self._move_to(target)

    def action_pick(self) -> None:
        """Ask for another token in place of the one under the cursor."""
        if self.tokens:
            self.post_message(self.Picked(self.cursor))

    def _value(self, place: int) -> float:
        return self.tokens[place].value or 0.0

    def _move_to(self, place: int) -> None:
        self.cursor = max(min(place, len(self.tokens) - 1), 0)
        self._bring()
        self.refresh()
        self.post_message(self.Moved())

    def _bring(self) -> None:
        """Bring the cursor into view."""
        top = self._row_of.get(self.cursor, 0) * ROWS
        height = max(self.size.height, ROWS)
        if top < self.scroll_y:
            self.scroll_to(y=top, animate=False, force=True)
        elif top + ROWS > self.scroll_y + height:
            self.scroll_to(y=top + ROWS - height, animate=False, force=True)

    def on_click(self, event: events.Click) -> None:
        """Put the cursor where the mouse is."""
        row = self._at((self.scroll_offset.y + event.y) // ROWS)
        for piece in row:
            if piece.start <= event.x < piece.start + piece.width:
                self._move_to(piece.token)

    def _at(self, number: int) -> list[Piece]:
        return self._rows[number] if 0 <= number < len(self._rows) else []

    # --- drawing

    def render_line(self, y: int) -> Strip:
        """Draw one row of the screen: of text, or of bars."""
        width = self.scrollable_content_region.width
        number, kind = divmod(self.scroll_offset.y + y, ROWS)
        row = self._at(number)
        if not row:
            return Strip.blank(self.size.width, self.rich_style)
        line = self._bars(row) if kind else self._text(row)
        strips = Visual.to_strips(self, line, width, 1, self.visual_style, pad=True)
        return strips[0].crop(0, width) if strips else Strip.blank(width, self.rich_style)

    def _text(self, row: Sequence[Piece]) -> Content:
        return Content.assemble(*((piece.text, self._style(piece.token)) for piece in row))

    def _style(self, place: int) -> str:
        value = self.tokens[place].value
        if place == self.cursor:
            return _CURSOR
        styles = _PLAIN if self.app.current_theme.name.startswith("ansi") else _TINTS
        return styles.get(self.scale.level(value), "") if value is not None else "dim"

    def _bars(self, row: Sequence[Piece]) -> Content:
        return Content.assemble(*(self._bar(piece) for piece in row))

    def _bar(self, piece: Piece) -> tuple[str, str]:
        token = self.tokens[piece.token]
        mark = _UNKNOWN if token.value is None else self.scale.bar(token.value)
        if token.lifted > 0:
            return _LIFTED + mark * (piece.width - 1), "bold $text-warning"
        level = self.scale.level(token.value) if token.value is not None else 0
        style = "$text-error" if level < 0 else "$text-success" if level > 0 else "dim"
        return mark * piece.width, style
