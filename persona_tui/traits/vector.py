"""One extracted trait, and the folder with all traits of a model.

A trait's file is that of a persona, with `kind` "trait": `mean` is the mean of the high side, `raw` the
difference from the low side, `safe` that difference without its safety component. So everything that steers
with personas steers with traits. What measuring needs on top of it, layer and threshold, is in the metadata.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError
from torch import Tensor

from persona_tui.core.errors import VectorFileError
from persona_tui.core.files import change
from persona_tui.core.mix import TRAIT_ALIASES, TRAIT_PREFIX
from persona_tui.traits.definition import CALIBRATED, Healthy, Limit
from persona_tui.traits.gate import TraitGate
from persona_tui.vectors.files import SUMMARY_FILE, VectorStore, check_direction, explain_fault
from persona_tui.vectors.persona import PersonaVector, TraitSides

if TYPE_CHECKING:
    from persona_tui.vectors.manager import PersonaManager

WEAK = 0.75  # an AUC below this is not worth measuring with
RECIPE = "response"  # the recipe of persona files that traits use: the mean over the reply's tokens


class Interval(BaseModel):
    """A figure with its 95% interval."""

    model_config = ConfigDict(extra="ignore", frozen=True, allow_inf_nan=False)

    value: float
    low: float
    high: float


class LayerFigures(BaseModel):
    """How well one layer separates both sides, found by cross-validation.

    Attributes:
        layer: which one.
        strength: length of the difference of the means, in the units of the residual stream.
        separation: standard deviations between the two means of left-out replies.
        auc: the chance that a left-out high reply scores above a left-out low one.
    """

    model_config = ConfigDict(extra="ignore", frozen=True, allow_inf_nan=False)

    layer: int
    strength: float
    separation: float
    auc: float


class HeldOut(BaseModel):
    """The figures of the test conversations. Nothing was chosen by them.

    Attributes:
        auc: as above.
        accuracy: share of replies on their own side of the threshold.
        high, low: how many of each.
    """

    model_config = ConfigDict(extra="ignore", frozen=True, allow_inf_nan=False)

    auc: Interval
    accuracy: float
    high: int
    low: int


class AlarmRates(BaseModel):
    """How often the healthy range is left: by test conversations, read with the gate as in a check.

    Attributes:
        caught: share of replies of the unhealthy side that leave it.
        good: share of replies of the healthy side that do, which is a false alarm.
        ordinary: share of replies to ordinary messages that do; None if there were none.
        n: replies of the unhealthy side, of the healthy side, and to ordinary messages.
    """

    model_config = ConfigDict(extra="ignore", frozen=True)

    caught: float
    good: float
    ordinary: float | None
    n: tuple[int, int, int]


class TraitReading(BaseModel):
    """What measuring with a trait needs to know; stored in the file's metadata under "trait".

    Attributes:
        layer: where replies are measured.
        probe: along which, `[hidden]`; empty = along the difference between both sides' means.
        threshold: the score from which on a reply counts as high.
        threshold_source: "cross-validation", or the file that it was calibrated on.
        strength, separation: of that layer.
        auc: of scores by cross-validation.
        held_out: on the test conversations, if there were any.
        layers: all layers that were candidates.
        healthy: the scores at which the trait is as it should be; numbers.
        gate: tells what the trait is about; None = every reply is judged.
        rates: how often the healthy range is left, on test conversations.
        everywhere: whether the trait is about every conversation, and needs no gate.
        high, low: what both sides do, in words.
        recipe: "conversations" or "prompts".
        counts: how many replies of each side are in the means.
        source_hash: of the conversations.
    """

    model_config = ConfigDict(extra="ignore", frozen=True, allow_inf_nan=False)

    layer: int
    probe: tuple[float, ...] = ()
    threshold: float = 0.0
    threshold_source: str = "cross-validation"
    strength: float
    separation: float
    auc: Interval
    held_out: HeldOut | None = None
    layers: tuple[LayerFigures, ...] = ()
    healthy: Healthy = Healthy()
    gate: TraitGate | None = None
    rates: AlarmRates | None = None
    everywhere: bool = False
    high: str = ""
    low: str = ""
    recipe: str = "conversations"
    counts: dict[str, int] = {}
    source_hash: str = ""

    @property
    def unhealthy(self) -> str:
        """What a reply outside the healthy range does, in words; "" if it may leave it on either side."""
        if (self.healthy.min is None) == (self.healthy.max is None):
            return ""
        return self.low if self.healthy.max is None else self.high

    @property
    def weakness(self) -> str | None:
        """Why the trait may not measure what it should, in one line; None if nothing speaks against it."""
        if self.held_out is not None and self.held_out.auc.value < WEAK:
            return f"held-out replies are told apart with an AUC of {self.held_out.auc.value:.2f} only"
        if self.auc.value < WEAK:
            return f"left-out replies are told apart with an AUC of {self.auc.value:.2f} only"
        return None


@dataclass(frozen=True, eq=False)
class TraitVector:
    """A trait of one model: vectors, and how replies are read with them.

    Attributes:
        vector: as a persona; its name is that of the trait.
        reading: layer, threshold and figures.
    """

    vector: PersonaVector
    reading: TraitReading

    @classmethod
    def of(cls, vector: PersonaVector) -> TraitVector:
        """Return a persona's file, read as a trait.

        Raises:
            VectorFileError: it is not a trait, or its metadata is wrong.
        """
        name = vector.name.removeprefix(TRAIT_PREFIX)
        if vector.kind != "trait":
            raise VectorFileError(f'"{name}" is a persona, not a trait.')
        try:
            reading = TraitReading.model_validate(vector.metadata.get("trait"))
        except ValidationError as error:
            raise VectorFileError(f'The trait "{name}" cannot be used: {explain_fault(error)}.') from error
        if reading.layer not in vector.layers or RECIPE not in vector.raw:
            raise VectorFileError(f'The trait "{name}" has no vector for layer {reading.layer}.')
        try:
            row = vector.layers.index(reading.layer)
            check_direction(f"its vector at layer {reading.layer}", vector.raw[RECIPE][row])
            vector.sides(reading.layer, reading.probe)
        except ValueError as error:
            raise VectorFileError(f'The trait "{name}" cannot be used: {error}.') from error
        return cls(replace(vector, name=name), reading)

    @classmethod
    def load(cls, path: Path) -> TraitVector:
        """Read a trait's file; it is called what the file is called.

        Raises:
            VectorFileError: the file is missing, damaged, or holds something else.
        """
        return cls.of(replace(PersonaVector.load(path), name=path.stem))

    @property
    def name(self) -> str:
        """The trait's name, without a prefix."""
        return self.vector.name

    @property
    def gate(self) -> TraitGate | None:
        """What tells whether a conversation is about the trait; None = every one is taken to be."""
        return self.reading.gate

    @cached_property
    def _sides(self) -> TraitSides:
        return self.vector.sides(self.reading.layer, self.reading.probe)

    @property
    def direction(self) -> Tensor:
        """The unit vector that replies are scored along at its layer, from low to high, `[hidden]`."""
        return self._sides.direction

    @property
    def half_gap(self) -> float:
        """Half the distance between both sides' means, along the direction."""
        return self._sides.half_gap

    @property
    def centre(self) -> float:
        """The projection of the middle between both sides' means."""
        return self._sides.centre

    def projections(self, activations: Tensor) -> list[float]:
        """Return the dot products of activations `[replies, hidden]`, at its layer, with its direction."""
        projected: list[float] = (activations.float() @ self.direction).tolist()
        return projected

    def score(self, projection: float) -> float:
        """Return a projection on the common scale: −1 = the low examples' mean, +1 = the high ones'."""
        return (projection - self.centre) / self.half_gap if self.half_gap > 0 else 0.0

    def with_reading(self, **changes: Any) -> TraitVector:
        """Return this trait with other fields of its reading."""
        return replace(self, reading=self.reading.model_copy(update=changes))

    def calibrated(self, threshold: float, source: str) -> TraitVector:
        """Return this trait with another threshold. A range with one limit now has its limit there."""
        changes: dict[str, Any] = {"threshold": threshold, "threshold_source": source}
        own = self.reading.healthy
        if (own.min is None) != (own.max is None):
            limit = {"max" if own.min is None else "min": threshold}
            changes |= {"healthy": Healthy(**limit), "rates": None}
        return self.with_reading(**changes)

    def limit(self, side: Literal["min", "max"], given: Limit) -> float:
        """Return what a limit comes to on this model: a number as it is, "calibrated" as what was found."""
        if given != CALIBRATED:
            return given
        own = self.reading.healthy.min if side == "min" else self.reading.healthy.max
        return own if isinstance(own, float) else self.reading.threshold

    def save(self, path: Path, *, inside: Path | None = None) -> None:
        """Write the trait to one file; see `files.save_tensors` for `inside` and the errors."""
        metadata = {**self.vector.metadata, "kind": "trait", "trait": self.reading.model_dump(mode="json")}
        replace(self.vector, metadata=metadata).save(path, inside=inside)


