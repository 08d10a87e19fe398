"""The personas of one model: what is there, what is loaded, blends, and making one."""

import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from persona_tui.core.errors import (
    GenerationError,
    JobCancelled,
    PersonaNotFoundError,
    PersonaTuiError,
    VectorFileError,
    WorkspaceError,
)
from persona_tui.core.workspace import packaged_root
from persona_tui.vectors.files import load_tensors
from persona_tui.vectors.manager import PersonaManager
from persona_tui.vectors.maths import blend
from persona_tui.vectors.persona import Calibration, PersonaVector
from tests.vectors.conftest import LAYERS, Make

FINGERPRINT = "f" * 64


@pytest.fixture
def manager(make: Make, tmp_path: Path) -> PersonaManager:
    manager = PersonaManager(tmp_path / "tiny", FINGERPRINT)
    for name in ("sage", "trickster", "critic"):
        manager.save(make.persona(name))
    return manager


def another(manager: PersonaManager, fingerprint: str | None = FINGERPRINT) -> PersonaManager:
    """The manager of the next command."""
    return PersonaManager(manager.vectors_dir, fingerprint)


# --- listing and loading ---


def test_an_empty_folder_has_nothing(tmp_path: Path) -> None:
    manager = PersonaManager(tmp_path / "none")
    assert (manager.list_available(), manager.list_loaded(), manager.axes) == ([], [], None)
    with pytest.raises(PersonaNotFoundError, match="none yet"):
        manager.load("sage")


def test_only_persona_files_are_listed(manager: PersonaManager) -> None:
    for name in ("notes.txt", ".hidden.safetensors", "two words.safetensors", ".sage.safetensors.1a.tmp"):
        (manager.personas_dir / name).write_bytes(b"")
    (manager.personas_dir / "folder.safetensors").mkdir()
    assert manager.list_available() == ["critic", "sage", "trickster"]


def test_what_is_loaded_lasts_until_the_next_run(manager: PersonaManager) -> None:
    assert manager.load("trickster") and manager.load("sage") and manager.load("sage")
    assert another(manager).list_loaded() == ["trickster", "sage"]
    assert another(manager).unload("trickster") is True
    assert manager.list_loaded() == ["sage"]
    assert manager.unload("trickster") is False


def test_the_vector_of_a_persona_that_is_not_loaded_is_none(manager: PersonaManager) -> None:
    assert manager.get_vector("sage") is None
    manager.load("sage")
    vector = another(manager).get_vector("sage")
    assert vector is not None
    torch.testing.assert_close(vector, manager.get("sage").direction())
    raw = manager.get_vector("sage", safe=False)
    assert raw is not None
    assert not torch.equal(raw[2], vector[2])


def test_an_unknown_name_offers_the_nearest(manager: PersonaManager) -> None:
    with pytest.raises(PersonaNotFoundError, match='Did you mean "trickster"'):
        manager.load("trikster")
    with pytest.raises(PersonaNotFoundError, match="critic, sage, trickster"):
        manager.get("zzz")


@pytest.mark.parametrize("content", ["", "{", "[]", '{"loaded": 3}', '{"loaded": [1, null]}', "[" * 99999])
def test_a_damaged_memory_of_what_was_loaded_counts_as_empty(manager: PersonaManager, content: str) -> None:
    (manager.vectors_dir / "loaded.json").write_text(content)
    assert manager.list_loaded() == []
    manager.load("sage")
    assert another(manager).list_loaded() == ["sage"]


def test_where_nothing_can_be_written_a_persona_is_loaded_for_this_run(manager: PersonaManager) -> None:
    (manager.vectors_dir / "loaded.json").mkdir()
    assert manager.load("sage") is True
    assert manager.list_loaded() == ["sage"] and manager.get_vector("sage") is not None
    assert another(manager).list_loaded() == []
    for name in ("sage", "trickster"):  # loaded for this run or not, it is not kept
        with pytest.raises(WorkspaceError, match=r"loaded\.json"):
            manager.keep_loaded(name)
    (manager.vectors_dir / "loaded.json").rmdir()
    manager.keep_loaded("trickster")
    assert another(manager).list_loaded() == ["trickster"] and manager.list_loaded() == ["trickster", "sage"]
    manager.keep_loaded("sage")
    assert another(manager).list_loaded() == ["trickster", "sage"]
    assert manager.unload("sage") is True and manager.unload("sage") is False


def test_one_loaded_for_this_run_is_unloaded_where_nothing_can_be_written(manager: PersonaManager) -> None:
    (manager.vectors_dir / "loaded.json").mkdir()
    assert manager.load("sage") is True and manager.load("sage") is True
    assert manager.unload("sage") is True and manager.unload("sage") is False


def test_a_loaded_persona_whose_file_is_gone_is_not_listed(manager: PersonaManager) -> None:
    manager.load("sage")
    manager.path_of("sage").unlink()
    assert manager.list_loaded() == []
    assert manager.get_vector("sage") is None
    with pytest.raises(PersonaNotFoundError):
        manager.get("sage")


