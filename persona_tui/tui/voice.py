"""Who speaks and how loud: the app's side of the faders."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:  # torch is not imported before the first paint
    from persona_tui.core.mix import Mix

NOBODY = "no persona"


@dataclass(frozen=True)
class Faders:
    """Where the faders stand: what `steering.Mix` is to the engine, but without torch.

    Attributes:
        weights: by persona; a loaded persona that does not speak may be missing or 0.
        strength: of the master.
        capping: whether the floor is enforced.
        safe: whether the personas' safety component is left out.
        capping_axis: which axis the floor is on; None = as the settings say.
        percentile: of ordinary replies, where the floor lies; None = as the settings say.
        layers: where personas are added; None = where calibration found it best.
    """

    weights: Mapping[str, float] = field(default_factory=dict)
    strength: float = 0.3
    capping: bool = True
    safe: bool = True
    capping_axis: str | None = None
    percentile: float | None = None
    layers: tuple[int, ...] | None = None

    @classmethod
    def of(cls, mix: Mix) -> Self:
        """Return the faders that a mix stands for."""
        return cls(**{each.name: getattr(mix, each.name) for each in fields(cls)})

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> Self:
        """Return the faders that a session's file describes; what it does not say is as by default."""
        known = {each.name: record[each.name] for each in fields(cls) if each.name in record}
        layers = known.get("layers")
        return cls(**{**known, "layers": tuple(layers) if layers else None})

    @property
    def speaking(self) -> dict[str, float]:
        """The personas that have any weight."""
        return {name: weight for name, weight in self.weights.items() if weight}

    def mix(self) -> Mix:
        """Return what the engine understands."""
        from persona_tui.core.mix import Mix

        values = {each.name: getattr(self, each.name) for each in fields(self)}
        return Mix(**{**values, "weights": self.speaking})

    def label(self) -> str:
        """Return who speaks in a few characters: `sage 0.30`, `sage 0.50 + trickster 0.30 · 0.30`."""
        who = self.who()
        if not self.speaking:
            return who
        return f"{who}{' ·' if len(self.speaking) > 1 else ''} {self.strength:.2f}"

    def who(self) -> str:
        """Return who speaks, without how loud."""
        names = self.speaking
        if len(names) < 2:
            return next((f"{'−' if weight < 0 else ''}{name}" for name, weight in names.items()), NOBODY)
        return " + ".join(f"{name} {weight:.2f}" for name, weight in names.items())


def difference(before: Faders, after: Faders) -> str:
    """Say what has changed, in a few words: `sage → trickster · strength 0.30 → 0.45`; "" = nothing."""
    changes = []
    if before.speaking != after.speaking:
        changes.append(f"{before.who()} → {after.who()}")
    if before.strength != after.strength:
        changes.append(f"strength {before.strength:.2f} → {after.strength:.2f}")
    if before.capping != after.capping:
        changes.append(f"capping {'on' if after.capping else 'off'}")
    if before.capping_axis != after.capping_axis:
        changes.append(f"floor on the {after.capping_axis or 'default'} axis")
    if before.percentile != after.percentile:
        where = (
            "as configured" if after.percentile is None else f"at the {ordinal(after.percentile)} percentile"
        )
        changes.append(f"floor {where}")
    if before.layers != after.layers:
        changes.append(f"layers {', '.join(map(str, after.layers)) if after.layers else 'as calibrated'}")
    if before.safe != after.safe:
        changes.append(f"{'safe' if after.safe else 'raw'} vectors")
    return " · ".join(changes)


def ordinal(number: float) -> str:
    """Return `25th` for 25; a fraction stays one."""
    if number != int(number):
        return f"{number:g}th"
    last = int(number) % 100
    ending = "th" if 10 < last < 20 else {1: "st", 2: "nd", 3: "rd"}.get(last % 10, "th")
    return f"{int(number)}{ending}"


class Voice:
    """Holds the faders, and tells whoever listens when they move."""

    def __init__(self, faders: Faders, on_change: Callable[[Faders], None]) -> None:
        """
        Args:
            faders: where they stand at first.
            on_change: told of every change. If it raises, the faders go back to where they were.
        """
        self._faders = faders
        self._on_change = on_change

    @property
    def faders(self) -> Faders:
        """Where the faders stand."""
        return self._faders

    def set(self, faders: Faders) -> None:
        """Move them all at once."""
        before, self._faders = self._faders, faders
        try:
            self._on_change(faders)
        except Exception:
            self._faders = before
            self._on_change(before)
            raise

    def change(self, **changes: Any) -> None:
        """Move some of them, by the names of `Faders`' fields."""
        self.set(replace(self._faders, **changes))

    def set_strength(self, strength: float) -> None:
        """Move the master."""
        self.set(replace(self._faders, strength=strength))

    def set_capping(self, on: bool) -> None:
        """Switch the floor on or off."""
        self.set(replace(self._faders, capping=on))

    def set_weight(self, name: str, weight: float) -> None:
        """Move one persona's fader."""
        self.set(replace(self._faders, weights={**self._faders.weights, name: weight}))

    def solo(self, names: Mapping[str, float]) -> None:
        """Let these speak and nobody else."""
        self.set(replace(self._faders, weights=dict(names)))

    def forget(self, names: Sequence[str]) -> None:
        """Take out the faders of personas that are not there any more, and tell nobody."""
        kept = {name: weight for name, weight in self._faders.weights.items() if name not in names}
        self._faders = replace(self._faders, weights=kept)

    def keep_only(self, names: Sequence[str]) -> None:
        """Forget the faders of personas that are not loaded any more."""
        kept = {name: weight for name, weight in self._faders.weights.items() if name in names}
        if kept != self._faders.weights:
            self.set(replace(self._faders, weights=kept))
