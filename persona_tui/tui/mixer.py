"""The mix on the screen: the mixer's panel, rulers in the chat, what is traced and how fluent replies are."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from statistics import fmean
from typing import TYPE_CHECKING, Any

from persona_tui.chat.voice import shares
from persona_tui.core.errors import PersonaTuiError
from persona_tui.core.mix import Mix, layers_text, parse_layers
from persona_tui.tui import collector
from persona_tui.tui.fluency import (
    Fluency,
    FluencyMeter,
    fluent_limit,
    ordinary_entropy,
    recommended_strength,
)
from persona_tui.tui.inspection import TokenReading
from persona_tui.tui.messages import LogLine, OrdinaryMeasured
from persona_tui.tui.screens.ask import AskScreen
from persona_tui.tui.widgets.mixer import MixerState
from persona_tui.tui.widgets.token_view import unit_of
from persona_tui.tui.widgets.too_small import SHORT
from persona_tui.tui.widgets.trace import Line, TracePoint

if TYPE_CHECKING:
    from persona_tui.steering import SteeringEngine
    from persona_tui.tui.stage import AppStage
    from persona_tui.vectors.persona import Calibration

IDLE = 2.0  # seconds after a reply until the garbage collector may run
ASSISTANT = "assistant"
_TALL = 34  # rows of the terminal from which on a second trace has its place
_AXES = {"assistant": "the assistant axis", "safety": "the safety axis"}


class Mixer:
    """Follows the mix, and what replies written with it measure."""

    def __init__(self, app: AppStage) -> None:
        self._app = app
        self._traced: Sequence[str] | None = None  # None = what goes without saying
        self._cosines: tuple[list[str], Mapping[tuple[str, str], float]] = ([], {})
        self._limit: float | None = None
        self._recommended = 0.0
        self._nats: list[float] = []  # from plain, of the tokens that are shown
        self._asked_ordinary = False
        self._meter = FluencyMeter()

    @property
    def _engine(self) -> SteeringEngine | None:
        return self._app.project.loaded_engine if self._app.model_ready else None

    # --- moving

    def moved(self, mix: Mix) -> None:
        """Take note that the chat is spoken with another mix."""
        if self._engine is not None:
            self._find_limits(mix)

    def opened(self) -> None:
        """Take note that another conversation is shown."""
        if self._engine is not None:
            self._find_limits(self._app.chat.mix)

    def _find_limits(self, mix: Mix) -> None:
        manager, calibrated = self._app.project.personas, mix.layers is None
        parts = {name: (manager.get(name), weight) for name, weight in mix.weights.items() if calibrated}
        self._limit, self._recommended = fluent_limit(parts), recommended_strength(parts)

    def ask_layers(self) -> None:
        """Ask where personas are to be added."""

        def answered(text: str | None) -> None:
            if text is not None:
                self._app.attempt(lambda: self._app.chat.change_mix(layers=parse_layers(text)))

        mix = self._app.chat.mix
        self._app.push_screen(
            AskScreen(
                "steering layers",
                f"At which layers are personas added? This model has {self._layer_count()}. "
                "The strength is shared among several layers. auto: the calibrated layers.",
                ", ".join(map(str, mix.layers)) if mix.layers else "auto",
                _layers_problem,
                "4, or 3-5, or auto",
            ),
            answered,
        )

    def _layer_count(self) -> str:
        engine = self._engine
        return f"0 to {engine.model.n_layers - 1}" if engine is not None else "not been loaded yet"

    def forget(self) -> None:
        """Forget what was found out about another model and its personas."""
        self._cosines = ([], {})
        self._limit, self._recommended = None, 0.0
        self._meter = FluencyMeter()
        self._asked_ordinary = False
        self._app.main.trace.clear()

    # --- showing

    def state(self, loaded: Sequence[str]) -> MixerState:
        """Return what the mixer's panel shows.

        Args:
            loaded: the personas that have a fader.
        """
        mix, engine = self._app.chat.mix, self._engine
        weights = {name: mix.weights.get(name, 0.0) for name in loaded}
        state: dict[str, Any] = {
            "strength": mix.strength,
            "capping": mix.capping,
            "capped": self.capped,
            "weights": weights,
            "shares": shares(mix),
            "plausibility": mix.plausibility,
        }
        try:
            if engine is not None:
                state |= self._measured(engine, mix, loaded)
        except PersonaTuiError:  # said in the chat already
            pass
        return MixerState(**state)

    @property
    def capped(self) -> bool:
        """Whether a floor is enforced if one is asked for; taken for granted until the model is there."""
        engine = self._engine
        try:
            return engine is None or engine.floor_of(replace(self._app.chat.mix, capping=True)) is not None
        except PersonaTuiError:  # said in the chat already
            return False

    def _measured(self, engine: SteeringEngine, mix: Mix, loaded: Sequence[str]) -> dict[str, Any]:
        axes, axis = engine.personas.axes, engine.capping_axis() or ""
        loudness = engine.loudness() if mix.weights and mix.strength else {}
        return {
            "axes": axes.names if axes is not None else (),
            "axis": axis,
            "weak_axis": axes is not None and bool(axes.doubt(axis)),
            "percentile": engine.safety_floor if mix.percentile is None else mix.percentile,
            "layers": _where(mix, loudness),
            "loudness": loudness,
            "cosines": self._pairwise(loaded),
            "calibration": self._calibration(engine, mix),
        }

    def _calibration(self, engine: SteeringEngine, mix: Mix) -> Calibration | None:
        """Return what was measured of the persona that speaks alone, at the layers where it is added."""
        names = list(mix.speaking)
        return engine.personas.get(names[0]).calibration if len(names) == 1 and mix.layers is None else None

    def _pairwise(self, loaded: Sequence[str]) -> Mapping[tuple[str, str], float]:
        """Return the cosines of what is loaded, which only change with that."""
        from persona_tui.vectors.likeness import pairwise

        if self._cosines[0] != list(loaded):
            personas = [name for name in loaded if ":" not in name]
            self._cosines = (list(loaded), pairwise(self._app.project.personas, personas))
        return self._cosines[1]

    # --- measuring a reply

    def begin_measuring(self) -> None:
        """Clear the trace and the fluency gauge for another reply."""
        self.clear_measures()
        collector.pause()

    def clear_measures(self) -> None:
        """Clear the trace and the fluency gauge."""
        self._app.main.trace.clear()
        self._meter.clear()
        self._nats.clear()
        self.show_fluency()

    def measure(self, readings: Iterable[TokenReading]) -> None:
        """Draw tokens of the reply in the trace and the fluency gauge."""
        trace = self._app.main.trace
        for reading in readings:
            trace.add(TracePoint(reading.projections, reading.lifted))
            self._meter.add(reading.text, reading.entropy)
            if reading.nats is not None:
                self._nats.append(reading.nats)
        trace.refresh()
        self.show_fluency()

    def show_measures(self, readings: Iterable[TokenReading]) -> None:
        """Draw a reply that was measured before, in place of the one that is drawn."""
        self.clear_measures()
        self.measure(readings)

    def end_measuring(self) -> None:
        """Take note that the reply that was measured has ended."""
        steered = bool(self._app.chat.mix.weights)
        self._meter.finish(steered)
        if steered:
            self._measure_ordinary()
        collector.resume()
        self._app.set_timer(IDLE, lambda: None if self._app.busy else collector.collect())

    def fluency(self) -> Fluency:
        """Return how fluent the latest reply is."""
        mix = self._app.chat.mix
        return self._meter.read(mix.strength if mix.weights else 0.0, self._limit, self._recommended)

    def show_fluency(self) -> None:
        """Draw how fluent the reply is, and how far from the plain model."""
        nats = fmean(self._nats) if self._nats else None
        self._app.main.mixer.show_reply(self.fluency(), nats)

    def _measure_ordinary(self) -> None:
        """Find out how certain this model ordinarily is: once, after the first reply that was steered."""
        if self._asked_ordinary or self._meter.ordinary is not None:
            return
        self._asked_ordinary = True
        engine, post = self._app.project.engine, self._app.post_message

        def work() -> None:
            try:
                post(OrdinaryMeasured(engine, ordinary_entropy(engine)))
            except PersonaTuiError as error:
                post(LogLine(f"ordinary replies could not be measured: {error}"))

        self._app.worker.submit_turn(work)

    def ordinary_measured(self, message: OrdinaryMeasured) -> None:
        """Take note of how certain the model ordinarily is."""
        if message.engine is self._engine and self._meter.ordinary is None:
            self._meter.ordinary = message.entropy
            self.show_fluency()

    # --- tracing

    def traceable(self) -> tuple[dict[str, str], Sequence[str]]:
        """Return what can be traced, with what it is, and what is traced.

        Raises:
            PersonaTuiError: the model is still loading, or there is nothing to trace.
        """
        self._app.check_model()
        from persona_tui.traits.vector import weakness_of

        engine = self._app.project.engine
        offered = {
            name: _AXES.get(name, "a loaded persona") + (f", weak: {weak}" if weak else "")
            for name in sorted(engine.traces(), key=_axes_first)
            for weak in [weakness_of(engine.personas, name)]
        }
        if not offered:
            raise PersonaTuiError("there is nothing to trace: no axes yet, and no persona is loaded")
        return offered, self._app.main.trace.names

    def trace(self, names: Sequence[str]) -> None:
        """Trace these from now on, in this order."""
        self._traced = list(names)
        self.show_traces()

    def toggle_trace(self, name: str) -> None:
        """Trace a persona too, or not any more."""
        shown = self._app.main.trace.names
        self.trace([other for other in shown if other != name] if name in shown else [*shown, name])

    def show_traces(self) -> None:
        """Draw what is traced, around the floor or around ordinary replies."""
        engine = self._engine
        if engine is None:
            return
        try:
            known = engine.traces()
            lines = {name: self._line(engine, name) for name in self._wanted(list(known)) if name in known}
        except PersonaTuiError:  # said in the chat already
            return
        if lines != self._app.main.trace.lines:
            self._app.main.trace.show(lines)

    def _wanted(self, known: Sequence[str]) -> list[str]:
        """Return what the user chose, else the assistant axis and, where there is room, who speaks."""
        if self._app.size.height < SHORT:
            return []
        if self._traced is not None:
            return list(self._traced)
        speaking = list(self._app.chat.mix.weights)[:1] if self._app.size.height >= _TALL else []
        return [*([ASSISTANT] if ASSISTANT in known else []), *speaking]

    def _line(self, engine: SteeringEngine, name: str) -> Line:
        from persona_tui.traits.vector import weakness_of

        weak = weakness_of(engine.personas, name) is not None
        return Line(engine.floor_reading(name), unit_of(name), weak)


def _where(mix: Mix, loudness: Mapping[int, float]) -> str:
    """Say where personas are added."""
    if mix.layers is not None:
        return layers_text(mix.layers).partition(" ")[2]
    calibrated = layers_text(sorted(loudness)).partition(" ")[2] if loudness else ""
    return f"{calibrated} as calibrated".strip()


def _layers_problem(text: str) -> str | None:
    try:
        parse_layers(text)
    except PersonaTuiError as error:
        return str(error)
    return None


def _axes_first(name: str) -> tuple[bool, str]:
    return name not in _AXES, name
