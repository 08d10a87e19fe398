"""Making personas from start to end, and what is left behind when that goes wrong."""

from __future__ import annotations

import json
from copy import deepcopy
from pathlib import Path

import pytest
import torch

from persona_tui.core.config import Settings
from persona_tui.core.errors import (
    DatasetError,
    JobCancelled,
    PersonaTuiError,
    WorkspaceError,
)
from persona_tui.core.workspace import Workspace
from persona_tui.datasets.generator import DatasetGenerator
from persona_tui.datasets.records import catalogue_path, read_archetype
from persona_tui.extraction import ActivationExtractor, PersonaStudio
from persona_tui.model import ModelWrapper
from persona_tui.vectors.manager import PersonaManager
from tests.extraction.conftest import ARCHETYPES, MakeStudio

UNCALIBRATED = {"calibration.enabled": False}


@pytest.fixture
def studio(make_studio: MakeStudio, extracted: PersonaStudio) -> PersonaStudio:
    """A studio with axes but no personas."""
    studio = make_studio(UNCALIBRATED)
    assert extracted.manager.axes is not None
    studio.manager.save_axes(extracted.manager.axes)
    studio.extractor.axes = studio.manager.axes
    return studio


def files(folder: Path) -> set[Path]:
    return {path.relative_to(folder) for path in folder.rglob("*") if path.is_file()}


def test_extracting_axes_makes_the_archetypes_personas(extracted: PersonaStudio) -> None:
    assert extracted.manager.list_available() == sorted(ARCHETYPES)
    assert all(extracted.manager.get(name).calibration is not None for name in ARCHETYPES)


def test_an_archetype_becomes_a_persona_of_another_name(studio: PersonaStudio) -> None:
    persona = studio.create_from_archetype("wise", "sage")
    assert persona.calibration is None and persona.metadata["source"] == "archetype"
    stored = studio.manager.get("wise")
    assert stored.metadata["model_fingerprint"] == studio.extractor.model.fingerprint
    assert stored.metadata["prompts"] == [p.system_prompt for p in read_archetype(studio.workspace, "sage")]


def test_the_same_archetype_gives_the_same_vectors(studio: PersonaStudio, extracted: PersonaStudio) -> None:
    raw = studio.create_from_archetype("wise", "sage").raw
    for recipe, vectors in extracted.manager.get("sage").raw.items():
        assert (raw[recipe] - vectors).abs().max() < 1e-3


@pytest.mark.slow
def test_a_description_becomes_an_archetype_and_a_persona(studio: PersonaStudio) -> None:
    generator = DatasetGenerator(studio.extractor.model)
    persona = studio.create_from_description("wizard", "A grumpy but secretly kind old wizard", generator)
    prompts = [prompt.system_prompt for prompt in read_archetype(studio.workspace, "wizard")]
    assert persona.metadata["prompts"] == prompts and len(prompts) == 5
    assert persona.metadata["description"] == "A grumpy but secretly kind old wizard"
    assert persona.metadata["source"] == "generated"
    assert set(persona.metadata["prompt_sources"]) <= {"model", "fallback"}
    assert studio.hand_written_archetypes() == sorted(ARCHETYPES)


@pytest.mark.slow
def test_the_managers_own_method_works_with_extractor_and_generator(studio: PersonaStudio) -> None:
    generator = DatasetGenerator(studio.extractor.model)
    assert studio.manager.create_from_description("A shy scientist", "shy", studio.extractor, generator)
    assert studio.manager.list_loaded() == ["shy"]


def test_a_taken_name_is_refused_before_the_work(studio: PersonaStudio) -> None:
    studio.create_from_archetype("wise", "sage")
    with pytest.raises(PersonaTuiError, match='a persona "wise" already'):
        studio.create_from_archetype("wise", "trickster")


def test_a_description_never_replaces_an_archetype_that_people_wrote(studio: PersonaStudio) -> None:
    before = read_archetype(studio.workspace, "sage")
    with pytest.raises(PersonaTuiError, match="written by hand"):
        studio.create_from_description("sage", "A sage", DatasetGenerator(studio.extractor.model))
    assert read_archetype(studio.workspace, "sage") == before


