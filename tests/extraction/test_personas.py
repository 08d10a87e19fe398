"""Making personas from start to end, and what is left behind when that goes wrong."""

from __future__ import annotations

from pathlib import Path

import pytest

from persona_tui.core.errors import (
    DatasetError,
    JobCancelled,
    PersonaTuiError,
    VectorFileError,
    WorkspaceError,
)
from persona_tui.datasets.generator import DatasetGenerator
from persona_tui.datasets.records import read_archetype
from persona_tui.extraction import PersonaStudio
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


def test_a_description_becomes_an_archetype_and_a_persona(studio: PersonaStudio) -> None:
    generator = DatasetGenerator(studio.extractor.model)
    persona = studio.create_from_description("wizard", "A grumpy but secretly kind old wizard", generator)
    prompts = [prompt.system_prompt for prompt in read_archetype(studio.workspace, "wizard")]
    assert persona.metadata["prompts"] == prompts and len(prompts) == 5
    assert persona.metadata["description"] == "A grumpy but secretly kind old wizard"
    assert persona.metadata["source"] == "generated"
    assert set(persona.metadata["prompt_sources"]) <= {"model", "fallback"}
    assert studio.hand_written_archetypes() == sorted(ARCHETYPES)


def test_the_managers_own_method_works_with_extractor_and_generator(studio: PersonaStudio) -> None:
    generator = DatasetGenerator(studio.extractor.model)
    assert studio.manager.create_from_description("A shy scientist", "shy", studio.extractor, generator)
    assert studio.manager.list_loaded() == ["shy"]


def test_a_taken_name_is_refused_before_the_work(studio: PersonaStudio) -> None:
    studio.create_from_archetype("wise", "sage")
    with pytest.raises(PersonaTuiError, match='a persona "wise" already'):
        studio.create_from_archetype("wise", "trickster")
    assert studio.create_from_archetype("wise", "trickster", replace_old=True).name == "wise"


def test_a_description_never_replaces_an_archetype_that_people_wrote(studio: PersonaStudio) -> None:
    before = read_archetype(studio.workspace, "sage")
    with pytest.raises(PersonaTuiError, match='an archetype "sage" already'):
        studio.create_from_description("sage", "A sage", DatasetGenerator(studio.extractor.model))
    assert read_archetype(studio.workspace, "sage") == before


def test_unusable_names_and_unknown_archetypes_are_errors(studio: PersonaStudio) -> None:
    with pytest.raises(WorkspaceError):
        studio.create_from_archetype("../wise", "sage")
    with pytest.raises(DatasetError, match='Did you mean "sage"'):
        studio.create_from_archetype("wise", "sagge")


def test_axes_come_first(make_studio: MakeStudio) -> None:
    with pytest.raises(VectorFileError, match="extract-axes comes first"):
        make_studio().create_from_archetype("wise", "sage")


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
