"""Random models with a monitor each, fitted on the shipped small set."""

from __future__ import annotations

from pathlib import Path

import pytest

from persona_tui.core.workspace import Workspace, packaged_root
from persona_tui.model import ModelWrapper
from persona_tui.monitors.monitor import SelfMonitor
from persona_tui.monitors.training_data import TrainingData, load_training
from tests.model.conftest import make_model, make_tokenizer


@pytest.fixture(scope="session")
def shipped() -> Workspace:
    """The workspace that comes with persona-tui."""
    return Workspace(packaged_root())


@pytest.fixture(scope="session")
def data(shipped: Workspace) -> TrainingData:
    """25 safe and 25 dangerous queries."""
    return load_training(shipped, "training")


@pytest.fixture(scope="session")
def model() -> ModelWrapper:
    """A random model with a chat template."""
    return ModelWrapper(make_model("qwen2", max_position_embeddings=512), make_tokenizer(), "tiny")


@pytest.fixture(scope="session")
def base_model() -> ModelWrapper:
    """A random GPT-2: no chat template."""
    return ModelWrapper(make_model("gpt2", n_positions=512), make_tokenizer(chat=False), "tiny-base")


@pytest.fixture(scope="session")
def monitor(model: ModelWrapper, data: TrainingData) -> SelfMonitor:
    """Fitted on the model."""
    return SelfMonitor.fit(model, data)


@pytest.fixture
def saved(tmp_path: Path, monitor: SelfMonitor) -> Path:
    """The monitor's file."""
    path = tmp_path / "default.safetensors"
    monitor.save(path)
    return path