def test_unusable_names_and_unknown_archetypes_are_errors(studio: PersonaStudio) -> None:
    with pytest.raises(WorkspaceError):
        studio.create_from_archetype("../wise", "sage")
    with pytest.raises(DatasetError, match='Did you mean "sage"'):
        studio.create_from_archetype("wise", "sagge")


def test_a_first_persona_needs_a_baseline_and_no_axes(
    make_studio: MakeStudio, extracted: PersonaStudio
) -> None:
    studio = make_studio(UNCALIBRATED)
    studio.create_from_archetype("wise", "sage")
    assert studio.manager.axes is None
    assert studio.manager.get("wise").metadata["orthogonalised"] is False
    again = make_studio(UNCALIBRATED)  # the baseline is on the disk, and serves the next persona
    fool = again.create_from_archetype("fool", "trickster")
    assert again.extractor.tokens == fool.metadata["counts"]["passed"]


def test_axes_complete_what_was_made_before_them(make_studio: MakeStudio, extracted: PersonaStudio) -> None:
    studio = make_studio(UNCALIBRATED)
    studio.create_from_archetype("wise", "sage")
    axes, _ = studio.extract_axes()
    for recipe, safe in studio.manager.get("wise").safe.items():
        assert torch.equal(safe, studio.manager.get("sage").safe[recipe])
    assert "orthogonalised" not in studio.manager.get("wise").metadata
    assert extracted.manager.axes is not None
    for recipe, mean in extracted.manager.axes.baseline.items():
        assert torch.equal(axes.baseline[recipe], mean), "the baseline of the first persona became the axes'"


def test_another_seed_needs_another_baseline(make_studio: MakeStudio) -> None:
    studio = make_studio(UNCALIBRATED)
    studio.create_from_archetype("wise", "sage")
    other = make_studio({**UNCALIBRATED, "extraction.seed": 5})
    assert not other.extractor.has_baseline
    assert make_studio({**UNCALIBRATED, "extraction.num_samples_per_prompt": 2}).extractor.has_baseline
    assert not make_studio({**UNCALIBRATED, "extraction.num_samples_per_prompt": 9}).extractor.has_baseline


def test_a_near_copy_takes_the_persona_and_makes_its_own_baseline(
    make_studio: MakeStudio, workspace: Workspace, model: ModelWrapper, settings: Settings
) -> None:
    """A persona is the difference of two means, which must be of the same weights."""
    make_studio(UNCALIBRATED).create_from_archetype("sage", "sage")
    copy = ModelWrapper(deepcopy(model.model).to(torch.bfloat16), model.tokenizer, model.name)
    said: list[str] = []
    manager = PersonaManager(
        workspace.model_dir(copy.slug), copy.fingerprint, copy.name, copy.sketch, said.append
    )
    studio = PersonaStudio(workspace, manager, ActivationExtractor(copy, settings), said.append)
    assert studio.extractor.baseline is None
    assert "is a near copy" in said[0] and said[0].endswith("The baseline is made again.")
    assert manager.get("sage").metadata["model_sketch"] == model.sketch.record()["model_sketch"]
    assert said[1:] == [said[0].removesuffix(" The baseline is made again.")]


def test_cancelled_while_it_is_calibrated_a_persona_stays_and_the_next_call_goes_on(
    make_studio: MakeStudio,
) -> None:
    def stop_in_the_calibration(done: int, total: int, note: str) -> None:
        if "calibration" in note or "loudness" in note:
            raise JobCancelled("cancelled")

    studio = make_studio(on_progress=stop_in_the_calibration)
    with pytest.raises(JobCancelled):
        studio.create_from_archetype("wise", "sage")
    half = make_studio().manager.get("wise")
    assert half.calibration is None and half.metadata["pending"]
    with pytest.raises(PersonaTuiError, match="already"):
        make_studio().create_from_archetype("wise", "trickster")
    again = make_studio()
    whole = again.create_from_archetype("wise", "sage")
    assert whole.calibration is not None and "pending" not in whole.metadata
    assert torch.equal(whole.raw["response"], half.raw["response"])


