"""What B is spoken with, typed in one line or chosen row by row."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, ClassVar

from textual import on
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal, Vertical
from textual.widgets import Button, Input, Static

from persona_tui.chat.voice import parse_setting, setting_as_text
from persona_tui.core.errors import PersonaTuiError
from persona_tui.tui.screens.dialog import Dialog
from persona_tui.tui.widgets.chooser import LABEL_WIDTH, Chooser
from persona_tui.tui.widgets.slider import FloatSlider

if TYPE_CHECKING:
    from persona_tui.core.mix import Mix

NOBODY = "none"
BLEND = "a blend"
_SWITCH = {True: "on", False: "off"}
_EXPLANATION = "The same message and seed are answered with A, as the faders stand, and with B:"


class SettingScreen(Dialog[str]):
    """One field and three rows that say the same. The answer is what is typed; empty = leave A/B."""

    BINDINGS: ClassVar[list[BindingType]] = [Binding("ctrl+s", "use", "use it", id="setting_use")]

    def __init__(self, mix: Mix, default: Mix, names: Sequence[str]) -> None:
        """
        Args:
            mix: what B is spoken with now.
            default: what holds where nothing is typed: A.
            names: the personas and traits there are.
        """
        super().__init__()
        self._mix, self._default, self._names = mix, default, names

    def compose(self) -> ComposeResult:
        """Return the dialog."""
        with Vertical(classes="dialog form") as dialog:
            dialog.border_title = "the setting of B"
            dialog.border_subtitle = "enter or ctrl+s uses it · esc cancels"
            yield Static(_EXPLANATION, markup=False, classes="question")
            yield Input(setting_as_text(self._mix), id="setting", compact=True)
            yield Chooser("persona", [NOBODY, *self._names], id="setting-persona")
            yield FloatSlider("strength", self._mix.strength, label_width=LABEL_WIDTH, id="setting-strength")
            yield Chooser("capping", list(_SWITCH.values()), id="setting-capping")
            yield Static("", id="advice", markup=False)
            with Horizontal(classes="buttons"):
                yield Button("Use it", id="use", variant="primary", compact=True)
                yield Button("Leave A/B", id="leave", compact=True)
                yield Button("Cancel", id="cancel", compact=True)

    def on_mount(self) -> None:
        """Begin with the field."""
        self.query_one("#setting").focus()
        self._show(self._mix)

    # --- typing

    @on(Input.Changed)
    def _typed(self) -> None:
        mix = self._read()
        if mix is not None:
            self._show(mix)

    def _read(self) -> Mix | None:
        """Return what is typed; None, and a word of advice, if that is not a setting."""
        problem, mix = "", None
        try:
            mix = parse_setting(self.query_one("#setting", Input).value, self._default)
        except PersonaTuiError as error:
            problem = str(error)
        unknown = [name for name in mix.weights if name not in self._names] if mix is not None else []
        if unknown:
            problem, mix = f'there is no persona "{unknown[0]}"', None
        advice = self.query_one("#advice", Static)
        advice.update(problem)
        advice.set_class(bool(problem), "-error")
        return mix

    def _show(self, mix: Mix) -> None:
        self._mix = mix
        active = list(mix.speaking)
        alone = active[:1] if list(mix.weights.values()) == [1.0] else []
        self.query_one("#setting-persona", Chooser).value = next(iter(alone), BLEND if active else NOBODY)
        self.query_one("#setting-strength", FloatSlider).value = mix.strength
        self.query_one("#setting-capping", Chooser).value = _SWITCH[mix.capping]

    # --- choosing

    @on(Chooser.Changed, "#setting-persona")
    def _persona_chosen(self, event: Chooser.Changed) -> None:
        event.stop()
        self._write(replace(self._mix, weights={} if event.value == NOBODY else {event.value: 1.0}))

    @on(Chooser.Changed, "#setting-capping")
    def _capping_chosen(self, event: Chooser.Changed) -> None:
        event.stop()
        self._write(replace(self._mix, capping=event.value == _SWITCH[True]))

    @on(FloatSlider.Changed)
    def _strength_chosen(self, event: FloatSlider.Changed) -> None:
        event.stop()
        self._write(replace(self._mix, strength=event.value))

    def _write(self, mix: Mix) -> None:
        self._show(mix)
        self.query_one("#setting", Input).value = setting_as_text(mix)

    # --- answering

    @on(Input.Submitted)
    @on(Button.Pressed, "#use")
    def action_use(self) -> None:
        """Take the setting, unless it is none."""
        if self._read() is not None:
            self.dismiss(setting_as_text(self._mix))
        else:
            self.app.bell()

    @on(Button.Pressed, "#leave")
    def _leave_pressed(self) -> None:
        self.dismiss("")

    @on(Button.Pressed, "#cancel")
    def _cancel_pressed(self) -> None:
        self.action_leave()
