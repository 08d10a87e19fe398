"""The mean of every role at a few layers: points of one model's persona space, in one small file.

A persona has vectors at every layer and can be spoken with. A role has one mean at three layers, of a few
replies: enough to see who lies near whom.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from persona_tui.core.errors import VectorFileError, nearest
from persona_tui.vectors.files import FORMAT_VERSION, SUFFIX, check_kind, load_tensors, save_tensors
from persona_tui.vectors.persona import check_layers, explain_fault

ROLES_FILE = f"roles{SUFFIX}"


@dataclass(frozen=True)
class RoleMap:
    """Roles in the plane (or space) in which they differ most.

    Attributes:
        places: by role, where it is, `[dimensions]`.
        assistant: where the Assistant is, `[dimensions]`.
        shares: how much of the roles' variance each dimension shows, 0 to 1.
    """

    places: dict[str, Tensor]
    assistant: Tensor
    shares: tuple[float, ...]


@dataclass(frozen=True, eq=False)
class RoleMeans:
    """Mean response activations of roles, and of the Assistant answering the same questions.

    Attributes:
        names: of the roles.
        layers: where they were read, ascending.
        means: `[roles, layers, hidden]` float32.
        baseline: the Assistant's, `[layers, hidden]`.
        prompts: by role, a hash of the system prompts that it was made from.
        metadata: where they come from.

    Raises:
        ValueError: the shapes do not fit together.
    """

    names: tuple[str, ...]
    layers: tuple[int, ...]
    means: Tensor
    baseline: Tensor
    prompts: dict[str, str]
    metadata: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_layers(self.layers)
        if len(set(self.names)) != len(self.names) or set(self.names) != set(self.prompts):
            raise ValueError("its names do not fit its prompts")
        if self.means.dim() != 3 or self.means.shape[:2] != (len(self.names), len(self.layers)):
            raise ValueError(f"its means are {list(self.means.shape)}")
        if self.baseline.shape != self.means.shape[1:]:
            raise ValueError(f"its baseline is {list(self.baseline.shape)}")

    def difference(self, name: str) -> Tensor:
        """Return how a role differs from the Assistant, `[layers, hidden]`.

        Raises:
            VectorFileError: there is no such role.
        """
        if name not in self.names:
            raise VectorFileError(f'There is no mean of a role "{name}".{nearest(name, self.names)}')
        return self.means[self.names.index(name)] - self.baseline

    def map(self, layer: int | None = None, dimensions: int = 2) -> RoleMap:
        """Return the roles' places along their principal components at a layer, by default the middle one.

        Raises:
            VectorFileError: there is no such layer, or there are fewer roles than dimensions.
        """
        layer = self.layers[len(self.layers) // 2] if layer is None else layer
        if layer not in self.layers:
            raise VectorFileError(f"Roles were read at layers {', '.join(map(str, self.layers))}.")
        if not 0 < dimensions <= min(len(self.names), self.means.shape[-1]):
            raise VectorFileError(f"{len(self.names)} roles cannot be shown in {dimensions} dimensions.")
        row = self.layers.index(layer)
        points, middle = self.means[:, row].double(), self.means[:, row].double().mean(0)
        _, sizes, directions = torch.linalg.svd(points - middle, full_matrices=False)
        # Signs are arbitrary: the largest part of each direction is positive.
        largest = directions.gather(1, directions.abs().argmax(1, keepdim=True)).sign()
        kept = (directions * largest)[:dimensions]
        places = ((points - middle) @ kept.T).float()
        variance = sizes.square().sum().clamp(min=torch.finfo(torch.float64).tiny)
        return RoleMap(
            dict(zip(self.names, places, strict=True)),
            ((self.baseline[row].double() - middle) @ kept.T).float(),
            tuple((sizes[:dimensions].square() / variance).tolist()),
        )

    def save(self, path: Path, *, inside: Path | None = None) -> None:
        """Write everything to one file; see `files.save_tensors` for `inside` and the errors."""
        metadata = {
            **self.metadata,
            "kind": "roles",
            "format_version": FORMAT_VERSION,
            "layers": list(self.layers),
            "roles": [[name, self.prompts[name]] for name in self.names],
        }
        save_tensors(path, {"means": self.means, "baseline": self.baseline}, metadata, inside=inside)

    @classmethod
    def load(cls, path: Path) -> RoleMeans:
        """Read a model's roles.

        Raises:
            VectorFileError: the file is missing, damaged, or holds something else.
        """
        tensors, metadata = load_tensors(path)
        check_kind(path, metadata, "roles")
        try:
            roles: Mapping[str, str] = {str(name): str(prompts) for name, prompts in metadata["roles"]}
            layers = tuple(int(layer) for layer in metadata["layers"])
            return cls(tuple(roles), layers, tensors["means"], tensors["baseline"], dict(roles), metadata)
        except (KeyError, ValueError, TypeError) as error:
            raise VectorFileError(f"{path} cannot be used: {explain_fault(error)}.") from error
