"""The vectors that ship: whole, calibrated, and marked with the weights that they were made on."""

from __future__ import annotations

from pathlib import Path

import pytest

from persona_tui.core.identity import ModelSketch
from persona_tui.core.workspace import packaged_root
from persona_tui.vectors.axes import Axes
from persona_tui.vectors.files import read_metadata
from persona_tui.vectors.persona import PersonaVector

ROOT = packaged_root() / "vectors"
STARTER = ROOT / "HuggingFaceTB--SmolLM2-135M-Instruct"
ARCHETYPES = ("creator", "explorer", "guardian", "sage", "trickster")


@pytest.mark.parametrize("folder", [ROOT / "builtin", STARTER], ids=["tiny", "starter"])
def test_both_models_have_axes_and_five_archetypes(folder: Path) -> None:
    axes = Axes.load(folder / "axes.safetensors")
    assert set(axes.names) == {"assistant", "safety"} and set(axes.projections) == set(axes.names)
    assert sorted(path.stem for path in (folder / "personas").iterdir()) == list(ARCHETYPES)
    for name in ARCHETYPES:
        persona = PersonaVector.load(folder / "personas" / f"{name}.safetensors")
        assert persona.calibration is not None and persona.metadata["prompts"]
        assert set(persona.layers) <= set(axes.layers)


def test_the_starter_models_files_know_their_weights() -> None:
    """So that its other copies can use them, and other models cannot."""
    sources = set()
    for path in sorted(STARTER.rglob("*.safetensors")):
        metadata = read_metadata(path)
        assert ModelSketch.from_metadata(metadata) is not None, path.name
        sources.add(metadata["model_source"])
    assert len(sources) == 1 and "sha256:" in sources.pop()


def test_the_starter_models_personas_have_a_gain_with_the_guide_and_one_without() -> None:
    for name in ARCHETYPES:
        persona = PersonaVector.load(STARTER / "personas" / f"{name}.safetensors")
        assert persona.calibration is not None and persona.calibration.plausibility > 0
        assert 0 < persona.gain(guided=False) < persona.gain(guided=True)
