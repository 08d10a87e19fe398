"""The vectors that ship: whole, calibrated, and marked with the weights that they were made on."""

from __future__ import annotations

from pathlib import Path

import pytest

from persona_tui.core.config import Settings
from persona_tui.core.identity import ModelSketch
from persona_tui.core.workspace import packaged_root
from persona_tui.vectors.axes import Axes
from persona_tui.vectors.files import DISTILLED, read_metadata
from persona_tui.vectors.maths import cosine
from persona_tui.vectors.persona import PersonaVector
from persona_tui.vectors.roles import ROLES_FILE, RoleMeans

ROOT = packaged_root() / "vectors"
STARTER = ROOT / "HuggingFaceTB--SmolLM2-135M-Instruct"
TINY = ROOT / "builtin"
ARCHETYPES = ("creator", "explorer", "guardian", "sage", "trickster")


@pytest.mark.parametrize("folder", [TINY, STARTER], ids=["tiny", "starter"])
def test_both_models_have_axes_and_five_archetypes(folder: Path) -> None:
    axes = Axes.load(folder / "axes.safetensors")
    assert set(axes.names) == {"assistant", "safety"} and set(axes.projections) == set(axes.names)
    assert sorted(path.stem for path in (folder / "personas").iterdir()) == list(ARCHETYPES)
    for name in ARCHETYPES:
        persona = PersonaVector.load(folder / "personas" / f"{name}.safetensors")
        assert persona.calibration is not None and persona.metadata["prompts"]
        assert set(persona.layers) <= set(axes.layers)


@pytest.mark.parametrize(
    ("folder", "refused", "weak"),
    [(TINY, 183, None), (STARTER, 0, "made of 0 refusals of 60 unsafe prompts")],
    ids=["tiny", "starter"],
)
def test_both_models_axes_count_refusals(folder: Path, refused: int, weak: str | None) -> None:
    """The starter model hardly refuses: its safety axis says so, and no floor is set on it by default."""
    axes = Axes.load(folder / "axes.safetensors")
    assert axes.metadata["refusals"]["unsafe"]["refused"] == refused and axes.weakness("safety") == weak
    assert axes.default_capping_axis == "assistant"
    for name in axes.names:
        for layer in axes.layers:
            sides, centre = axes.sides(name, layer), axes.centre(name, layer)
            assert sides is not None and centre is not None
            assert sides[0] > centre > sides[1]


@pytest.mark.parametrize("folder", [TINY, STARTER], ids=["tiny", "starter"])
def test_shipped_personas_have_nothing_of_the_safety_axis(folder: Path) -> None:
    axes = Axes.load(folder / "axes.safetensors")
    for name in ARCHETYPES:
        persona = PersonaVector.load(folder / "personas" / f"{name}.safetensors")
        rows = [axes.layers.index(layer) for layer in persona.layers]
        for recipe, safe in persona.safe.items():
            axis = axes.safety["response" if recipe == DISTILLED else recipe][rows]
            assert float(cosine(safe, axis).abs().max()) < 1e-3


def test_the_starter_models_files_know_their_weights() -> None:
    """So that its other copies can use them, and other models cannot."""
    sources = set()
    for path in sorted(STARTER.rglob("*.safetensors")):
        metadata = read_metadata(path)
        assert ModelSketch.from_metadata(metadata) is not None, path.name
        sources.add(metadata["model_source"])
    assert len(sources) == 1 and "sha256:" in sources.pop()


def test_shipped_personas_are_distilled_and_calibrated_as_they_are_used() -> None:
    for folder in (STARTER, TINY):
        for name in ARCHETYPES:
            persona = PersonaVector.load(folder / "personas" / f"{name}.safetensors")
            assert persona.recipe == DISTILLED and persona.calibration is not None
            assert persona.calibration.plausibility == Settings().steering.plausibility
            assert persona.calibration.floor is not None


def test_the_map_of_the_starter_model_has_the_catalogue() -> None:
    roles = RoleMeans.load(STARTER / ROLES_FILE)
    assert len(roles.names) >= 100 and set(roles.layers) <= set(
        Axes.load(STARTER / "axes.safetensors").layers
    )
