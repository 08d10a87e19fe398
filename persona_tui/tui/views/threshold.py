"""The threshold: a slider between the ends of the scores."""

from __future__ import annotations

import math
from typing import ClassVar

from textual.binding import Binding, BindingType
from textual.content import Content

from persona_tui.tui.widgets.slider import FloatSlider

_STEPS = 100  # about how many there are from one end to the other
_BIG = 10  # small steps in a big one


class ThresholdSlider(FloatSlider, inherit_bindings=False):
    """`threshold ──────●─── 44.62`: arrow keys move it, digits type a value."""

    VALUE_WIDTH = 10
    DIGITS = 8
    DIGITS_BEGIN: ClassVar[bool] = True
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("left", "step(-1)", "lower", id="threshold_less"),
        Binding("right", "step(1)", "higher", id="threshold_more"),
        Binding("shift+left", "big_step(-1)", "much lower", show=False, id="threshold_much_less"),
        Binding("shift+right", "big_step(1)", "much higher", show=False, id="threshold_much_more"),
        Binding("down", "app.focus_next", "next", show=False, id="threshold_next"),
        Binding("up", "app.focus_previous", "previous", show=False, id="threshold_previous"),
    ]
    DEFAULT_CSS = """
    ThresholdSlider { height: 1; width: 1fr; }
    ThresholdSlider:focus { background: $boost; text-style: bold; }
    """

    def __init__(self, *, id: str | None = None) -> None:
        super().__init__("threshold", 0.0, shape="{:.4g}", id=id)
        self.disabled = True

    def fit(self, low: float, high: float, value: float) -> None:
        """Take new ends and a value; nothing is posted."""
        self.low, self.high = low, high
        self._step = _round_step((high - low) / _STEPS)
        self._big_step = _BIG * self._step
        self.disabled = False
        self.typed = ""
        self.set_reactive(FloatSlider.value, value)
        self.refresh()

    def action_negate(self) -> None:
        """A minus begins a number."""
        self._set_typed(self.typed[1:] if self.typed.startswith("-") else f"-{self.typed}")

    def _type(self, character: str) -> None:
        self._set_typed(self.typed + character)

    def _bar(self) -> Content:
        knob = self._cell(self.value)
        cells = ["─"] * self._bar_width
        cells[knob] = "●"
        return Content("".join(cells)).stylize("dim").stylize("$text-warning", knob, knob + 1)


def _round_step(size: float) -> float:
    """Return a step near a size that people can add up: 1, 2 or 5 times a power of ten."""
    if size <= 0 or not math.isfinite(size):
        return 0.01
    power = 10.0 ** math.floor(math.log10(size))
    return next(power * factor for factor in (1, 2, 5, 10) if power * factor >= size * 0.7)
