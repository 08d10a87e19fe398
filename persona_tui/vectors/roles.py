"""The mean of every role at a few layers: points of one model's persona space, in one small file.

A persona has vectors at every layer and can be spoken with. A role has one mean at three layers, of a few
replies: enough to see who lies near whom.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from persona_tui.core.errors import VectorFileError, nearest
from persona_tui.vectors.files import (
    FORMAT_VERSION,
    SUFFIX,
    check_kind,
    check_layers,
    explain_fault,
    load_tensors,
    save_tensors,
)

ROLES_FILE = f"roles{SUFFIX}"


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