class TraitStore(VectorStore):
    """The traits of one model: `vectors/<model>/traits/`, with a summary beside them."""

    word = "trait"
    prefix = TRAIT_PREFIX
    aliases = TRAIT_ALIASES

    def _advice(self, name: str, others: bool) -> str:
        return "" if others else f" Extract it: trait extract {name}"

    def get(self, name: str) -> TraitVector:
        """Read a trait.

        Raises:
            VectorFileError: no trait has this name, or its file is damaged or of another model.
        """
        path = self.find(name)
        trait = TraitVector.load(path)
        self.check(path, trait.vector.metadata)
        return trait

    def select(self, names: Sequence[str] = ()) -> list[TraitVector]:
        """Read some traits, by default all there are.

        Raises:
            VectorFileError: one is missing or cannot be used, or there are none at all.
        """
        chosen = list(dict.fromkeys(names)) or self.names()
        if not chosen:
            raise VectorFileError(
                f"No traits have been extracted for {self.model_name}: `persona-tui trait extract --all`."
            )
        return [self.get(name) for name in chosen]

    def save(self, trait: TraitVector) -> Path:
        """Write a trait, replacing one of the same name, and the summary; return the trait's path."""
        path = self.path_of(trait.name)
        self.check(path, trait.vector.metadata)
        trait.save(path, inside=self.folder)
        self.write_summary()
        return path

    def write_summary(self) -> None:
        """Write what every trait's figures are. A damaged file is in it with its error."""
        with change(self.folder, SUMMARY_FILE):
            traits = self.described(lambda name: summary(TraitVector.load(self.path_of(name))))
            found = {"model": self.model_name, "model_fingerprint": self.fingerprint, "traits": traits}
            self.save_summary(found)


