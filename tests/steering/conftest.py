"""A model with three personas and axes made of random vectors, as loud as the model's own residual stream."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from persona_tui.core.config import Settings, capture_layers, override
from persona_tui.model import ModelWrapper, conversation
from persona_tui.steering import SteeringEngine
from persona_tui.vectors.axes import Axes
from persona_tui.vectors.files import RECIPES
from persona_tui.vectors.manager import PersonaManager
from persona_tui.vectors.maths import normalize, orthogonalize_persona
from persona_tui.vectors.persona import Calibration, PersonaVector
from tests.model.conftest import make_model, make_tokenizer

torch.set_num_threads(1)


@pytest.fixture(scope="session")
def model() -> ModelWrapper:
    """A random model with the built-in one's architecture."""
    layers = {"num_hidden_layers": 8, "layer_types": ["sliding_attention"] * 8}
    return ModelWrapper(
        make_model("qwen2-sliding", max_position_embeddings=1024, **layers), make_tokenizer(), "tiny"
    )


@pytest.fixture(scope="session")
def settings() -> Settings:
    return override(Settings(), {"generation.max_new_tokens": 12, "generation.seed": 7})


class Stock:
    """Makes axes and personas that fit the model."""

    def __init__(self, model: ModelWrapper, settings: Settings) -> None:
        self.model = model
        self.layers = tuple(capture_layers(settings, model.n_layers))
        self.generator = torch.Generator().manual_seed(11)
        read = model.read([conversation("Who are you?"), conversation("Tell me a story.")], self.layers)
        self.ordinary = torch.stack([each.response for each in read])  # [texts, layers, hidden]

    def stack(self) -> Tensor:
        """A random vector as long as the residual stream, for every layer."""
        unit = normalize(torch.randn(len(self.layers), self.model.hidden_size, generator=self.generator))
        return unit * self.ordinary[0].norm(dim=-1, keepdim=True)

    def axes(self) -> Axes:
        safety, assistant = normalize(self.stack()), normalize(self.stack())
        samples = torch.cat([self.ordinary + 0.3 * self.stack() for _ in range(20)])
        projections = {
            name: torch.einsum("nlh,lh->ln", samples, axis).sort(dim=1).values
            for name, axis in (("safety", safety), ("assistant", assistant))
        }
        return Axes(
            self.layers,
            baseline=dict.fromkeys(RECIPES, self.ordinary.mean(0)),
            safety=dict.fromkeys(RECIPES, safety),
            assistant=dict.fromkeys(RECIPES, assistant),
            projections=projections,
            metadata={"model_fingerprint": self.model.fingerprint, "default_capping_axis": "assistant"},
        )

    def persona(self, name: str, axes: Axes, layers: tuple[int, ...], gain: float) -> PersonaVector:
        raw = {recipe: self.stack() for recipe in RECIPES}
        return PersonaVector(
            name,
            self.layers,
            mean={recipe: axes.baseline[recipe] + raw[recipe] for recipe in RECIPES},
            raw=raw,
            safe={recipe: orthogonalize_persona(raw[recipe], axes.safety[recipe]) for recipe in RECIPES},
            metadata={"model_fingerprint": self.model.fingerprint, "target_layers": [4, 5]},
            calibration=Calibration("response", layers, gain, 0.3, 1.0, 0.1, []),
        )


@pytest.fixture
def manager(tmp_path: Path, model: ModelWrapper, settings: Settings) -> PersonaManager:
    """sage and trickster are added at layer 4, explorer at layer 3."""
    stock = Stock(model, settings)
    manager = PersonaManager(tmp_path / model.slug, model.fingerprint, model.name)
    axes = stock.axes()
    manager.save_axes(axes)
    for name, layer, gain in (("sage", 4, 5.0), ("trickster", 4, 3.0), ("explorer", 3, 4.0)):
        manager.save(stock.persona(name, axes, (layer,), gain))
    return manager


@pytest.fixture
def engine(model: ModelWrapper, manager: PersonaManager, settings: Settings) -> SteeringEngine:
    return SteeringEngine(model, manager, settings)