def test_few_samples_mean_few_replies_of_every_kind(make_studio: MakeStudio) -> None:
    studio = make_studio({**UNCALIBRATED, "extraction.num_samples_per_prompt": 1})
    axes, _ = studio.extract_axes()
    assert axes.metadata["counts"]["safe"] <= 5 and axes.metadata["counts"]["baseline"] <= 5
    few, more = studio.axes_work(), make_studio(UNCALIBRATED).axes_work()
    assert sum(each.tokens for each in few.values()) < 0.5 * sum(each.tokens for each in more.values())


def test_what_is_announced_is_about_what_passes_through_the_model(make_studio: MakeStudio) -> None:
    studio = make_studio({"calibration.distil": False})  # a random model's system prompts do nothing
    prompts = [each.system_prompt for each in read_archetype(studio.workspace, "sage")]
    planned = studio.persona_work(prompts)
    assert list(planned) == ["baseline", "replies", "calibration"]
    studio.create_from_archetype("wise", "sage")
    assert studio.extractor.tokens == pytest.approx(sum(each.tokens for each in planned.values()), rel=1 / 3)


def test_a_description_is_turned_into_prompts_without_the_model(studio: PersonaStudio) -> None:
    persona = studio.create_from_description("wizard", "A grumpy but secretly kind old wizard")
    prompts = [prompt.system_prompt for prompt in read_archetype(studio.workspace, "wizard")]
    assert persona.metadata["prompts"] == prompts and len(set(prompts)) == 5
    assert all("grumpy but secretly kind old wizard" in prompt for prompt in prompts)
    assert persona.metadata["prompt_sources"] == ["fallback"]


def test_the_catalogue_is_found_where_the_workspace_has_no_such_archetype(studio: PersonaStudio) -> None:
    entry = {"name": "baker", "summary": "A baker.", "tags": ["craft"], "system_prompts": ["You bake."] * 2}
    catalogue_path(studio.workspace).write_text(json.dumps(entry) + "\n", encoding="utf-8")
    persona = studio.create_from_archetype("baker", "baker")
    assert persona.metadata["prompts"] == ["You bake."] * 2
    with pytest.raises(DatasetError, match='Did you mean "baker"'):
        studio.create_from_archetype("new", "bakr")


@pytest.mark.slow
def test_a_found_band_is_remembered(studio: PersonaStudio, make_studio: MakeStudio) -> None:
    with pytest.raises(PersonaTuiError, match="needs 3 personas"):
        studio.find_band()
    for name, archetype in (("one", "sage"), ("two", "trickster"), ("three", "sage")):
        studio.create_from_archetype(name, archetype)
    band, table = make_studio().find_band()
    assert band in table
    fresh = make_studio().manager
    assert {fresh.get(name).steering_layers for name in ("one", "two", "three")} == {band}
    path = studio.manager.vectors_dir / "band.json"
    path.write_text(json.dumps({"layers": [2, 3]}), encoding="utf-8")
    assert make_studio().extractor.band == (2, 3)
    assert make_studio({"extraction.target_layers": [1]}).extractor.band == (1,)
    path.write_text("no JSON", encoding="utf-8")
    assert make_studio().extractor.band == studio.extractor.band


def test_a_cancelled_job_leaves_vectors_as_they_were(make_studio: MakeStudio) -> None:
    calls = 0

    def stop_late() -> None:
        nonlocal calls
        calls += 1
        if calls > 12:
            raise JobCancelled("cancelled")

    studio = make_studio(checkpoint=stop_late)
    before = files(studio.workspace.root)
    with pytest.raises(JobCancelled):
        studio.extract_axes()
    kept = studio.partial.folder.relative_to(studio.workspace.root)
    assert {path for path in files(studio.workspace.root) if path.parent != kept} == before


def test_a_persona_can_be_calibrated_anew(studio: PersonaStudio, make_studio: MakeStudio) -> None:
    studio.create_from_archetype("wise", "sage")
    persona = make_studio().calibrate("wise")
    assert persona.calibration is not None
    assert studio.manager.path_of("wise").is_file()
    assert make_studio().manager.get("wise").calibration == persona.calibration