def test_delete_removes_file_and_memory(manager: PersonaManager) -> None:
    manager.load("sage")
    assert manager.delete("sage") is True
    assert manager.delete("sage") is False
    assert manager.list_available() == ["critic", "trickster"]
    assert another(manager).list_loaded() == []


@pytest.mark.parametrize("name", ["../sage", "a/b", "/etc/passwd", "..", "", ".sage", "sage.safetensors"])
def test_paths_are_no_names(manager: PersonaManager, name: str) -> None:
    for call in (manager.get, manager.load, manager.delete, manager.path_of):
        with pytest.raises(WorkspaceError):
            call(name)
    with pytest.raises(WorkspaceError):
        manager.get_composite({name: 1.0})


def test_a_persona_with_a_path_for_a_name_is_not_saved(manager: PersonaManager, make: Make) -> None:
    with pytest.raises(WorkspaceError):
        manager.save(make.persona("../../evil"))


def test_links_out_of_the_folder_are_not_written_through(
    manager: PersonaManager, make: Make, tmp_path: Path
) -> None:
    (tmp_path / "theirs").write_text("theirs")
    (manager.personas_dir / "evil.safetensors").symlink_to(tmp_path / "theirs")
    with pytest.raises(WorkspaceError, match="link out of"):
        manager.save(make.persona("evil"))
    assert (tmp_path / "theirs").read_text() == "theirs"


def test_a_renamed_file_is_a_renamed_persona(manager: PersonaManager) -> None:
    manager.path_of("sage").rename(manager.path_of("elder"))
    assert another(manager).get("elder").name == "elder"


# --- files that are not ours ---


def test_a_persona_of_another_model_is_refused_naming_both(manager: PersonaManager, make: Make) -> None:
    other = PersonaManager(manager.vectors_dir, "a" * 64, "org/other")
    with pytest.raises(VectorFileError) as caught:
        other.load("sage")
    assert "tiny" in str(caught.value)
    assert "org/other" in str(caught.value)
    assert other.list_loaded() == []
    with pytest.raises(VectorFileError, match="org/other"):
        other.save(make.persona("new"))


def test_without_a_model_every_persona_of_the_folder_can_be_loaded(manager: PersonaManager) -> None:
    assert another(manager, None).load("sage")


def test_a_damaged_file_is_refused_and_the_others_work(manager: PersonaManager) -> None:
    path = manager.path_of("sage")
    path.write_bytes(path.read_bytes()[:-9])
    fresh = another(manager)
    with pytest.raises(VectorFileError, match=r"sage\.safetensors"):
        fresh.load("sage")
    assert fresh.list_available() == ["critic", "sage", "trickster"]
    assert fresh.load("critic")


