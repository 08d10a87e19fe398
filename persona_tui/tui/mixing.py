"""The faders and what they come to: the mixer's panel, what is traced, rulers in the chat."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from persona_tui.core.errors import PersonaTuiError
from persona_tui.tui.blocks import Ruler
from persona_tui.tui.fluency import Fluency, fluent_limit
from persona_tui.tui.screens.ask import AskScreen
from persona_tui.tui.voice import Faders, difference
from persona_tui.tui.widgets.gauges import layers_text
from persona_tui.tui.widgets.mixer import MixerState
from persona_tui.tui.widgets.trace import Line

if TYPE_CHECKING:
    from persona_tui.steering.engine import SteeringEngine
    from persona_tui.tui.app import PersonaApp

ASSISTANT = "assistant"
_TALL = 34  # rows of the terminal from which on a second trace has its place
_AXES = {"assistant": "the assistant axis", "safety": "the safety axis"}


class Mixing:
    """Follows the faders."""

    def __init__(self, app: PersonaApp) -> None:
        self._app = app
        self._before = app.voice.faders  # where they stood when the chat's last block was added
        self._now = app.voice.faders
        self._ruler: Ruler | None = None
        self._traced: Sequence[str] | None = None  # None = what goes without saying
        self._cosines: tuple[list[str], Mapping[tuple[str, str], float]] = ([], {})
        self._limit: float | None = None

    @property
    def _engine(self) -> SteeringEngine | None:
        return self._app.project.loaded_engine if self._app.model_ready else None

    # --- moving

    def moved(self, faders: Faders) -> None:
        """Take note that the faders have moved: tell the engine, and show it.

        Raises:
            PersonaTuiError: the engine cannot speak like that.
        """
        if self._engine is not None:
            self._engine.set_mix(faders.mix())
            self._limit = self._fluent_limit(faders)
            self._record(faders)
        self._rule(faders)

    def _record(self, faders: Faders) -> None:
        """Write down what changed between two replies; what changes in a reply is written down with it."""
        conversation, engine = self._app.speaker.conversation, self._engine
        if engine is not None and not self._app.speaker.busy and len(conversation) and faders != self._now:
            conversation.change_mix(engine.describe(faders.mix()))

    def _rule(self, faders: Faders) -> None:
        """Draw a ruler between two messages; changes that follow each other share one."""
        previous, self._now = self._now, faders
        chat = self._app.main.chat
        if self._app.speaker.busy or not self._app.is_running or not chat.messages:
            self._ruler = None
            return
        if self._ruler is None or not chat.blocks or chat.blocks[-1] is not self._ruler:
            self._ruler, self._before = None, previous
        text = difference(self._before, faders)
        if self._ruler is not None:
            chat.take_out(self._ruler)
        self._ruler = Ruler(text) if text else None
        if self._ruler is not None:
            chat.add(self._ruler)

    def _fluent_limit(self, faders: Faders) -> float | None:
        if faders.layers is not None or not faders.speaking:
            return None
        manager = self._app.project.personas
        return fluent_limit({name: (manager.get(name), weight) for name, weight in faders.speaking.items()})

    def chosen(self, what: str, value: float | str) -> None:
        """Take what the panel's strength, axis or floor was set to."""
        self._app.voice.change(**{what: value})

    def ask_layers(self) -> None:
        """Ask where personas are to be added."""

        def answered(text: str | None) -> None:
            if text is not None:
                self._app.attempt(lambda: self._app.voice.change(layers=_parse_layers(text)))

        faders = self._app.voice.faders
        self._app.push_screen(
            AskScreen(
                "steering layers",
                f"At which layers are personas added? This model has {self._layer_count()}. "
                "Several layers share the loudness. auto: where calibration found it best.",
                ", ".join(map(str, faders.layers)) if faders.layers else "auto",
                _layers_problem,
                "4, or 3-5, or auto",
            ),
            answered,
        )

    def _layer_count(self) -> str:
        engine = self._engine
        return f"0 to {engine.model.n_layers - 1}" if engine is not None else "not been loaded yet"

    def forget(self) -> None:
        """Forget what was found out about another model's personas."""
        self._cosines = ([], {})
        self._limit = None

    # --- showing

    def state(self, loaded: Sequence[str]) -> MixerState:
        """Return what the mixer's panel shows.

        Args:
            loaded: the personas that have a fader.
        """
        faders, engine = self._app.voice.faders, self._engine
        weights = {name: faders.weights.get(name, 0.0) for name in loaded}
        state: dict[str, Any] = {"strength": faders.strength, "capping": faders.capping, "weights": weights}
        try:
            if engine is not None:
                state |= self._measured(engine, faders, loaded)
        except PersonaTuiError:  # said in the chat already
            pass
        return MixerState(**state)

    def _measured(self, engine: SteeringEngine, faders: Faders, loaded: Sequence[str]) -> dict[str, Any]:
        axes = engine.personas.axes
        loudness = engine.loudness() if faders.speaking and faders.strength else {}
        return {
            "axes": axes.names if axes is not None else (),
            "axis": engine.capping_axis() or "",
            "percentile": engine.safety_floor if faders.percentile is None else faders.percentile,
            "layers": _where(faders, loudness),
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

    def fluency(self) -> Fluency:
        """Return how fluent the latest reply is."""
        faders = self._app.voice.faders
        strength = faders.strength if faders.speaking else 0.0
        return self._app.speaker.fluency.read(strength, self._limit)

    # --- tracing

    def traceable(self) -> tuple[dict[str, str], Sequence[str]]:
        """Return what can be traced, with what it is, and what is traced.

        Raises:
            PersonaTuiError: the model is still loading, or there is nothing to trace.
        """
        engine = self._engine
        if engine is None:
            raise PersonaTuiError("the model is still loading")
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
        speaking = list(self._app.voice.faders.speaking)[:1] if self._app.size.height >= _TALL else []
        return [*([ASSISTANT] if ASSISTANT in known else []), *speaking]

    def _line(self, engine: SteeringEngine, name: str) -> Line:
        floor = engine.floor_reading(name)
        unit = "σ" if name in _AXES else ""
        return Line(0.0 if floor is None else floor, floor is not None, unit)


def _where(faders: Faders, loudness: Mapping[int, float]) -> str:
    """Say where personas are added."""
    if faders.layers is not None:
        return layers_text(faders.layers).partition(" ")[2]
    calibrated = layers_text(sorted(loudness)).partition(" ")[2] if loudness else ""
    return f"{calibrated} as calibrated".strip()


def _parse_layers(text: str) -> tuple[int, ...] | None:
    from persona_tui.core.mix import parse_layers  # imports torch

    return parse_layers(text)


def _layers_problem(text: str) -> str | None:
    try:
        _parse_layers(text)
    except PersonaTuiError as error:
        return str(error)
    return None


def _axes_first(name: str) -> tuple[bool, str]:
    return name not in _AXES, name
