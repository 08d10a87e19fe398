"""`MixControl`: the present mix, what any mix does to the residual stream, floors, and scales of traces.

The present mix is turned into vectors and floors in the thread that changes it. A running stream asks, before
every token, whether there is something new; what it is given are tensors to copy into buffers. So a fader
acts on the next token, and a mistake (an unknown persona) is raised where it was made.
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

from torch import Tensor

from persona_tui.core.config import Settings, resolve_layers
from persona_tui.core.errors import PersonaTuiError
from persona_tui.core.mix import PERCENTILE, Mix
from persona_tui.model import Backend, Cap, Interventions, TokenEvent
from persona_tui.vectors.axes import Axes
from persona_tui.vectors.maths import TraceScale, mean_of

if TYPE_CHECKING:
    from persona_tui.vectors.manager import PersonaManager
    from persona_tui.vectors.persona import PersonaVector

OnMix = Callable[[int, dict[str, Any]], None]  # a token's index, and the mix from that one on


@dataclass(frozen=True)
class Floor:
    """A floor that is enforced.

    Attributes:
        axis: under which projections it lies.
        percentile: of ordinary responses, where it lies.
        layers: where activations are held above it; never empty.
    """

    axis: str
    percentile: float
    layers: tuple[int, ...]


class MixControl:
    """What is spoken with. All of it may be used from any thread."""

    def __init__(self, model_wrapper: Backend, persona_manager: PersonaManager, config: Settings) -> None:
        """
        Args:
            model_wrapper: the model, on whatever runs it.
            persona_manager: the personas and axes made on that model.
            config: `steering` gives the first mix, `generation` how replies are sampled.
        """
        self.model: Backend = model_wrapper
        self.personas = persona_manager
        self.settings = config
        self.capping_layers = tuple(resolve_layers(config, model_wrapper.n_layers).capping)
        self._lock = threading.RLock()
        self._percentile = float(config.steering.safety_floor_percentile)
        self._mix = Mix.of(config.steering)
        self.on_note: Callable[[str], None] = lambda note: None
        self._caps: dict[tuple[str, float], tuple[Axes, dict[int, Cap]]] = {}
        self._added: tuple[Mix, list[PersonaVector], dict[int, Tensor]] | None = None
        self._live = Interventions.none()
        self._version = 0

    @property
    def mix(self) -> Mix:
        """What is spoken with unless a call says otherwise."""
        return self._mix

    def set_mix(self, mix: Mix) -> None:
        """Speak with another mix, from the next token of a running stream on.

        Raises:
            PersonaNotFoundError: it names a persona that does not exist; the old mix stays.
        """
        with self._lock:
            self._live, self._mix = self.interventions(mix), mix
            self._version += 1

    @property
    def default_strength(self) -> float:
        """The strength where none is given."""
        return self._mix.strength

    def set_default_strength(self, strength: float) -> None:
        """Change the default strength, from the next token of a running stream on."""
        with self._lock:
            self.set_mix(replace(self._mix, strength=strength))

    @property
    def safety_floor(self) -> float:
        """The percentile at which floors lie where a mix does not say."""
        return self._percentile

    def set_safety_floor(self, percentile: float) -> None:
        """Move the floor to another percentile (0 to 100) of ordinary responses' projections.

        It is looked up in the axis file, and holds from the next token of a running stream on.

        Raises:
            PersonaTuiError: the percentile is out of range.
        """
        PERCENTILE.check("a percentile", percentile)
        with self._lock:
            self._percentile = float(percentile)
            self.set_mix(self._mix)

    def interventions(self, mix: Mix) -> Interventions:
        """Return what a mix does to the residual stream.

        The personas' vectors are blended layer by layer over all layers where any of them is added. At a
        layer where one of them adds nothing it counts as a zero vector with its weight: a blend of a persona
        at layer 4 and one at layer 5 adds half of each at its own layer.

        The guide is off where nothing is added: strength 0, or no persona, is exactly the plain model.

        Raises:
            PersonaNotFoundError: it names a persona that does not exist.
            VectorFileError: a persona's or the axes' file cannot be used.
        """
        steering = self._steering(mix)
        caps = self._capping(mix) if mix.capping else {}
        return Interventions(steering, caps, mix.plausibility if steering else 0.0)

    def _steering(self, mix: Mix) -> dict[int, Tensor]:
        """Return the vectors that a mix adds; those of the mix that was asked for last are not worked out
        again.
        """
        voices = [self.personas.get(name) for name in mix.speaking]
        if not voices:
            return {}
        known = self._added
        if known is not None and known[0] == mix and _same(known[1], voices):
            return known[2]
        composite = self.personas.get_composite(mix.weights, mix.safe, mix.layers, mix.plausibility > 0)
        added = {layer: mix.strength * vector for layer, vector in composite.items()} if mix.strength else {}
        self._added = mix, voices, added
        return added

    def describe(self, mix: Mix) -> dict[str, Any]:
        """Return a mix as a transcript has it, ready for JSON: enough to speak with it again
        (`Mix.from_record`).

        Besides the mix' own fields: `added_at`, the layers where personas are added; `floor`, the axis,
        percentile and layers of the floor (None if nothing is capped); `vectors`, by persona, and
        `floor.file`: the SHA-256 of the files that they came from.
        """
        live, enforced, floor = self.interventions(mix), self.floor_of(mix), None
        if enforced is not None:
            floor = {**asdict(enforced), "layers": list(enforced.layers), "file": self.personas.digest()}
        files = {name: self.personas.digest(name) for name in mix.speaking}
        return {**asdict(mix), "added_at": sorted(live.steering), "floor": floor, "vectors": files}

    def floor_of(self, mix: Mix) -> Floor | None:
        """Return the floor that is enforced when a mix speaks; None if nothing is capped, wished or not."""
        caps, axis = self._capping(mix) if mix.capping else {}, self.capping_axis(mix)
        if not caps or axis is None:
            return None
        percentile = self._percentile if mix.percentile is None else mix.percentile
        return Floor(axis, percentile, tuple(sorted(caps)))

    def unenforced(self, mix: Mix) -> str:
        """Return what of a mix' capping cannot be enforced, as one sentence; "" if all of it is."""
        if not mix.capping:
            return ""
        axes, floor = self.personas.axes, self.floor_of(mix)
        advice = "`persona-tui extract-axes` makes it"
        if axes is None:
            return f"Capping is on, but nothing is capped: {self.model.name} has no axes yet; {advice}."
        bare = [layer for layer in self.capping_layers if floor is None or layer not in floor.layers]
        if not bare:
            return ""
        there = f"at layer{'s' if len(bare) > 1 else ''} {', '.join(map(str, bare))} there is no floor"
        return f"Capping is on, but {'nothing is capped: ' if floor is None else ''}{there}; {advice}."

    def doubtful(self, mix: Mix) -> str:
        """Return in words that the floor of a mix lies on a weak axis; "" if it does not."""
        floor, axes = self.floor_of(mix), self.personas.axes
        return "" if floor is None or axes is None else axes.doubt(floor.axis)

    @property
    def can_cap(self) -> bool:
        """Whether there are floors to enforce: the axes have been extracted."""
        return self.personas.axes is not None

    def capping_axis(self, mix: Mix | None = None) -> str | None:
        """Return the axis that a mix (by default the present one) is capped on; None while there are no axes.

        That is the mix' own, else the one in the settings, else the one measured to be safer on this model.
        """
        axes = self.personas.axes
        if axes is None:
            return None
        configured = self.settings.steering.capping_axis
        wanted = (mix or self._mix).capping_axis or (configured if configured != "auto" else None)
        return wanted or axes.default_capping_axis

    def _capping(self, mix: Mix) -> dict[int, Cap]:
        axes, name = self.personas.axes, self.capping_axis(mix)
        if axes is None or name is None:
            return {}
        key = (name, self._percentile if mix.percentile is None else mix.percentile)
        known = self._caps.get(key)
        if known is None or known[0] is not axes:
            floors = axes.floors(name, self.capping_layers, key[1])
            known = self._caps[key] = (axes, {layer: Cap(*floor) for layer, floor in floors.items()})
        return known[1]

    def _rows(
        self, mixes: Sequence[Mix | None], on_mix: OnMix | None
    ) -> Interventions | Callable[[], Interventions | None]:
        """Return the interventions of a batch; a function that is asked for them if a row follows the mix."""
        rows = [None if mix is None else self.interventions(mix) for mix in mixes]
        fixed = [row for row in rows if row is not None]
        if len(fixed) == len(rows):
            return Interventions.by_row(fixed)
        follow = self._follow(on_mix)

        def poll() -> Interventions | None:
            present = follow()
            if present is None:
                return None
            return Interventions.by_row([present if row is None else row for row in rows])

        return poll

    def _follow(self, on_mix: OnMix | None) -> Callable[[], Interventions | None]:
        """Return a function that returns the present mix' interventions, if they changed since it was last
        asked.
        """
        with self._lock:
            self.set_mix(self._mix)  # a persona's file may be another one than when the mix was set
        seen, tokens = -1, itertools.count()

        def poll() -> Interventions | None:
            nonlocal seen
            token = next(tokens)
            with self._lock:
                if self._version == seen:
                    return None
                seen, live = self._version, self._live
                described = self.describe(self._mix) if on_mix is not None else {}
            if on_mix is not None:
                on_mix(token, described)
            return live

        return poll

    def lift_reading(self, name: str, mix: Mix | None = None) -> float | None:
        """Return what a lift of 1, as tokens report it, comes to on the scale of a trace.

        Tokens report the sum over the layers with a floor; a trace is the mean over them. Their scales differ
        a little by layer: the mean is used. None if the mix does not cap that axis.
        """
        mix, axes = mix or self._mix, self.personas.axes
        if axes is None or self.floor_reading(name, mix) is None:
            return None
        trace, caps = axes.scale(name, self.capping_layers), self._capping(mix)
        lengths = [float(vector.norm()) for layer, vector in trace.vectors.items() if layer in caps]
        return mean_of(lengths) / len(lengths)

    def floor_reading(self, name: str, mix: Mix | None = None) -> float | None:
        """Return where the floor of a mix (by default the present one) lies on the scale of a trace.

        None if the mix does not cap that axis.
        """
        mix, axes = mix or self._mix, self.personas.axes
        if axes is None or not mix.capping or name != self.capping_axis(mix):
            return None
        trace, caps = axes.scale(name, self.capping_layers), self._capping(mix)
        readings = [
            caps[layer].floor * float(vector.norm())
            for layer, vector in trace.vectors.items()
            if layer in caps
        ]
        return mean_of(readings) - trace.ordinary if readings else None

    def loudness(self, mix: Mix | None = None) -> dict[int, float]:
        """Return how long a mix' vector (by default the present one's) is at each layer where it is added.

        As a share of the length of ordinary replies' mean activation there; empty without axes.
        """
        axes = self.personas.axes
        if axes is None:
            return {}
        ordinary = next(iter(axes.baseline.values())).norm(dim=-1)
        return {
            layer: float(vector.norm() / ordinary[axes.layers.index(layer)])
            for layer, vector in self.interventions(mix or self._mix).steering.items()
            if layer in axes.layers
        }

    # --- what tokens are compared with

    def traces(self, mixes: Sequence[Mix] = (), names: Iterable[str] | None = None) -> dict[str, TraceScale]:
        """Return what a stream's tokens are compared with: the axes, and personas and traits.

        Args:
            mixes: whoever speaks in one of them is among these.
            names: the others; None = all that are loaded, but for damaged files, which are noted (`on_note`).

        Raises:
            PersonaNotFoundError: one of them does not exist.
            VectorFileError: the file of one of them cannot be used.
        """
        spoken = [name for mix in mixes for name in mix.speaking]
        loaded = self.personas.list_loaded() if names is None else ()
        found = {name: scale for name in loaded if (scale := self._scale_of(name))}
        found |= {name: self.personas.get(name).scale for name in [*(names or ()), *spoken]}
        axes = self.personas.axes
        if axes is not None:
            found |= {
                name: axes.scale(name, self.capping_layers) for name in axes.names if name in axes.projections
            }
        return {name: trace for name, trace in found.items() if trace.vectors}

    def _scale_of(self, name: str) -> TraceScale | None:
        """Return the scale of what is only traced; None of a damaged file: talking goes on without."""
        try:
            return self.personas.get(name).scale
        except PersonaTuiError as error:
            self.on_note(f"{name} is not traced: {error} `persona-tui unload {name}` unloads it.")
            return None


def _same(some: Sequence[PersonaVector], others: Sequence[PersonaVector]) -> bool:
    """Return whether these are the same personas, and none was made again meanwhile."""
    return len(some) == len(others) and all(one is other for one, other in zip(some, others, strict=True))


def scaled(events: Iterator[TokenEvent], traces: Mapping[str, TraceScale]) -> Iterator[TokenEvent]:
    """Return the events with their projections counted from what is ordinary."""
    for event in events:
        projections = {name: value - traces[name].ordinary for name, value in event.projections.items()}
        yield replace(event, projections=projections)
