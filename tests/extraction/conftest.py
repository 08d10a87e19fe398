"""A model, a workspace with a few questions and prompts, and settings that make extraction take seconds."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from persona_tui.core.config import Settings, override
from persona_tui.core.workspace import Workspace
from persona_tui.datasets.records import read_questions
from persona_tui.datasets.schema import Question
from persona_tui.extraction import ActivationExtractor, PersonaStudio
from persona_tui.model import ModelWrapper
from persona_tui.vectors.manager import PersonaManager
from persona_tui.vectors.persona import PersonaVector
from tests.model.conftest import make_model, make_tokenizer

torch.set_num_threads(1)

REPOSITORY = Path(__file__).parents[2]
ARCHETYPES = ("sage", "trickster")
QUICK = {
    "extraction.num_samples_per_prompt": 4,
    "extraction.max_new_tokens": 12,
    "calibration.questions": 2,
    "calibration.max_new_tokens": 8,
    "generation.max_new_tokens": 16,
}


@pytest.fixture(scope="session")
def model() -> ModelWrapper:
    """A random model with the built-in one's architecture."""
    layers = {"num_hidden_layers": 4, "layer_types": ["sliding_attention"] * 4}
    return ModelWrapper(
        make_model("qwen2-sliding", max_position_embeddings=1024, **layers), make_tokenizer(), "tiny"
    )


@pytest.fixture(scope="session")
def settings() -> Settings:
    return override(Settings(), QUICK)


def _first_lines(name: str, count: int) -> str:
    lines = (REPOSITORY / "datasets" / name).read_text(encoding="utf-8").splitlines()[:count]
    return "\n".join(lines) + "\n"


def fill_workspace(root: Path) -> Workspace:
    """A small copy of the datasets: 12 questions, two archetypes, six safe and six unsafe prompts."""
    files = {f"personas/archetypes/{name}.jsonl": 5 for name in ARCHETYPES}
    files |= {f"safety/{kind}_prompts.jsonl": 6 for kind in ("safe", "unsafe")}
    files["personas/extraction_questions.jsonl"] = 12
    for name, count in files.items():
        path = root / "datasets" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(_first_lines(name, count), encoding="utf-8")
    return Workspace(root)


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    return fill_workspace(tmp_path)


@pytest.fixture
def questions(workspace: Workspace) -> list[Question]:
    return read_questions(workspace)


MakeStudio = Callable[..., PersonaStudio]


@pytest.fixture
def make_studio(workspace: Workspace, model: ModelWrapper, settings: Settings) -> MakeStudio:
    """A studio on the test's own workspace; arguments go to its extractor."""

    def make(changes: dict[str, object] | None = None, **arguments: object) -> PersonaStudio:
        manager = PersonaManager(workspace.model_dir(model.slug), model.fingerprint, model.name)
        own = override(settings, changes or {})
        return PersonaStudio(workspace, manager, ActivationExtractor(model, own, **arguments))  # type: ignore[arg-type]

    return make


@pytest.fixture(scope="session")
def extracted(
    tmp_path_factory: pytest.TempPathFactory, model: ModelWrapper, settings: Settings
) -> PersonaStudio:
    """A workspace with axes and both archetypes' personas, calibrated. Not to be changed."""
    workspace = fill_workspace(tmp_path_factory.mktemp("extracted"))
    manager = PersonaManager(workspace.model_dir(model.slug), model.fingerprint, model.name)
    studio = PersonaStudio(workspace, manager, ActivationExtractor(model, settings))
    studio.extract_axes()
    return studio


@pytest.fixture
def sage(extracted: PersonaStudio) -> PersonaVector:
    return extracted.manager.get("sage")


def read_jsonl(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
