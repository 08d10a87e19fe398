"""Strength and blend: how loud, and who."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from textual import on
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Vertical, VerticalScroll
from textual.content import Content
from textual.message import Message
from textual.widgets import Static

from persona_tui.tui.widgets.slider import FloatSlider

_NOTHING = "No persona is loaded. Load one in the list (f2, then space) to give it a fader here."


class CappingSwitch(Static, can_focus=True):
    """One row: capping on or off."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("space,enter", "app.toggle_capping", "switch", id="capping_switch"),
        Binding("down,j", "app.focus_next", "next", show=False, id="capping_next"),
        Binding("up,k", "app.focus_previous", "previous", show=False, id="capping_previous"),
    ]

    def show(self, on: bool) -> None:
        """Show where it stands."""
        state = ("on", "bold $text-success") if on else ("off", "bold $text-warning")
        mark = ("━━●", "$text-success") if on else ("●──", "$text-warning")
        self.update(Content.assemble("capping    ", mark, " ", state))

    def on_click(self) -> None:
        """A click switches it."""
        self.run_action_soon()

    def run_action_soon(self) -> None:
        """Switch, in the app."""
        self.call_later(self.run_action, "app.toggle_capping")


class MixerPanel(Vertical):
    """The master strength, capping, and one fader for each loaded persona."""

    BORDER_TITLE = "strength and blend"

    @dataclass
    class StrengthChosen(Message):
        """The user moved the master."""

        value: float

    @dataclass
    class WeightChosen(Message):
        """The user moved a persona's fader."""

        name: str
        value: float

    @dataclass
    class SoloChosen(Message):
        """The user wants one persona alone."""

        name: str

    def compose(self) -> ComposeResult:
        """Return the panel's parts."""
        yield FloatSlider("strength", id="master")
        yield CappingSwitch(id="capping")
        yield Static("", id="capping-note")
        yield VerticalScroll(id="faders", can_focus=False)
        yield Static(_NOTHING, id="mixer-note", markup=False)

    def show(self, strength: float, capping: bool, capping_note: str, weights: Mapping[str, float]) -> None:
        """Show a mix.

        Args:
            strength: of the master.
            capping: whether the floor is enforced.
            capping_note: which floor that is.
            weights: one per loaded persona.
        """
        self.query_one("#master", FloatSlider).value = strength
        self.query_one(CappingSwitch).show(capping)
        self.query_one("#capping-note", Static).update(Content(capping_note))
        self.query_one("#mixer-note").display = not weights
        self._show_faders(weights)

    def _show_faders(self, weights: Mapping[str, float]) -> None:
        box = self.query_one("#faders")
        faders = {fader.label: fader for fader in box.query(FloatSlider)}
        for name in faders.keys() - weights.keys():
            faders[name].remove()
        for name, weight in weights.items():
            if name in faders:
                faders[name].value = weight
            else:
                box.mount(FloatSlider(name, weight))

    @on(FloatSlider.Changed)
    def _moved(self, event: FloatSlider.Changed) -> None:
        event.stop()
        if event.slider.id == "master":
            self.post_message(self.StrengthChosen(event.value))
        else:
            self.post_message(self.WeightChosen(event.slider.label, event.value))

    @on(FloatSlider.Solo)
    def _solo(self, event: FloatSlider.Solo) -> None:
        event.stop()
        if event.slider.id != "master":
            self.post_message(self.SoloChosen(event.slider.label))
