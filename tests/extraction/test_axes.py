"""The axes: what they are the difference of, and where their floors lie."""

from __future__ import annotations

import pytest
import torch

from persona_tui.core.config import resolve_layers
from persona_tui.core.errors import DatasetError
from persona_tui.datasets.records import read_safety
from persona_tui.extraction import PersonaStudio, capping, extract_axes
from persona_tui.vectors.maths import normalize
from tests.extraction.conftest import ARCHETYPES, MakeStudio


def test_the_assistant_axis_points_from_the_personas_to_the_baseline(extracted: PersonaStudio) -> None:
    axes = extracted.manager.axes
    assert axes is not None and axes.assistant is not None
    for recipe, axis in axes.assistant.items():
        means = torch.stack([extracted.manager.get(name).mean[recipe] for name in ARCHETYPES])
        torch.testing.assert_close(axis, normalize(axes.baseline[recipe] - means.mean(0)))


def test_safe_answers_lie_further_along_the_safety_axis_than_refusals(extracted: PersonaStudio) -> None:
    axes, extractor = extracted.manager.axes, extracted.extractor
    assert axes is not None
    prompts = {
        kind: [{"system": None, "user": each.prompt} for each in read_safety(extracted.workspace, kind)]
        for kind in ("safe", "unsafe")
    }
    safe, unsafe = extractor.extract_batch(prompts["safe"]), extractor.extract_batch(prompts["unsafe"])
    for layer in extractor.target_layers:
        assert (safe[layer] - unsafe[layer]) @ axes.axis("safety", layer) > 0


def test_a_floor_is_a_percentile_of_ordinary_projections(extracted: PersonaStudio) -> None:
    axes = extracted.manager.axes
    assert axes is not None
    assert axes.metadata["counts"]["floor"] == 20  # four answers to each of five rounds of questions
    for name in ("assistant", "safety"):
        for row, layer in enumerate(axes.layers):
            expected = torch.quantile(axes.projections[name][row], 0.25).item()
            assert axes.floor(name, layer, 25) == pytest.approx(expected)
            assert axes.floor(name, layer, 5) <= axes.floor(name, layer, 25) <= axes.floor(name, layer, 95)


def test_capping_has_a_floor_at_every_capping_layer(extracted: PersonaStudio) -> None:
    axes, extractor = extracted.manager.axes, extracted.extractor
    assert axes is not None
    layers = resolve_layers(extractor.settings, extractor.model.n_layers).capping
    caps = capping(axes, "assistant", layers, 25)
    assert list(caps) == layers
    for layer, cap in caps.items():
        assert cap.axis.norm().item() == pytest.approx(1, abs=1e-4)
        assert cap.floor == axes.floor("assistant", layer, 25)


def test_the_default_capping_axis_is_measured(extracted: PersonaStudio) -> None:
    axes = extracted.manager.axes
    assert axes is not None
    table = axes.metadata["capping"]
    assert set(table) == {"assistant", "safety"}
    best = max(table, key=lambda name: table[name]["unsafe"])
    assert table[axes.default_capping_axis]["unsafe"] >= table[best]["unsafe"] - 0.02


def test_without_archetypes_there_is_no_assistant_axis(make_studio: MakeStudio) -> None:
    studio = make_studio()
    axes, personas = studio.extract_axes([])
    assert axes.assistant is None and personas == []
    assert axes.default_capping_axis == "safety"
    assert set(axes.projections) == {"safety"}


def test_the_safety_axis_needs_both_kinds_of_prompts(make_studio: MakeStudio) -> None:
    studio = make_studio()
    with pytest.raises(DatasetError, match="safe and unsafe"):
        extract_axes(studio.extractor, read_safety(studio.workspace, "safe"), [], {})


def test_the_same_seed_gives_the_same_axes(make_studio: MakeStudio, extracted: PersonaStudio) -> None:
    axes, _ = make_studio({"extraction.batch_size": 5, "calibration.enabled": False}).extract_axes()
    reference = extracted.manager.axes
    assert reference is not None
    for recipe, axis in axes.safety.items():
        assert torch.cosine_similarity(axis, reference.safety[recipe], dim=-1).min() > 0.999