def test_a_save_that_fails_keeps_the_old_file(
    manager: PersonaManager, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = manager.path_of("sage").read_bytes()

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", fail)
        with pytest.raises(WorkspaceError, match="No space left"):
            manager.save(make.persona("sage"))
    assert manager.path_of("sage").read_bytes() == before
    assert len(list(manager.personas_dir.iterdir())) == 3


# --- axes ---


def test_axes_are_read_once_and_checked(manager: PersonaManager, make: Make) -> None:
    axes = make.axes()
    manager.save_axes(axes)
    assert manager.axes is axes
    fresh = another(manager)
    assert fresh.axes is not None
    assert fresh.axes is fresh.axes
    assert fresh.axes.floor("safety", 2, 25) == axes.floor("safety", 2, 25)
    with pytest.raises(VectorFileError, match="made on tiny"):
        _ = another(manager, "a" * 64).axes


# --- blends ---


def test_a_blend_is_the_blend_of_the_directions(manager: PersonaManager) -> None:
    composite = manager.get_composite({"sage": 0.5, "trickster": -0.3})
    sage, trickster = manager.get("sage").direction(), manager.get("trickster").direction()
    assert list(composite) == list(LAYERS)
    for layer in LAYERS:
        torch.testing.assert_close(composite[layer], blend([sage[layer], trickster[layer]], [0.5, -0.3]))


def test_a_blend_of_one_is_that_persona(manager: PersonaManager) -> None:
    torch.testing.assert_close(manager.get_composite({"sage": 0.2}), manager.get("sage").direction())
    raw = manager.get_composite({"sage": 1.0, "critic": 0.0}, safe=False)
    torch.testing.assert_close(raw, manager.get("sage").direction(safe=False))


def test_a_blend_of_nothing_is_empty(manager: PersonaManager) -> None:
    assert manager.get_composite({}) == {}
    assert manager.get_composite({"sage": 0.0}) == {}


def test_personas_with_different_layers_share_all_of_them(manager: PersonaManager, make: Make) -> None:
    calibration = Calibration("response", (4,), 3.0, 0.3, 1.0, 0.1)
    manager.save(make.persona("late").with_calibration(calibration))
    composite = manager.get_composite({"sage": 1.0, "late": 1.0})
    shared = manager.get("sage").steering_layers
    assert list(composite) == sorted({*shared, 4})
    parts = [manager.get(name).direction(layers=list(composite)) for name in ("sage", "late")]
    for layer, vector in composite.items():
        torch.testing.assert_close(vector, blend([part[layer] for part in parts], [1, 1]))


def test_odd_blends_are_errors(manager: PersonaManager) -> None:
    with pytest.raises(PersonaNotFoundError, match='"sage"'):
        manager.get_composite({"sagee": 1.0})
    with pytest.raises(PersonaTuiError, match="must be a number"):
        manager.get_composite({"sage": float("nan")})


# --- making one ---


class Generator:
    def __init__(self, prompts: list[dict[str, Any]]) -> None:
        self.prompts = prompts

    def generate_persona_prompts(self, description: str, n: int = 5) -> list[dict[str, Any]]:
        return [{**prompt, "seen": description} for prompt in self.prompts[:n]]


class Extractor:
    def __init__(self, make: Make, error: Exception | None = None) -> None:
        self.make, self.error = make, error
        self.calls: list[tuple[str, list[dict[str, Any]], str | None, str]] = []

    def extract_persona(
        self, name: str, prompts: list[dict[str, Any]], *, description: str | None = None, source: str = ""
    ) -> PersonaVector:
        self.calls.append((name, prompts, description, source))
        if self.error is not None:
            raise self.error
        return self.make.persona(name)

    def calibrated(self, persona: PersonaVector) -> PersonaVector:
        return replace(persona, metadata={**persona.metadata, "weak_reason": "quiet"})


def test_a_description_becomes_a_loaded_persona(manager: PersonaManager, make: Make) -> None:
    extractor = Extractor(make)
    generator = Generator([{"system_prompt": f"Be gruff {i}."} for i in range(9)])
    assert manager.create_from_description("a gruff wizard", "wizard", extractor, generator) is True
    ((name, prompts, description, source),) = extractor.calls
    assert (name, len(prompts), description, source) == ("wizard", 5, "a gruff wizard", "generated")
    assert prompts[0] == {"system_prompt": "Be gruff 0.", "seen": "a gruff wizard"}
    assert another(manager).list_loaded() == ["wizard"]
    assert another(manager).get("wizard").metadata["weak_reason"] == "quiet"


def test_a_creation_that_fails_or_is_cancelled_leaves_nothing(manager: PersonaManager, make: Make) -> None:
    prompts = [{"system_prompt": "Be gruff."}]
    cancelled = Extractor(make, JobCancelled("Cancelled."))
    with pytest.raises(JobCancelled):
        manager.create_from_description("gruff", "wizard", cancelled, Generator(prompts))
    with pytest.raises(GenerationError, match="wizard"):
        manager.create_from_description("gruff", "wizard", Extractor(make), Generator([]))
    assert manager.list_available() == ["critic", "sage", "trickster"]
    assert manager.list_loaded() == []


def test_a_name_that_is_taken_or_unsafe_is_refused_before_the_work(
    manager: PersonaManager, make: Make
) -> None:
    extractor = Extractor(make)
    generator = Generator([{"system_prompt": "Be gruff."}])
    with pytest.raises(PersonaTuiError, match="already"):
        manager.create_from_description("gruff", "sage", extractor, generator)
    with pytest.raises(WorkspaceError):
        manager.create_from_description("gruff", "../sage", extractor, generator)
    assert extractor.calls == []


def test_metadata_is_read_without_the_vectors(manager: PersonaManager) -> None:
    about = manager.about("sage")
    assert about["name"] == "sage" and "calibration" in about
    path = manager.path_of("sage")
    path.write_bytes(path.read_bytes()[:-100])  # the tensors are cut off, which nobody has looked at
    assert manager.about("sage") == about
    path.write_bytes(path.read_bytes()[:20])
    with pytest.raises(VectorFileError, match="cut off"):
        manager.about("sage")
    with pytest.raises(PersonaNotFoundError):
        manager.about("nobody")


def test_a_monitors_direction_is_steered_with_and_stays_the_monitors(tmp_path: Path) -> None:
    path = tmp_path / "monitors" / "default.safetensors"
    path.parent.mkdir()
    shutil.copy(packaged_root() / "vectors" / "builtin" / "monitors" / path.name, path)
    manager = PersonaManager(tmp_path)
    assert manager.list_monitors() == ["monitor:default"] and manager.list_available() == []
    direction = manager.get("monitor:default")
    tensors, _ = load_tensors(path)
    difference = tensors["stack.content.message.safe"] - tensors["stack.content.message.dangerous"]
    added = direction.direction()
    assert list(added) == list(direction.steering_layers)
    for layer, vector in added.items():
        torch.testing.assert_close(vector / vector.norm(), difference[layer] / difference[layer].norm())
    assert manager.load("monitor:default") and manager.list_loaded() == ["monitor:default"]
    for refused in (lambda: manager.save(direction), lambda: manager.delete("monitor:default")):
        with pytest.raises(VectorFileError, match="direction of a monitor"):
            refused()
    assert path.is_file()
    with pytest.raises(VectorFileError, match="was made on"):
        PersonaManager(tmp_path, "another").get("monitor:default")
