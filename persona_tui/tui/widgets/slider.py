"""A signed number on one row: zero in the middle, by keyboard, mouse or typing."""

from dataclasses import dataclass
from typing import ClassVar

from textual import events
from textual.binding import Binding, BindingType
from textual.content import Content
from textual.message import Message
from textual.reactive import reactive
from textual.timer import Timer
from textual.widget import Widget

from persona_tui.tui.sturdy import Sturdy

STEP = 0.05
BIG_STEP = 0.25
TYPING_PAUSE = 1.5  # seconds after the last digit until a typed value is taken

_TYPED = "0123456789."


class FloatSlider(Sturdy, Widget, can_focus=True):
    """`name ────┼━━●── +0.30`. Values that were set from elsewhere may lie beyond its ends."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("left", "step(-1)", "less", id="slider_less"),
        Binding("right", "step(1)", "more", id="slider_more"),
        Binding("shift+left", "big_step(-1)", "much less", show=False, id="slider_much_less"),
        Binding("shift+right", "big_step(1)", "much more", show=False, id="slider_much_more"),
        Binding("enter", "type", "type a value", id="slider_type"),
        Binding("home", "zero", "zero", id="slider_zero"),
        Binding("ctrl+n", "negate", "negate", show=False, id="slider_negate"),
        Binding("ctrl+o", "solo", "alone", id="slider_solo"),
        Binding("down", "app.focus_next", "next", show=False, id="slider_next"),
        Binding("up", "app.focus_previous", "previous", show=False, id="slider_previous"),
    ]
    DEFAULT_CSS = """
    FloatSlider { height: 1; width: 1fr; }
    FloatSlider:focus { background: $boost; text-style: bold; }
    """

    VALUE_WIDTH: ClassVar[int] = 6  # cells
    DIGITS: ClassVar[int] = 4  # after the point, that values are rounded to
    DIGITS_BEGIN: ClassVar[bool] = False  # whether a digit begins a number; else enter does

    value: reactive[float] = reactive(0.0)
    typed: reactive[str] = reactive("")

    @dataclass
    class Changed(Message):
        """The user chose a value."""

        slider: "FloatSlider"
        value: float

        @property
        def control(self) -> "FloatSlider":
            return self.slider

    @dataclass
    class Solo(Message):
        """The user wants this slider's persona alone."""

        slider: "FloatSlider"

        @property
        def control(self) -> "FloatSlider":
            return self.slider

    def __init__(
        self,
        label: str,
        value: float = 0.0,
        *,
        low: float = -1.0,
        high: float = 1.0,
        step: float = STEP,
        big_step: float = BIG_STEP,
        shape: str = "{:+.2f}",
        label_width: int | None = 10,
        caption: str | None = None,
        id: str | None = None,
    ) -> None:
        """
        Args:
            label: what it changes.
            value: where it stands.
            low: its left end.
            high: its right end.
            step: what an arrow key moves it by.
            big_step: the same with shift.
            shape: how the value is written.
            label_width: cells for the label; None = a third of the row.
            caption: what is shown as its label, if not that.
            id: of the widget.
        """
        super().__init__(id=id)
        self.label = label
        self._caption = label if caption is None else caption
        self.low, self.high = low, high
        self.shown: str | None = None  # what is written in place of the value
        self._step, self._big_step = step, big_step
        self._shape = shape
        self._given_width = label_width
        self._dragging = self._typing = False
        self._pause: Timer | None = None
        self.set_reactive(FloatSlider.value, value)

    # --- changing

    def choose(self, value: float) -> None:
        """Take a value from the user, kept between the ends."""
        value = round(max(self.low, min(self.high, value)), self.DIGITS) + 0.0  # + 0.0 turns -0.0 into 0.0
        self._stop_typing()
        if value != self.value:
            self.value = value
            self.post_message(self.Changed(self, value))

    def action_step(self, count: int) -> None:
        """Move by some small steps, to a multiple of one."""
        self._move(count * self._step)

    def action_big_step(self, count: int) -> None:
        """Move by some big steps."""
        self._move(count * self._big_step)

    def _move(self, amount: float) -> None:
        self.choose(round((self.value + amount) / self._step) * self._step)

    def action_negate(self) -> None:
        """Change the sign of the value."""
        self.choose(-self.value)

    def action_solo(self) -> None:
        """Ask for this one alone."""
        self.post_message(self.Solo(self))

    # --- typing

    @property
    def takes_digits(self) -> bool:
        """Whether a digit typed now belongs to a number here."""
        return self._typing or self.DIGITS_BEGIN

    def action_type(self) -> None:
        """Begin to type a value."""
        self._typing = True
        self._set_typed("")

    def on_key(self, event: events.Key) -> None:
        """Take digits as a number, once one is being typed."""
        if not self.takes_digits:
            return
        if event.character and event.character in _TYPED:
            event.stop()
            self._typing = True
            self._set_typed(self.typed + event.character)
        elif event.character == "-":
            event.stop()
            self._typing = True
            self._set_typed(self.typed[1:] if self.typed.startswith("-") else f"-{self.typed}")
        elif self._typing and event.key in ("backspace", "enter", "escape"):
            event.stop()
            event.prevent_default()
            self._end_typing(event.key)

    def action_zero(self) -> None:
        """Go to zero."""
        self.choose(0.0)

    def _end_typing(self, key: str) -> None:
        if key == "enter":
            self._take_typed()
        elif key == "backspace" and self.typed:
            self._set_typed(self.typed[:-1])
        else:
            self._stop_typing()

    def _set_typed(self, text: str) -> None:
        self.typed = text[: self.VALUE_WIDTH]
        if self._pause is not None:
            self._pause.stop()
        self._pause = self.set_timer(TYPING_PAUSE, self._take_typed)
        self.refresh()

    def _stop_typing(self) -> None:
        self._typing = False
        self.typed = ""
        self.refresh()

    def _take_typed(self) -> None:
        text = self.typed
        self._stop_typing()
        if text in ("", "-"):
            return
        try:
            self.choose(float(text))
        except ValueError:
            self.app.bell()

    def on_blur(self) -> None:
        """Take what was typed when the focus goes elsewhere."""
        if self._typing:
            self._take_typed()

    # --- mouse

    def on_mouse_down(self, event: events.MouseDown) -> None:
        """Begin to drag where the bar was pressed."""
        if self._bar_start <= event.x < self._bar_start + self._bar_width:
            self._dragging = True
            self.capture_mouse()
            self._drag_to(event.x)

    def on_mouse_move(self, event: events.MouseMove) -> None:
        """Follow the mouse while it is held."""
        if self._dragging:
            self._drag_to(event.x)

    def on_mouse_up(self, event: events.MouseUp) -> None:
        """End dragging."""
        self._dragging = False
        self.release_mouse()

    def on_mouse_scroll_up(self, event: events.MouseScrollUp) -> None:
        """One step up."""
        event.stop()
        self.action_step(1)

    def on_mouse_scroll_down(self, event: events.MouseScrollDown) -> None:
        """One step down."""
        event.stop()
        self.action_step(-1)

    def _drag_to(self, x: int) -> None:
        share = (x - self._bar_start) / max(self._bar_width - 1, 1)
        self.choose(round((self.low + share * (self.high - self.low)) / self._step) * self._step)

    # --- drawing

    @property
    def _label_width(self) -> int:
        return max(10, self.size.width // 3) if self._given_width is None else self._given_width

    @property
    def _bar_start(self) -> int:
        return self._label_width + 1

    @property
    def _bar_width(self) -> int:
        room = max(self.size.width - self._label_width - self.VALUE_WIDTH - 2, 3)
        return room if room % 2 else room - 1  # odd, so that zero has a cell of its own

    def render(self) -> Content:
        """Return the row: label, bar, value."""
        name = Content(self._caption).truncate(self._label_width, ellipsis=True)
        value = f"{self.typed}_" if self._typing else self.shown or self._shape.format(self.value)
        style = "$text-warning" if self._typing else "$text-primary" if self.value else "dim"
        return Content.assemble(
            name.pad_right(self._label_width - name.cell_length),
            " ",
            self._bar(),
            (f" {value:>{self.VALUE_WIDTH}}", style),
        )

    def _bar(self) -> Content:
        zero, knob = self._cell(0.0), self._cell(self.value)
        low, high = sorted((zero, knob))
        cells = ["─"] * low + ["━"] * (high - low + 1) + ["─"] * (self._bar_width - high - 1)
        if knob != zero:
            cells[knob] = "●"
        if self.low < 0:
            cells[zero] = "┼" if knob == zero else "╋"
        elif knob == zero:
            cells[zero] = "●"
        bar = Content("".join(cells))
        return bar.stylize("dim", 0, low).stylize("dim", high + 1).stylize(self._colour, low, high + 1)

    def _cell(self, value: float) -> int:
        """Return which cell of the bar stands for a value; the nearest end for one beyond the ends."""
        share = (max(self.low, min(self.high, value)) - self.low) / (self.high - self.low)
        return round(share * (self._bar_width - 1))

    @property
    def _colour(self) -> str:
        if not self.value:
            return "dim"
        return "$text-error" if self.value < 0 else "$text-accent"
