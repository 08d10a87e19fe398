"""The fader, by itself."""

from __future__ import annotations

import pytest
from textual.app import App, ComposeResult

from persona_tui.tui.widgets.slider import FloatSlider


class Faders(App[None]):
    """Two faders, one above the other."""

    def __init__(self) -> None:
        super().__init__()
        self.chosen: list[float] = []

    def compose(self) -> ComposeResult:
        yield FloatSlider("one", 0.3, id="one")
        yield FloatSlider("two", id="two")

    def on_float_slider_changed(self, event: FloatSlider.Changed) -> None:
        self.chosen.append(event.value)


@pytest.mark.parametrize(
    ("keys", "value"),
    [
        (["right"], 0.35),
        (["left", "left"], 0.2),
        (["shift+right"], 0.55),
        (["home"], 0.0),
        (["ctrl+n"], -0.3),
        (["ctrl+n", "ctrl+n"], 0.3),
        ([*"0.45", "enter"], 0.3),  # without enter first, digits are somebody else's
        (["enter", *"0.45", "enter"], 0.45),
        (["enter", "minus", *".5", "enter"], -0.5),
        (["enter", *".5", "minus", "enter"], -0.5),
        (["enter", *"7", "enter"], 1.0),
        (["enter", *".9", "escape"], 0.3),
        (["enter", *".92", "backspace", "enter"], 0.9),
        (["enter", *".8", "down"], 0.8),
    ],
)
async def test_keys(keys: list[str], value: float) -> None:
    app = Faders()
    async with app.run_test(size=(40, 4)) as pilot:
        await pilot.press(*keys)
        assert app.query_one("#one", FloatSlider).value == pytest.approx(value)
        assert app.chosen[-1:] in ([], [pytest.approx(value)])


async def test_the_mouse_sets_and_drags() -> None:
    app = Faders()
    async with app.run_test(size=(40, 4)) as pilot:
        slider = app.query_one("#two", FloatSlider)
        start, middle = slider._bar_start, slider._bar_start + slider._bar_width // 2
        await pilot.mouse_down("#two", offset=(start, 0))
        assert slider.value == -1.0
        await pilot.hover("#two", offset=(middle, 0))
        await pilot.mouse_up("#two", offset=(middle, 0))
        assert slider.value == 0.0


@pytest.mark.parametrize("width", [24, 31, 40, 80])
async def test_the_row_fits_the_widget(width: int) -> None:
    app = Faders()
    async with app.run_test(size=(width, 4)):
        assert app.query_one("#one", FloatSlider).render().cell_length <= width
