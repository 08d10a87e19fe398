"""Strength and blend: how loud, who, what holds it back, and what that comes to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

from textual import on
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Container, Vertical, VerticalScroll
from textual.content import Content
from textual.message import Message
from textual.widgets import Static

from persona_tui.core.workspace import TRAIT_PREFIX
from persona_tui.tui.fluency import Fluency
from persona_tui.tui.widgets.chooser import Chooser
from persona_tui.tui.widgets.field import FieldRow
from persona_tui.tui.widgets.gauges import Gauges, Likeness
from persona_tui.tui.widgets.slider import FloatSlider

_NOTHING = "No persona is loaded. Load one in the list (f2, then space) to give it a fader here."
_FLOOR_STEP, _FLOOR_BIG_STEP = 1, 10  # percentiles


@dataclass(frozen=True)
class MixerState:
    """What the panel shows.

    Attributes:
        strength: of the master.
        capping: whether a floor is asked for.
        capped: whether it is enforced.
        axes: what it could be enforced on; none while there are no axes.
        axis: what it is enforced on.
        percentile: where the floor lies.
        layers: where personas are added, in words.
        weights: one per loaded persona.
        loudness: by layer, how long the blend's vector is there, as a share of the residual stream.
        cosines: between the loaded personas.
    """

    strength: float = 0.3
    capping: bool = True
    capped: bool = True
    axes: Sequence[str] = ()
    axis: str = ""
    percentile: float = 25
    layers: str = ""
    weights: Mapping[str, float] = field(default_factory=dict)
    loudness: Mapping[int, float] = field(default_factory=dict)
    cosines: Mapping[tuple[str, str], float] = field(default_factory=dict)


class CappingSwitch(Static, can_focus=True):
    """One row: capping on or off."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("space,enter", "app.toggle_capping", "switch", id="capping_switch"),
        Binding("down,j", "app.focus_next", "next", show=False, id="capping_next"),
        Binding("up,k", "app.focus_previous", "previous", show=False, id="capping_previous"),
    ]

    def show(self, on: bool, capped: bool) -> None:
        """Show where it stands, and whether there is a floor."""
        state = ("on", "bold $text-success") if on else ("off", "bold $text-warning")
        if on and not capped:
            state = ("no floor", "bold $text-warning")
        mark = ("━━●", "$text-success") if on else ("●──", "$text-warning")
        self.update(Content.assemble("capping    ", mark, " ", state))

    def on_click(self) -> None:
        """A click switches it."""
        self.call_later(self.run_action, "app.toggle_capping")


class MixerPanel(Container):
    """The master strength, capping and layers; one fader for each loaded persona; what it comes to."""

    BORDER_TITLE = "strength and blend"

    @dataclass
    class Chosen(Message):
        """The user moved something: strength, axis or percentile, and its new value."""

        what: str
        value: float | str

    @dataclass
    class WeightChosen(Message):
        """The user moved a persona's fader."""

        name: str
        value: float

    @dataclass
    class SoloChosen(Message):
        """The user wants one persona alone."""

        name: str

    @dataclass
    class LayersAsked(Message):
        """The user wants to choose the steering layers."""

    def compose(self) -> ComposeResult:
        """Return the panel's parts."""
        with Vertical(id="mixer-settings"):
            yield FloatSlider("strength", id="master")
            yield CappingSwitch(id="capping")
            yield Chooser("on axis", id="capping-axis")
            yield FloatSlider(
                "floor",
                25,
                low=0,
                high=100,
                step=_FLOOR_STEP,
                big_step=_FLOOR_BIG_STEP,
                shape="{:g} %",
                id="floor",
            )
            yield FieldRow("layers", id="layers")
            yield Gauges(id="gauges")
        with VerticalScroll(id="mixer-voices", can_focus=False):
            yield Vertical(id="faders")
            yield Static(_NOTHING, id="mixer-note", markup=False)
            yield Likeness(id="likeness")

    def show(self, state: MixerState) -> None:
        """Show a mix."""
        self.query_one("#master", FloatSlider).value = state.strength
        self.query_one(CappingSwitch).show(state.capping, state.capped)
        self._show_floor(state)
        self.query_one("#layers", FieldRow).value = state.layers
        self.query_one(Gauges).show_loudness(state.loudness)
        self.query_one(Likeness).show(state.cosines)
        self.query_one("#mixer-note").display = not state.weights
        self._show_faders(state.weights)

    def show_fluency(self, fluency: Fluency) -> None:
        """Show how fluent the latest reply is."""
        self.query_one(Gauges).show_fluency(fluency)

    def _show_floor(self, state: MixerState) -> None:
        chooser = self.query_one("#capping-axis", Chooser)
        chooser.values, chooser.value = state.axes, state.axis or "no axes yet"
        chooser.refresh()
        self.query_one("#floor", FloatSlider).value = state.percentile

    def _show_faders(self, weights: Mapping[str, float]) -> None:
        box = self.query_one("#faders")
        faders = {fader.label: fader for fader in box.query(FloatSlider)}
        for name in faders.keys() - weights.keys():
            faders[name].remove()
        for name, weight in weights.items():
            if name in faders:
                faders[name].value = weight
            else:
                box.mount(FloatSlider(name, weight, caption=name.removeprefix(TRAIT_PREFIX)))

    # --- what the user does

    @on(FloatSlider.Changed)
    def _moved(self, event: FloatSlider.Changed) -> None:
        event.stop()
        if event.slider.id == "master":
            self.post_message(self.Chosen("strength", event.value))
        elif event.slider.id == "floor":
            self.post_message(self.Chosen("percentile", event.value))
        else:
            self.post_message(self.WeightChosen(event.slider.label, event.value))

    @on(FloatSlider.Solo)
    def _solo(self, event: FloatSlider.Solo) -> None:
        event.stop()
        if event.slider.id not in ("master", "floor"):
            self.post_message(self.SoloChosen(event.slider.label))

    @on(Chooser.Changed)
    def _axis_chosen(self, event: Chooser.Changed) -> None:
        event.stop()
        self.post_message(self.Chosen("capping_axis", event.value))

    @on(FieldRow.EditAsked)
    def _layers_asked(self, event: FieldRow.EditAsked) -> None:
        event.stop()
        self.post_message(self.LayersAsked())