def summary(trait: TraitVector) -> dict[str, Any]:
    """Return a trait's figures for people and programs, rounded."""
    reading = trait.reading
    held_out = reading.held_out
    return {
        "layer": reading.layer,
        "strength": round(reading.strength, 4),
        "separation": round(reading.separation, 4),
        "auc": _rounded(reading.auc),
        "held_out": None
        if held_out is None
        else {
            "auc": _rounded(held_out.auc),
            "accuracy": round(held_out.accuracy, 4),
            "n": [held_out.high, held_out.low],
        },
        "threshold": round(reading.threshold, 4),
        "threshold_source": reading.threshold_source,
        "healthy": {key: _short(value) for key, value in reading.healthy.model_dump().items()},
        "gate": None
        if reading.gate is None
        else {
            "layers": list(reading.gate.layers),
            **{key: _short(getattr(reading.gate, key)) for key in ("auc", "kept", "let_in")},
        },
        "rates": None
        if reading.rates is None
        else {key: _short(value) for key, value in reading.rates.model_dump(mode="json").items()},
        "recipe": reading.recipe,
        "weak": reading.weakness,
        "n": [reading.counts.get("high", 0), reading.counts.get("low", 0)],
    }


def _short(value: Any) -> Any:
    return round(value, 4) if isinstance(value, float) else value


def _rounded(interval: Interval) -> dict[str, float]:
    return {key: round(value, 4) for key, value in interval.model_dump().items()}


def weakness_of(personas: PersonaManager, name: str) -> str | None:
    """Return why a direction may not mean what its name says, in one line; None if all is well.

    Args:
        personas: a model's personas, traits and axes.
        name: an axis, a persona, or a trait as `trait:NAME`.

    Raises:
        PersonaNotFoundError: there is no such trait.
        VectorFileError: its file cannot be used.
    """
    axes = personas.axes
    if axes is not None and name in axes.names:
        return axes.weakness(name)
    if not name.startswith(TRAIT_PREFIX):
        return None
    vector = personas.get(name)
    measured = "trait" in vector.metadata  # one from elsewhere has no figures
    return TraitVector.of(vector).reading.weakness if measured else None
