"""Who speaks and how loud: the app's side of the faders."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # torch is not imported before the first paint
    from persona_tui.steering.mix import Mix


@dataclass(frozen=True)
class Faders:
    """Where the faders stand.

    Attributes:
        weights: by persona; a loaded persona that does not speak may be missing or 0.
        strength: of the master.
        capping: whether the floor is enforced.
    """

    weights: Mapping[str, float] = field(default_factory=dict)
    strength: float = 0.3
    capping: bool = True

    @property
    def speaking(self) -> dict[str, float]:
        """The personas that have any weight."""
        return {name: weight for name, weight in self.weights.items() if weight}

    def mix(self) -> Mix:
        """Return what the engine understands."""
        from persona_tui.steering.mix import Mix

        return Mix(self.speaking, self.strength, self.capping)

    def label(self) -> str:
        """Return who speaks in a few characters: `sage 0.30`, `sage 0.50 + trickster 0.30 · 0.30`."""
        names = self.speaking
        if not names:
            return "no persona"
        if len(names) == 1:
            name, weight = next(iter(names.items()))
            return f"{'−' if weight < 0 else ''}{name} {self.strength:.2f}"
        return f"{' + '.join(f'{name} {weight:.2f}' for name, weight in names.items())} · {self.strength:.2f}"


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

    def keep_only(self, names: Sequence[str]) -> None:
        """Forget the faders of personas that are not loaded any more."""
        kept = {name: weight for name, weight in self._faders.weights.items() if name in names}
        if kept != self._faders.weights:
            self.set(replace(self._faders, weights=kept))
