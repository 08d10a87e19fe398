"""Strength and blend: how loud, who, what holds it back, and what that comes to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar

from textual import on
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Container, Vertical, VerticalScroll
from textual.content import Content
from textual.message import Message
from textual.widgets import Static

from persona_tui.chat.voice import share_in_words
from persona_tui.core.mix import TRAIT_PREFIX
from persona_tui.tui.fluency import Fluency
from persona_tui.tui.sturdy import Sturdy
from persona_tui.tui.views.curve import curve_rows
from persona_tui.tui.views.plot import Plot
from persona_tui.tui.widgets.chooser import Chooser, FieldRow
from persona_tui.tui.widgets.gauges import Gauges, Likeness
from persona_tui.tui.widgets.slider import FloatSlider

if TYPE_CHECKING:  # it imports torch
    from persona_tui.vectors.persona import Calibration

_NOTHING = "No persona is loaded. Load one in the list (f2, then space), two or more for a blend."
_ALONE = "{name} speaks alone: the strength is its fader. Load another one (f2, then space) for a blend."
_FLOOR_STEP, _FLOOR_BIG_STEP = 1, 10  # percentiles
_GUIDE_STEP, _GUIDE_BIG_STEP, _GUIDE_MOST = 0.01, 0.05, 0.5  # probability, against the likeliest token


@dataclass(frozen=True)
class MixerState:
    """What the panel shows.

    Attributes:
        strength: of the master.
        capping: whether a floor is asked for.
        capped: whether it is enforced.
        axes: what it could be enforced on; none while there are no axes.
        axis: what it is enforced on.
        weak_axis: whether that may not mean what its name says.
        percentile: where the floor lies.
        layers: where personas are added, in words.
        weights: one per loaded persona.
        shares: of the blend, by who speaks; what is turned round has a negative one.
        plausibility: of the guide; 0 = off.
        loudness: by layer, how long the blend's vector is there, as a share of the residual stream.
        cosines: between the loaded personas.
        calibration: of the persona that speaks alone; None = there is none.
    """

    strength: float = 0.3
    capping: bool = True
    capped: bool = True
    axes: Sequence[str] = ()
    axis: str = ""
    weak_axis: bool = False
    percentile: float = 25
    layers: str = ""
    weights: Mapping[str, float] = field(default_factory=dict)
    shares: Mapping[str, float] = field(default_factory=dict)
    plausibility: float = 0.0
    loudness: Mapping[int, float] = field(default_factory=dict)
    cosines: Mapping[tuple[str, str], float] = field(default_factory=dict)
    calibration: Calibration | None = None


class CappingSwitch(Sturdy, Static, can_focus=True):
    """One row: capping on or off."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("space,enter", "app.toggle_capping", "switch", id="capping_switch"),
        Binding("down", "app.focus_next", "next", show=False, id="capping_next"),
        Binding("up", "app.focus_previous", "previous", show=False, id="capping_previous"),
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


class MixerPanel(Sturdy, Container):
    """The master strength, capping and layers; one fader for each loaded persona; what it comes to."""

    BORDER_TITLE = "strength and blend"

    @dataclass
    class Chosen(Message):
        """The user moved something: strength, axis, percentile or plausibility, and its new value."""

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
            yield FloatSlider(
                "guide",
                low=0,
                high=_GUIDE_MOST,
                step=_GUIDE_STEP,
                big_step=_GUIDE_BIG_STEP,
                shape="{:.2f}",
                id="guide",
            )
            yield FieldRow("layers", id="layers")
        with VerticalScroll(id="mixer-voices", can_focus=False):
            yield Vertical(id="faders")
            yield Gauges(id="gauges")
            yield Static(_NOTHING, id="mixer-note", markup=False)
            yield Plot(id="curve")
            yield Likeness(id="likeness")

    def show(self, state: MixerState) -> None:
        """Show a mix."""
        self.query_one("#master", FloatSlider).value = state.strength
        self.query_one(CappingSwitch).show(state.capping, state.capped)
        self._show_floor(state)
        self.query_one("#layers", FieldRow).value = state.layers
        self.query_one(Gauges).show_loudness(state.loudness)
        self.query_one(Likeness).show(state.cosines)
        guide = self.query_one("#guide", FloatSlider)
        guide.value, guide.shown = state.plausibility, None if state.plausibility else "off"
        guide.refresh()
        alone = next(iter(state.shares), "") if len(state.weights) == 1 else ""
        note = self.query_one("#mixer-note", Static)
        note.display = len(state.weights) < 2
        note.update(_ALONE.format(name=alone.removeprefix(TRAIT_PREFIX)) if alone else _NOTHING)
        self._show_curve(state)
        self._show_faders({} if alone else state.weights, state.shares)

    def _show_curve(self, state: MixerState) -> None:
        """Draw what calibration measured of who speaks alone, and where the strength is on that."""
        curve, calibration, now = self.query_one("#curve", Plot), state.calibration, state.strength
        curve.display = calibration is not None and bool(calibration.curve)
        if calibration is not None:
            measured = calibration
            curve.show(lambda width, height: curve_rows(measured, now, width, height))

    def show_reply(self, fluency: Fluency, nats: float | None) -> None:
        """Show how fluent the latest reply is, and how far from the plain model."""
        gauges = self.query_one(Gauges)
        gauges.show_fluency(fluency)
        gauges.show_nats(nats)

    def _show_floor(self, state: MixerState) -> None:
        chooser = self.query_one("#capping-axis", Chooser)
        chooser.values, chooser.value = state.axes, state.axis or "no axes yet"
        chooser.warning = "weak" if state.weak_axis else ""
        chooser.refresh()
        self.query_one("#floor", FloatSlider).value = state.percentile

    def _show_faders(self, weights: Mapping[str, float], shares: Mapping[str, float]) -> None:
        box = self.query_one("#faders")
        faders = {fader.label: fader for fader in box.query(FloatSlider)}
        for name in faders.keys() - weights.keys():
            faders[name].remove()
        for name, weight in weights.items():
            fader = faders.get(name)
            if fader is None:
                fader = FloatSlider(name, weight, label_width=None, caption=name.removeprefix(TRAIT_PREFIX))
                box.mount(fader)
            fader.value, fader.shown = weight, share_in_words(shares.get(name, 0.0))
            fader.refresh()

    # --- what the user does

    @on(FloatSlider.Changed)
    def _moved(self, event: FloatSlider.Changed) -> None:
        event.stop()
        if event.slider.id == "master":
            self.post_message(self.Chosen("strength", event.value))
        elif event.slider.id == "floor":
            self.post_message(self.Chosen("percentile", event.value))
        elif event.slider.id == "guide":
            self.post_message(self.Chosen("plausibility", event.value))
        else:
            self.post_message(self.WeightChosen(event.slider.label, event.value))

    @on(FloatSlider.Solo)
    def _solo(self, event: FloatSlider.Solo) -> None:
        event.stop()
        if event.slider.id not in ("master", "floor", "guide"):
            self.post_message(self.SoloChosen(event.slider.label))

    @on(Chooser.Changed)
    def _axis_chosen(self, event: Chooser.Changed) -> None:
        event.stop()
        self.post_message(self.Chosen("capping_axis", event.value))

    @on(FieldRow.EditAsked)
    def _layers_asked(self, event: FieldRow.EditAsked) -> None:
        event.stop()
        self.post_message(self.LayersAsked())
