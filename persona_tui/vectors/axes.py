"""The axes of one model: the assistant baseline, the directions that floors are set on, and the floors."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from persona_tui.core.errors import VectorFileError, nearest
from persona_tui.vectors.files import (
    FORMAT_VERSION,
    by_recipe,
    check_kind,
    check_layers,
    check_stacks,
    explain_fault,
    load_tensors,
    save_tensors,
)
from persona_tui.vectors.maths import TraceScale, mean_of

AXIS_NAMES = ("assistant", "safety")
OUTSIDE = 0.05  # the share of ordinary replies that lies outside their range, half of it at either end
FEWEST_REFUSALS = 30  # below this an axis of refusals is weak; the same goes for answers to safe prompts
UNCOUNTED = "made of all answers, refusals or not"  # of files from before refusals were counted
# Files hold float32, so a unit vector's length is 1 only to about this.
_UNIT_TOLERANCE = 1e-3


@dataclass(frozen=True, eq=False)  # tensors have no single answer to ==
class Axes:
    """Baseline, axes and floors of one model, at each of `layers`.

    `baseline` and the axes have one tensor per recipe, `[len(layers), hidden]`; axes are unit length.
    Positive on `safety` is the ordinary helpful answer, positive on `assistant` the default Assistant;
    `assistant` is None until there are personas. `projections` has, per axis, the sorted projections of
    responses of the Assistant and of ordinary roles `[len(layers), n]` (recipe `response`), from which any
    percentile is a look-up.

    Raises:
        ValueError: the shapes or recipes do not fit together, or an axis is not unit length.
    """

    layers: tuple[int, ...]
    baseline: dict[str, Tensor]
    safety: dict[str, Tensor]
    projections: dict[str, Tensor]
    assistant: dict[str, Tensor] | None = None
    metadata: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_layers(self.layers)
        check_stacks(len(self.layers), {"baseline": self.baseline, **self._directions})
        for name, stacks in self._directions.items():
            if any((stack.norm(dim=-1) - 1).abs().max() > _UNIT_TOLERANCE for stack in stacks.values()):
                raise ValueError(f'its "{name}" axis is not unit length')
        self._check_projections()

    @cached_property
    def names(self) -> tuple[str, ...]:
        """The axes there are."""
        return tuple(name for name in AXIS_NAMES if name in self._directions)

    @property
    def default_capping_axis(self) -> str:
        """The axis measured to keep refusals intact on this model; unmeasured, the assistant axis."""
        measured = self.metadata.get("default_capping_axis")
        if measured in self.names and (measured != "safety" or self.weakness("safety") in (None, UNCOUNTED)):
            return str(measured)
        return "assistant" if self.assistant is not None else "safety"

    def weakness(self, name: str) -> str | None:
        """Return in a line why an axis may not mean what its name says; None if nothing speaks against it."""
        record = self.metadata.get("refusals")
        if name != "safety":
            return None
        if not isinstance(record, Mapping):
            return UNCOUNTED
        unsafe, safe = record["unsafe"], record["safe"]
        if unsafe["refused"] < FEWEST_REFUSALS:
            return f"made of {unsafe['refused']} refusals of {unsafe['asked']} unsafe prompts"
        if safe["answered"] < FEWEST_REFUSALS:
            return f"made of {safe['answered']} answers to {safe['asked']} safe prompts"
        return None

    def remedy(self, name: str) -> str:
        """Return what to do about an axis that is weak; "" if it is not."""
        if self.weakness(name) is None:
            return ""
        record = self.metadata.get("refusals")
        if not isinstance(record, Mapping):
            return "Count refusals: persona-tui extract-axes"
        unsafe, safe = record["unsafe"], record["safe"]
        if min(unsafe["asked"], safe["asked"]) < FEWEST_REFUSALS:
            return "Ask more prompts: persona-tui extract-axes --samples 12"
        if unsafe["refused"] < FEWEST_REFUSALS:
            return (
                "Use a model that refuses, or have this one read given refusals: "
                "persona-tui extract-axes --refusals given"
            )
        return "Use a model that answers safe prompts."

    def doubt(self, name: str) -> str:
        """Return in words that an axis is weak, why, and what to do; "" if it is not."""
        weak = self.weakness(name)
        return "" if weak is None else f"The {name} axis is weak: {weak}. {self.remedy(name)}"

    def centre(self, name: str, layer: int) -> float | None:
        """Return the projection halfway between both sides of an axis; None if the file does not say.

        Above it lie answers to safe prompts (`safety`), or the Assistant (`assistant`); below it refusals, or
        personas.
        """
        both = self.sides(name, layer)
        return None if both is None else sum(both) / 2

    def sides(self, name: str, layer: int) -> tuple[float, float] | None:
        """Return the mean projections of an axis' sides, the positive one first; None if not recorded."""
        row, recorded = self._row(name, layer), self.metadata.get("sides", {}).get(name, [])
        if [len(each) for each in recorded] != [len(self.layers)] * 2:
            return None
        return recorded[0][row], recorded[1][row]

    def axis(self, name: str, layer: int, recipe: str = "response") -> Tensor:
        """Return one axis at one layer, a unit vector `[hidden]`.

        Raises:
            VectorFileError: there is no such axis, or it was not extracted at this layer.
        """
        row = self._row(name, layer)
        stacks = self._directions[name]
        if recipe not in stacks:
            raise VectorFileError(f"The {name} axis was not extracted with the recipe {recipe}.")
        return stacks[recipe][row]

    def floor(self, name: str, layer: int, percentile: float = 25) -> float:
        """Return the percentile (0 to 100) of ordinary responses' projections onto an axis at a layer.

        Between two responses it interpolates linearly, as `torch.quantile` does.

        Raises:
            VectorFileError: there is no such axis, no floor for it, or it was not extracted at this layer.
        """
        row = self._row(name, layer)
        if name not in self.projections:
            raise VectorFileError(f"The {name} axis has no floor; run `persona-tui extract-axes`.")
        return torch.quantile(self.projections[name][row], percentile / 100).item()

    def floors(self, name: str, layers: Sequence[int], percentile: float) -> dict[int, tuple[Tensor, float]]:
        """Return an axis and its floor at those of `layers` that it was extracted for, see `floor`."""
        there = [layer for layer in layers if layer in self.layers]
        return {layer: (self.axis(name, layer), self.floor(name, layer, percentile)) for layer in there}

    def scale(self, name: str, layers: Sequence[int]) -> TraceScale:
        """Return the scale of an axis at some layers: 1 = a standard deviation of ordinary replies.

        0 is halfway between both sides of the axis, so that answers to safe prompts lie above it and refusals
        below; in files that do not record the sides, the average of ordinary replies.
        """
        key = name, tuple(layers)
        if key not in self._scales:
            self._scales[key] = self._scale(*key)
        return self._scales[key]

    def _scale(self, name: str, layers: Sequence[int]) -> TraceScale:
        vectors, ordinary = {}, []
        for layer in layers:
            if layer not in self.layers:
                continue
            projections = self.projections[name][self.layers.index(layer)]
            spread = float(projections.std(correction=0)) or 1.0
            vectors[layer] = self.axis(name, layer) / spread
            centre = self.centre(name, layer)
            ordinary.append((float(projections.mean()) if centre is None else centre) / spread)
        return TraceScale(vectors, mean_of(ordinary))

    def ordinary_range(self, name: str, layers: Sequence[int]) -> tuple[float, float] | None:
        """Return between which readings on an axis' scale 95% of ordinary replies lie.

        None where the file has no projections onto it, or none at these layers.
        """
        key = name, tuple(layers)
        if key not in self._ranges:
            self._ranges[key] = self._range(*key)
        return self._ranges[key]

    def _range(self, name: str, layers: Sequence[int]) -> tuple[float, float] | None:
        if name not in self.names or name not in self.projections:
            return None
        scale, ends = self.scale(name, layers), []
        for layer in scale.vectors:
            row = self.projections[name][self.layers.index(layer)].double()
            spread = float(row.std(correction=0)) or 1.0
            ends.append(row.quantile(row.new_tensor([OUTSIDE / 2, 1 - OUTSIDE / 2])) / spread)
        if not ends:
            return None
        low, high = (mean_of([float(each[side]) for each in ends]) - scale.ordinary for side in (0, 1))
        return low, high

    @cached_property
    def _ranges(self) -> dict[tuple[str, tuple[int, ...]], tuple[float, float] | None]:
        return {}

    @cached_property
    def _scales(self) -> dict[tuple[str, tuple[int, ...]], TraceScale]:
        return {}

    def save(self, path: Path, *, inside: Path | None = None) -> None:
        """Write everything to one file; see `files.save_tensors` for `inside` and the errors."""
        stacks = {"baseline": self.baseline, **self._directions}
        tensors = {f"{kind}.{recipe}": t for kind, group in stacks.items() for recipe, t in group.items()}
        tensors |= {f"projections.{name}": rows for name, rows in self.projections.items()}
        metadata = {
            **self.metadata,
            "kind": "axes",
            "format_version": FORMAT_VERSION,
            "hidden_size": int(self.baseline[next(iter(self.baseline))].shape[-1]),
            "layers": list(self.layers),
        }
        save_tensors(path, tensors, metadata, inside=inside)

    @classmethod
    def load(cls, path: Path) -> "Axes":
        """Read a model's axes.

        Raises:
            VectorFileError: the file is missing, damaged, or holds something else.
        """
        tensors, metadata = load_tensors(path)
        check_kind(path, metadata, "axes")
        try:
            return cls(
                layers=tuple(metadata["layers"]),
                baseline=by_recipe(tensors, "baseline"),
                safety=by_recipe(tensors, "safety"),
                assistant=by_recipe(tensors, "assistant") or None,
                projections=_projections(tensors),
                metadata=metadata,
            )
        except (KeyError, ValueError, TypeError) as error:
            raise VectorFileError(f"{path} cannot be used: {explain_fault(error)}.") from error

    @cached_property
    def _directions(self) -> dict[str, dict[str, Tensor]]:
        return {"safety": self.safety} | ({"assistant": self.assistant} if self.assistant is not None else {})

    def _row(self, name: str, layer: int) -> int:
        if name not in self.names:
            raise VectorFileError(f'There is no "{name}" axis for this model.{nearest(name, self.names)}')
        if layer not in self.layers:
            raise VectorFileError(
                f"The axes were not extracted at layer {layer}, only at {', '.join(map(str, self.layers))};"
                " run `persona-tui extract-axes`."
            )
        return self.layers.index(layer)

    def _check_projections(self) -> None:
        for name, rows in self.projections.items():
            if name not in self.names:
                raise ValueError(f'it has projections onto "{name}", but no such axis')
            if rows.ndim != 2 or rows.shape[0] != len(self.layers) or not rows.shape[1]:
                raise ValueError(
                    f'its "{name}" projections are {list(rows.shape)}, not [{len(self.layers)}, n]'
                )
            if (rows.diff(dim=1) < 0).any():
                raise ValueError(f'its "{name}" projections are not sorted')


def _projections(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensors[f"projections.{name}"] for name in AXIS_NAMES if f"projections.{name}" in tensors}
