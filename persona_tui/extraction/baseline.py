"""The assistant baseline of one model: ordinary replies, before anything else is known of it.

A persona needs nothing but this; the axes are made from it later, and keep it from then on.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from persona_tui.core.errors import VectorFileError
from persona_tui.vectors.files import FORMAT_VERSION, SUFFIX, check_kind, load_tensors, save_tensors
from persona_tui.vectors.persona import by_recipe, check_layers, check_stacks, explain_fault

if TYPE_CHECKING:
    from persona_tui.extraction.sums import ActivationSums

BASELINE_FILE = f"baseline{SUFFIX}"


@dataclass(frozen=True, eq=False)
class Baseline:
    """Ordinary replies.

    Attributes:
        layers: where they were read, ascending.
        mean: by recipe, `[layers, hidden]` float32.
        kept: the `response` activations of some replies, `[replies, layers, hidden]`, for the floors.
        count: how many replies the mean is of.
        metadata: where they come from.
    """

    layers: tuple[int, ...]
    mean: dict[str, Tensor]
    kept: Tensor
    count: int
    metadata: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, sums: ActivationSums, metadata: Mapping[str, Any]) -> Baseline:
        """What the replies' sums come to."""
        kept = torch.stack([sums.kept[index] for index in sorted(sums.kept)])
        return cls(sums.layers, sums.means(), kept, sums.count, dict(metadata))

    def serves(self, layers: Sequence[int], metadata: Mapping[str, Any]) -> bool:
        """Whether it was read at these layers, from as many replies or more, sampled in the same way.

        Args:
            layers: where it is needed.
            metadata: what a new one would have.
        """
        if self.layers != tuple(layers) or self.metadata.get("asked", 0) < metadata["asked"]:
            return False
        return _sampled(self.metadata) == _sampled(metadata)

    def save(self, path: Path, *, inside: Path | None = None) -> None:
        """Write it to one file; see `files.save_tensors` for `inside` and the errors."""
        tensors = {f"baseline.{recipe}": mean for recipe, mean in self.mean.items()} | {"kept": self.kept}
        metadata = {
            **self.metadata,
            "kind": "baseline",
            "format_version": FORMAT_VERSION,
            "layers": list(self.layers),
            "count": self.count,
        }
        save_tensors(path, tensors, metadata, inside=inside)

    @classmethod
    def load(cls, path: Path) -> Baseline:
        """Read a model's baseline.

        Raises:
            VectorFileError: the file is missing, damaged, or holds something else.
        """
        tensors, metadata = load_tensors(path)
        check_kind(path, metadata, "baseline")
        try:
            layers = tuple(metadata["layers"])
            mean, kept = by_recipe(tensors, "baseline"), tensors["kept"]
            check_layers(layers)
            check_stacks(len(layers), {"baseline": mean})
            expected = next(iter(mean.values())).shape
            if kept.ndim != 3 or kept.shape[1:] != expected:
                raise ValueError(f'its "kept" replies are {list(kept.shape)}, not [n, {list(expected)}]')
            return cls(layers, mean, kept, metadata["count"], metadata)
        except (KeyError, ValueError, TypeError) as error:
            raise VectorFileError(f"{path} cannot be used: {explain_fault(error)}.") from error


def _sampled(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """How replies were sampled, but not how many of them to which questions."""
    extraction = metadata.get("extraction") or {}
    asked = {key: extraction.get(key) for key in ("max_new_tokens", "temperature", "top_p", "seed")}
    return {**asked, "baseline": extraction.get("baseline", "default")}
