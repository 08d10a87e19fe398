"""The project: cheap to open, lazy, and careful with what is there."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from persona_tui.core.errors import ConfigError, DatasetError, PersonaTuiError, WorkspaceError
from persona_tui.datasets.templates import fallback_prompts
from persona_tui.project.project import FromArchetype, FromDescription, Project
from persona_tui.vectors.manager import PROMPTS_PER_PERSONA
from tests.vectors.conftest import Make


@pytest.fixture
def project(tmp_path: Path) -> Project:
    (tmp_path / "config.yaml").write_text("model:\n  device: cpu\nsteering:\n  default_strength: 0.4\n")
    return Project.open(tmp_path)


def test_options_override_the_file(tmp_path: Path, project: Project) -> None:
    assert project.settings.model.name == "tiny" and project.slug == "builtin"
    other = Project.open(tmp_path, model="Qwen/Qwen2.5-7B-Instruct", dtype="float16", quantization="4bit")
    assert other.slug == "Qwen--Qwen2.5-7B-Instruct"
    assert other.settings.model.device == "cpu"
    assert (other.settings.model.dtype, other.settings.model.quantization) == ("float16", "4bit")
    with pytest.raises(ConfigError, match=r"model\.device"):
        Project.open(tmp_path, device="toaster")


def test_the_starter_models_original_has_its_vectors_unless_it_has_its_own(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("model: {name: HuggingFaceTB/SmolLM2-135M-Instruct}\n")
    assert Project.open(tmp_path).slug == "starter"
    (tmp_path / "vectors" / "HuggingFaceTB--SmolLM2-135M-Instruct").mkdir(parents=True)
    assert Project.open(tmp_path).slug == "HuggingFaceTB--SmolLM2-135M-Instruct"


def test_a_new_workspace_is_filled(tmp_path: Path) -> None:
    project = Project.open(tmp_path / "new")
    assert project.check_datasets() > 500


def test_the_mix_follows_the_settings(project: Project) -> None:
    assert project.default_mix().strength == 0.4
    assert not project.model_loaded and project.loaded_engine is None


def test_missing_data_sets_are_restored_and_others_left_alone(project: Project) -> None:
    mine = project.workspace.datasets / "personas" / "archetypes" / "mine.jsonl"
    mine.parent.mkdir(parents=True)
    mine.write_text('{"id": "m", "system_prompt": "Be mine."}\n')
    restored = project.restore_datasets()
    assert len([path for path in restored if path.parent.name != "monitors"]) == 4
    assert (project.workspace.datasets / "monitors" / "large.jsonl").is_file()
    assert [path.name for path in mine.parent.iterdir()] == ["mine.jsonl"]
    assert project.restore_datasets() == []
    mine.unlink()
    assert len(project.restore_datasets()) == 5


def test_problems_in_data_sets_are_counted(project: Project) -> None:
    with pytest.raises(DatasetError, match=r"does not exist.* \(2 more"):
        project.check_datasets()


def test_new_names(project: Project) -> None:
    project.restore_datasets()
    project.personas.save(Make().persona("taken"))
    with pytest.raises(PersonaTuiError, match="already"):
        project.check_new_name("taken", FromDescription("A thief"))
    with pytest.raises(WorkspaceError):
        project.check_new_name("a/b", FromDescription("A thief"))
    with pytest.raises(DatasetError, match='Did you mean "sage"'):
        project.check_new_name("new", FromArchetype("sgae"))
    with pytest.raises(PersonaTuiError, match="written by hand"):
        project.check_new_name("sage", FromDescription("A wise man"))
    project.check_new_name("sage", FromArchetype("sage"))


def test_prompts_that_somebody_edited_are_not_replaced(project: Project) -> None:
    project.restore_datasets()
    path = project.workspace.datasets / "personas" / "archetypes" / "elf.jsonl"
    own = [each["system_prompt"] for each in fallback_prompts("An elf", PROMPTS_PER_PERSONA)]
    lines = [{"id": f"e_{at}", "system_prompt": text, "source": "fallback"} for at, text in enumerate(own)]
    path.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    project.check_new_name("elf", FromDescription("An elf"))  # what it would write is there already
    lines[0]["system_prompt"] = "Be an elf."
    path.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    with pytest.raises(PersonaTuiError, match="written by hand"):
        project.check_new_name("elf", FromDescription("An elf"))


def test_a_small_model_keeps_to_one_thread_unless_somebody_says(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        monkeypatch.setenv("OMP_NUM_THREADS", "2")
        assert project.model.n_parameters > 0 and torch.get_num_threads() == 2
        monkeypatch.delenv("OMP_NUM_THREADS")
        assert Project.open(project.workspace.root).model.n_layers == 8
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(before)
