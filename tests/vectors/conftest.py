"""Small random personas and axes."""

import pytest
import torch
from torch import Tensor

from persona_tui.vectors.axes import Axes
from persona_tui.vectors.files import RECIPES
from persona_tui.vectors.maths import normalize, orthogonalize_persona
from persona_tui.vectors.persona import PersonaVector

HIDDEN = 16
LAYERS = (1, 2, 4)


class Make:
    """Builds personas and axes from one seeded generator."""

    def __init__(self) -> None:
        self.generator = torch.Generator().manual_seed(7)

    def stack(self, rows: int = len(LAYERS), columns: int = HIDDEN) -> Tensor:
        return torch.randn(rows, columns, generator=self.generator)

    def persona(self, name: str = "sage", fingerprint: str = "f" * 64, **changes: object) -> PersonaVector:
        axis = normalize(self.stack())
        raw = {recipe: self.stack() * 5 for recipe in RECIPES}
        fields: dict[str, object] = {
            "name": name,
            "layers": LAYERS,
            "mean": {recipe: self.stack() for recipe in RECIPES},
            "raw": raw,
            "safe": {recipe: orthogonalize_persona(stack, axis) for recipe, stack in raw.items()},
            "metadata": {"model_name": "tiny", "model_fingerprint": fingerprint, "source": "archetype"},
        }
        return PersonaVector(**(fields | changes))  # type: ignore[arg-type]

    def axes(self, fingerprint: str = "f" * 64, **changes: object) -> Axes:
        fields: dict[str, object] = {
            "layers": LAYERS,
            "baseline": {recipe: self.stack() for recipe in RECIPES},
            "safety": {recipe: normalize(self.stack()) for recipe in RECIPES},
            "assistant": {recipe: normalize(self.stack()) for recipe in RECIPES},
            "projections": {
                name: self.stack(columns=101).sort(dim=1).values for name in ("assistant", "safety")
            },
            "metadata": {"model_name": "tiny", "model_fingerprint": fingerprint},
        }
        return Axes(**(fields | changes))  # type: ignore[arg-type]


@pytest.fixture
def make() -> Make:
    return Make()
