"""The axes: what they are the difference of, and where their floors lie."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Literal

import pytest
import torch

from persona_tui.core.config import Settings, override, resolve_layers
from persona_tui.core.errors import DatasetError
from persona_tui.datasets.records import read_refusals, read_safety
from persona_tui.extraction import ActivationExtractor, PersonaStudio, extract_axes
from persona_tui.extraction.axes import measure_capping
from persona_tui.model import ModelWrapper
from persona_tui.project.about import axes_in_words
from persona_tui.vectors.manager import PersonaManager
from persona_tui.vectors.maths import normalize
from tests.extraction.conftest import ARCHETYPES, QUICK, MakeStudio, fill_workspace

KINDS: tuple[Literal["safe", "unsafe"], ...] = ("safe", "unsafe")
REFUSING = {"safe": {"asked": 60, "answered": 55}, "unsafe": {"asked": 60, "refused": 50}}


@pytest.mark.slow
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
    caps = axes.floors("assistant", layers, 25)
    assert list(caps) == layers
    for layer, (axis, floor) in caps.items():
        assert axis.norm().item() == pytest.approx(1, abs=1e-4)
        assert floor == axes.floor("assistant", layer, 25)


def test_the_default_capping_axis_is_measured(extracted: PersonaStudio) -> None:
    axes = extracted.manager.axes
    assert axes is not None
    table = axes.metadata["capping"]
    assert set(table) == {"assistant", "safety"}
    # A random model refuses nothing: its safety axis is weak, and never the default.
    assert axes.weakness("safety") is not None and axes.default_capping_axis == "assistant"
    refusing = replace(axes, metadata={**axes.metadata, "refusals": REFUSING, "capping": table})
    assert refusing.weakness("safety") is None
    again = measure_capping(
        extracted.extractor, refusing, *(read_safety(extracted.workspace, kind) for kind in KINDS)
    )
    best = max(table, key=lambda name: table[name]["unsafe"])
    assert again["capping"] == table
    assert table[again["default_capping_axis"]]["unsafe"] >= table[best]["unsafe"] - 0.02


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


@pytest.mark.slow
def test_the_same_seed_gives_the_same_axes(make_studio: MakeStudio, extracted: PersonaStudio) -> None:
    axes, _ = make_studio({"extraction.batch_size": 5, "calibration.enabled": False}).extract_axes()
    reference = extracted.manager.axes
    assert reference is not None
    for recipe, axis in axes.safety.items():
        assert torch.cosine_similarity(axis, reference.safety[recipe], dim=-1).min() > 0.999


@pytest.mark.slow
def test_only_refusals_and_answers_make_the_safety_axis(tmp_path: Path) -> None:
    """On the tiny model, which refuses: the counts are told, and safe prompts lie on the positive side."""
    workspace, model = fill_workspace(tmp_path), ModelWrapper.load("tiny")
    settings = override(Settings(), QUICK | {"calibration.enabled": False, "extraction.max_new_tokens": 24})
    manager = PersonaManager(tmp_path / "vectors", model.fingerprint, model.name)
    studio = PersonaStudio(workspace, manager, ActivationExtractor(model, settings))
    axes, _ = studio.extract_axes([])
    record = axes.metadata["refusals"]
    assert record["unsafe"]["refused"] >= 4 and record["safe"]["answered"] >= 3
    assert record["unsafe"]["asked"] == record["safe"]["asked"] == 6
    assert axes.weakness("safety") == f"made of {record['unsafe']['refused']} refusals of 6 unsafe prompts"
    said = axes_in_words(axes)
    assert "It is weak" in said and "--samples 12" in said  # six prompts cannot make 30 refusals
    for layer in axes.layers:
        sides, centre = axes.sides("safety", layer), axes.centre("safety", layer)
        assert sides is not None and centre is not None
        assert sides[0] > centre > sides[1]
    trace = axes.scale("safety", axes.layers)
    ordinary = studio.extractor.ordinary_replies().mean["response"]
    reading = sum(float(vector @ ordinary[axes.layers.index(at)]) for at, vector in trace.vectors.items())
    assert reading / len(trace.vectors) > trace.ordinary


def test_given_refusals_make_an_axis_on_any_model(make_studio: MakeStudio) -> None:
    studio = make_studio()
    axes, _ = studio.extract_axes([], refusals="given")
    record = axes.metadata["refusals"]
    assert record["known_by"] == "given texts"
    assert record["unsafe"] == {"asked": 6, "refused": 6}
    assert record["safe"]["answered"] + record["safe"]["refused"] == 6
    texts = read_refusals(studio.workspace)
    asked = read_safety(studio.workspace, "unsafe")
    read = studio.extractor.model.read(
        [
            [{"role": "user", "content": each.prompt}, {"role": "assistant", "content": text}]
            for each, text in zip(asked, texts, strict=False)
        ],
        axes.layers,
    )
    mean = torch.stack([each.response for each in read]).mean(0)
    for layer in axes.layers:
        row, sides = axes.layers.index(layer), axes.sides("safety", layer)
        assert sides is not None
        assert float(mean[row] @ axes.axis("safety", layer)) == pytest.approx(sides[1], abs=1e-2)
