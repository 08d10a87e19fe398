"""The mix on the screen: the mixer's panel, rulers in the chat, what is traced and how fluent replies are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from persona_tui.chat.voice import difference
from persona_tui.core.errors import PersonaTuiError
from persona_tui.core.mix import Mix, parse_layers
from persona_tui.tui import collector
from persona_tui.tui.blocks import Ruler
from persona_tui.tui.fluency import Fluency, FluencyMeter, fluent_limit
from persona_tui.tui.screens.ask import AskScreen
from persona_tui.tui.widgets.gauges import layers_text
from persona_tui.tui.widgets.mixer import MixerState
from persona_tui.tui.widgets.trace import Line, TracePoint

if TYPE_CHECKING:
    from persona_tui.model import TokenEvent
    from persona_tui.steering import SteeringEngine
    from persona_tui.tui.stage import AppStage

IDLE = 2.0  # seconds after a reply until the garbage collector may run
ASSISTANT = "assistant"
_TALL = 34  # rows of the terminal from which on a second trace has its place
_AXES = {"assistant": "the assistant axis", "safety": "the safety axis"}


class Mixer:
    """Follows the mix, and what replies written with it measure."""

    def __init__(self, app: AppStage) -> None:
        self._app = app
        self._before = app.chat.mix  # what it was when the chat's last block was added
        self._now = app.chat.mix
        self._ruler: Ruler | None = None
        self._traced: Sequence[str] | None = None  # None = what goes without saying
        self._cosines: tuple[list[str], Mapping[tuple[str, str], float]] = ([], {})
        self._limit: float | None = None
        self._meter = FluencyMeter()

    @property
    def _engine(self) -> SteeringEngine | None:
        return self._app.project.loaded_engine if self._app.model_ready else None

    # --- moving

    def moved(self, mix: Mix) -> None:
        """Take note that the chat is spoken with another mix."""
        if self._engine is not None:
            self._limit = self._fluent_limit(mix)
        self._rule(mix)

    def opened(self) -> None:
        """Take note that another conversation is shown."""
        self._before = self._now = self._app.chat.mix
        self._ruler = None
        if self._engine is not None:
            self._limit = self._fluent_limit(self._now)

    def _rule(self, mix: Mix) -> None:
        """Draw a ruler between two messages; changes that follow each other share one."""
        previous, self._now = self._now, mix
        chat = self._app.main.chat if self._app.is_running else None
        if chat is None or self._app.busy or not chat.messages:
            self._ruler = None
            return
        if self._ruler is None or not chat.blocks or chat.blocks[-1] is not self._ruler:
            self._ruler, self._before = None, previous
        text = difference(self._before, mix)
        if self._ruler is not None:
            chat.take_out(self._ruler)
        self._ruler = Ruler(text) if text else None
        if self._ruler is not None:
            chat.add(self._ruler)

    def _fluent_limit(self, mix: Mix) -> float | None:
        if mix.layers is not None or not mix.weights:
            return None
        manager = self._app.project.personas
        return fluent_limit({name: (manager.get(name), weight) for name, weight in mix.weights.items()})

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
        self._limit = None
        self._meter = FluencyMeter()
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
        axes = engine.personas.axes
        loudness = engine.loudness() if mix.weights and mix.strength else {}
        return {
            "axes": axes.names if axes is not None else (),
            "axis": engine.capping_axis() or "",
            "percentile": engine.safety_floor if mix.percentile is None else mix.percentile,
            "layers": _where(mix, loudness),
            "loudness": loudness,
            "cosines": self._pairwise(loaded),
        }

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

    def measure(self, events: Sequence[TokenEvent]) -> None:
        """Draw tokens of the reply in the trace and the fluency gauge."""
        trace = self._app.main.trace
        for event in events:
            if event.token_id >= 0:
                trace.add(TracePoint(event.projections, event.capped))
                self._meter.add(event.text, event.entropy)
        trace.refresh()
        self.show_fluency()

    def end_measuring(self) -> None:
        """Take note that the reply that was measured has ended."""
        self._meter.finish(steered=bool(self._app.chat.mix.weights))
        collector.resume()
        self._app.set_timer(IDLE, lambda: None if self._app.busy else collector.collect())

    def fluency(self) -> Fluency:
        """Return how fluent the latest reply is."""
        mix = self._app.chat.mix
        return self._meter.read(mix.strength if mix.weights else 0.0, self._limit)

    def show_fluency(self) -> None:
        """Draw how fluent the latest reply is."""
        self._app.main.mixer.show_fluency(self.fluency())

    # --- tracing

    def traceable(self) -> tuple[dict[str, str], Sequence[str]]:
        """Return what can be traced, with what it is, and what is traced.

        Raises:
            PersonaTuiError: the model is still loading, or there is nothing to trace.
        """
        self._app.check_model()
        engine = self._app.project.engine
        offered = {
            name: _AXES.get(name, "a loaded persona") for name in sorted(engine.traces(), key=_axes_first)
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
        if self._traced is not None:
            return list(self._traced)
        speaking = list(self._app.chat.mix.weights)[:1] if self._app.size.height >= _TALL else []
        return [*([ASSISTANT] if ASSISTANT in known else []), *speaking]

    def _line(self, engine: SteeringEngine, name: str) -> Line:
        floor = engine.floor_reading(name)
        unit = "σ" if name in _AXES else ""
        return Line(0.0 if floor is None else floor, floor is not None, unit)


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
