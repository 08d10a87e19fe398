"""A persona: what extraction found for one character, and how loud it has to be."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from pydantic import TypeAdapter
from torch import Tensor

from persona_tui.core.errors import LayerNotFoundError, VectorFileError
from persona_tui.core.mix import Range
from persona_tui.vectors.files import (
    FORMAT_VERSION,
    RECIPE,
    RECIPES,
    by_recipe,
    check_direction,
    check_kind,
    check_layers,
    check_stacks,
    explain_fault,
    load_tensors,
    save_tensors,
)
from persona_tui.vectors.maths import TraceScale, mean_of, normalize
from persona_tui.vectors.metadata import MOST_GAIN

KINDS = ("mean", "raw", "safe")
GAIN = Range(-MOST_GAIN, MOST_GAIN)

DEFAULT_STRENGTH = 0.3  # where on the strength scale a persona is clear
# What an uncalibrated persona adds at that strength, with the guide and without it: see `dose`. Four personas
# of SmolLM2-135M-Instruct are clear and fluent at 0.23 to 0.36 with it, at 0.12 to 0.23 without
# (`benchmarks/guide.py`); the tiny model needs ten times that.
DEFAULT_DOSE = 0.3
UNGUIDED_DOSE = 0.18


@dataclass(frozen=True)
class Calibration:
    """Which recipe, layers and gain make a persona audible, and how that was found.

    `gain` is set so that `default_strength` is where the persona is clear and the text still fluent, with the
    guide at `plausibility` (0 = without one, as in older files). `unguided_gain` does the same without the
    guide, which allows less; None = there is only one gain. `expression` is 0 for unsteered replies and 1 for
    what the system prompt itself achieves; `fluency_drop` is in nats per token against prompted replies; both
    are measured with `gain`. `curve` holds the figures of generated replies at every size that was tried.

    Older files lack the rest. `recovered` is the share of the system prompts' effect on the likelihood of
    their own replies that steering recovers at its best size, `recovery` that share for every coefficient
    that was tried. `floor` names the axis of the floor that replies were measured with, None = there was
    none; `floor_leaves` is the share of the expression that it leaves. `questions` says how many
    were asked.
    """

    recipe: str
    layers: tuple[int, ...]
    gain: float
    default_strength: float
    expression: float
    fluency_drop: float
    curve: list[dict[str, Any]] = field(default_factory=list)
    recovered: float | None = None
    recovery: list[tuple[float, float]] = field(default_factory=list)
    floor: str | None = None
    floor_leaves: float | None = None
    questions: int | None = None
    plausibility: float = 0.0
    unguided_gain: float | None = None


@dataclass(frozen=True, eq=False)
class TraitSides:
    """Where the two sides of a trait lie at the layer it is read at.

    Attributes:
        direction: the unit vector that replies are scored along, from low to high, `[hidden]`.
        half_gap: half the distance between both sides' means, along the direction.
        centre: the projection of the middle between both sides' means.
    """

    direction: Tensor
    half_gap: float
    centre: float


@dataclass(frozen=True, eq=False)  # tensors have no single answer to ==
class PersonaVector:
    """The vectors of one persona on one model.

    `mean`, `raw` and `safe` have one tensor per recipe (`RECIPES`, or `DISTILLED`), `[len(layers), hidden]`,
    float32 on the CPU, with their natural size. `metadata` is what the file records: model_name,
    model_fingerprint, source, description, counts, recipe settings, created; `target_layers`, if there, are
    where an uncalibrated vector is added, `gain` how many times (`unguided_gain`, if there, without the
    guide); `kind` is "trait" for a trait.

    Raises:
        ValueError: the layers are not ascending, or the shapes, recipes or calibration do not fit together.
    """

    name: str
    layers: tuple[int, ...]
    mean: dict[str, Tensor]
    raw: dict[str, Tensor]
    safe: dict[str, Tensor]
    metadata: dict[str, Any] = field(default_factory=dict)
    calibration: Calibration | None = None

    def __post_init__(self) -> None:
        check_layers(self.layers)
        check_stacks(len(self.layers), {kind: getattr(self, kind) for kind in KINDS})
        if self.calibration is not None:
            self._check_calibration(self.calibration)

    @property
    def hidden_size(self) -> int:
        """The width of the residual stream that the vectors belong to."""
        return int(next(iter(self.safe.values())).shape[-1])

    @property
    def kind(self) -> str:
        """What it is: "persona", or "trait" for the difference between two sides of a trait."""
        return "trait" if self.metadata.get("kind") == "trait" else "persona"

    @property
    def recipe(self) -> str:
        """The recipe that is used for steering: the calibrated one, else `response` where there is one."""
        if self.calibration is not None:
            return self.calibration.recipe
        return next(recipe for recipe in RECIPES if recipe in self.safe)

    @property
    def steering_layers(self) -> tuple[int, ...]:
        """Where the vector is added: the calibrated layers, else the target layers, else all of them."""
        if self.calibration is not None:
            return self.calibration.layers
        targets = set(self.metadata.get("target_layers") or ())
        return tuple(layer for layer in self.layers if layer in targets) or self.layers

    def gain(self, guided: bool = False) -> float:
        """Return how many times the vector is added at strength 1, with or without the guide."""
        if self.calibration is not None:
            loud, quiet = self.calibration.gain, self.calibration.unguided_gain
        else:
            loud, quiet = float(self.metadata.get("gain", 1.0)), self.metadata.get("unguided_gain")
        return loud if guided or quiet is None else float(quiet)

    def direction(
        self, safe: bool = True, layers: Sequence[int] | None = None, guided: bool = False
    ) -> dict[int, Tensor]:
        """Return what is added at strength 1: steering layer to `gain` times the vector, `[hidden]`.

        Args:
            safe: the vector without its safety component, rather than the raw one.
            layers: where to add it instead of at its own layers. What is added at one layer is still there at
                the next, so that more layers get less each (and fewer more): by the square root, as in
                calibration.
            guided: whether replies are written with the guide, which allows a larger gain.

        Raises:
            VectorFileError: it was not extracted at one of `layers`.
        """
        gain = self.gain(guided)
        stack = (self.safe if safe else self.raw)[self.recipe]
        chosen = self.steering_layers if layers is None else self._known(layers)
        share = (len(self.steering_layers) / len(chosen)) ** 0.5
        return {layer: stack[self.layers.index(layer)] * gain * share for layer in chosen}

    def _known(self, layers: Sequence[int]) -> tuple[int, ...]:
        for layer in layers:
            if layer not in self.layers:
                there = f"{self.layers[0]} to {self.layers[-1]}"
                raise LayerNotFoundError(f'"{self.name}" has no vector at layer {layer}, only at {there}.')
        return tuple(layers)

    def check_directions(self) -> None:
        """Raise ValueError if a vector that is steered or measured with points nowhere.

        A trait is measured at one layer; where else it would be added is checked, too.
        """
        rows = [self.layers.index(layer) for layer in self.steering_layers]
        for kind in ("raw", "safe"):
            check_direction(f'its "{kind}" vector', getattr(self, kind)[self.recipe][rows])

    @cached_property
    def scale(self) -> TraceScale:
        """The scale of a persona (0 = ordinary replies, 1 = its own) or a trait (-1 = low, 1 = high).

        Raises:
            VectorFileError: a trait's file does not say at which layer it is read.
        """
        return self._trait_scale() if self.kind == "trait" else self._persona_scale()

    def _persona_scale(self) -> TraceScale:
        target = set(self.metadata.get("target_layers") or self.layers)
        vectors, ordinary = {}, []
        for row, layer in enumerate(self.layers):
            raw, mean = self.raw[RECIPE][row], self.mean[RECIPE][row]
            size = float(raw.norm())
            if layer in target and size > 0:
                vectors[layer] = normalize(raw) / size
                ordinary.append(float((mean - raw) @ vectors[layer]))
        return TraceScale(vectors, mean_of(ordinary))

    def _trait_scale(self) -> TraceScale:
        reading = self.metadata.get("trait")
        reading = reading if isinstance(reading, Mapping) else {}
        layer = reading.get("layer")
        if not isinstance(layer, int):
            raise VectorFileError(
                f'The trait "{self.name}" cannot be used: its file does not say which layer it is read at.'
            )
        sides = self.sides(layer, reading.get("probe") or ())
        if sides.half_gap <= 0:
            return TraceScale({}, 0.0)
        return TraceScale({layer: sides.direction / sides.half_gap}, sides.centre / sides.half_gap)

    def sides(self, layer: int, probe: Sequence[float] = ()) -> TraitSides:
        """Return where a trait's sides lie at a layer.

        Args:
            layer: which one.
            probe: along which, `[hidden]`; by default along the difference between both sides' means.

        Raises:
            VectorFileError: it has no vector there, or the probe does not fit it.
        """
        if layer not in self.layers or RECIPE not in self.raw:
            raise VectorFileError(f'The trait "{self.name}" has no vector for layer {layer}.')
        row = self.layers.index(layer)
        raw, mean = self.raw[RECIPE][row], self.mean[RECIPE][row]
        if probe and len(probe) != len(raw):
            raise VectorFileError(
                f'The trait "{self.name}" cannot be used: a probe of {len(probe)} numbers does not fit '
                f"activations of {len(raw)}."
            )
        direction = normalize(torch.tensor(probe) if probe else raw)
        gap = float(raw.double() @ direction.double())
        return TraitSides(direction, gap / 2, float(mean.double() @ direction.double()) - gap / 2)

    def with_calibration(self, calibration: Calibration | None) -> "PersonaVector":
        """Return this persona with another calibration, or with none."""
        return replace(self, calibration=calibration)

    def save(self, path: Path, *, inside: Path | None = None) -> None:
        """Write the persona to one file; see `files.save_tensors` for `inside` and the errors."""
        tensors = {
            f"{kind}.{recipe}": stack for kind in KINDS for recipe, stack in getattr(self, kind).items()
        }
        metadata = {
            **self.metadata,
            "kind": self.kind,
            "name": self.name,
            "format_version": FORMAT_VERSION,
            "hidden_size": self.hidden_size,
            "layers": list(self.layers),
            "calibration": asdict(self.calibration) if self.calibration is not None else None,
        }
        save_tensors(path, tensors, metadata, inside=inside)

    @classmethod
    def load(cls, path: Path) -> "PersonaVector":
        """Read a persona's file, or a trait's.

        Raises:
            VectorFileError: the file is missing, damaged, or holds something else.
        """
        tensors, metadata = load_tensors(path)
        check_kind(path, metadata, "trait" if metadata.get("kind") == "trait" else "persona")
        calibration = metadata.pop("calibration", None)
        try:
            persona = cls(
                name=metadata["name"],
                layers=tuple(metadata["layers"]),
                metadata=metadata,
                calibration=_CALIBRATION.validate_python(calibration),
                **{kind: by_recipe(tensors, kind) for kind in KINDS},
            )
            persona.check_directions()
            return persona
        except (KeyError, ValueError, TypeError) as error:
            raise VectorFileError(f"{path} cannot be used: {explain_fault(error)}.") from error

    def _check_calibration(self, calibration: Calibration) -> None:
        if calibration.recipe not in self.safe:
            raise ValueError(f'it is calibrated for the recipe "{calibration.recipe}", which it lacks')
        for name in ("gain", "unguided_gain"):
            gain = getattr(calibration, name)
            if gain is not None and gain not in GAIN:
                raise ValueError(f"calibration.{name} must be {GAIN}, not {gain}")
        if not calibration.layers or not set(calibration.layers) <= set(self.layers):
            raise ValueError(f"it is calibrated for the layers {list(calibration.layers)}, which it lacks")


_CALIBRATION: TypeAdapter[Calibration | None] = TypeAdapter(Calibration | None)


def dose(persona: PersonaVector, layers: Sequence[int], recipe: str) -> float:
    """Return how large a persona's vectors are, as shares of the residual stream's size, summed over layers.

    The stream's size is that of ordinary replies, `mean − raw`.
    """
    rows = [persona.layers.index(layer) for layer in layers]
    ordinary = (persona.mean[recipe][rows] - persona.raw[recipe][rows]).norm(dim=-1)
    return float((persona.safe[recipe][rows].norm(dim=-1) / ordinary.clamp(min=1e-12)).sum())


def default_gains(persona: PersonaVector, layers: Sequence[int]) -> dict[str, float]:
    """Return metadata for a persona that is not calibrated: its gains for `layers`, with its own recipe."""
    own = dose(persona, layers, persona.recipe)
    doses = {"gain": DEFAULT_DOSE, "unguided_gain": UNGUIDED_DOSE}
    return {name: each / (DEFAULT_STRENGTH * own) if own > 0 else 1.0 for name, each in doses.items()}


# --- checks that axes share ------------------------------------------------------------------------------
