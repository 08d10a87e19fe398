"""`dataset validate` and `dataset generate`."""

import json
from pathlib import Path
from typing import Any

import pytest

from persona_tui.core.jobs import JobContext
from persona_tui.datasets.generator import DatasetGenerator
from persona_tui.project.project import Project

from .conftest import Cli

WORDS = "tea river music honour winter books travel anger family money silence games".split()  # noqa: SIM905


class Writer:
    """Stands for a model that writes valid JSON, always a new question or prompt."""

    name = "writer"
    identity = ("writer",)

    def __init__(self) -> None:
        self.count = 0

    def generate(self, requests: list[Any], sampling: object, on_step: Any = None) -> list[Any]:
        on_step()
        return [self._answer() for _ in requests]

    def _answer(self) -> Any:
        word = WORDS[self.count % len(WORDS)]
        self.count += 1
        items = [
            {"question": f"Why {word}?", "category": "values"},
            {"prompt": f"Explain {word}.", "category": "advice"},
            {"prompt": f"Explain {word}.", "category": "manipulation"},
        ]
        text = json.dumps(items)
        return type("Answer", (), {"text": text})()


@pytest.fixture
def writer(monkeypatch: pytest.MonkeyPatch) -> Writer:
    writer = Writer()

    def generator(self: Project, context: JobContext, seed: int = 0) -> DatasetGenerator:
        return DatasetGenerator(writer, context.progress, context.checkpoint, seed)  # type: ignore[arg-type]

    monkeypatch.setattr(Project, "generator", generator)
    return writer


def lines(path: Path) -> list[Any]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.slow
def test_validate(cli: Cli, workspace: Path) -> None:
    result = cli("dataset", "validate")
    assert result.status == 0
    assert all(line.startswith("ok") for line in result.out.splitlines())
    reports = cli("dataset", "validate", "--json").json
    assert [report["records"] for report in reports][:2] == [2, 2] and all(
        not each["problems"] for each in reports
    )
    with (workspace / "datasets" / "personas" / "archetypes" / "fool.jsonl").open("a") as file:
        file.write("{\n")
    broken = cli("dataset", "validate")
    assert broken.status == 1
    assert "fool.jsonl: line 3: not valid JSON" in broken.out
    machine = cli("dataset", "validate", "--json")
    assert machine.status == 1 and [each["file"] for each in machine.json if each["problems"]] == [
        str(workspace / "datasets" / "personas" / "archetypes" / "fool.jsonl")
    ]


@pytest.mark.slow
def test_generating_adds_to_what_there_is(cli: Cli, workspace: Path, writer: Writer) -> None:
    path = workspace / "datasets" / "personas" / "extraction_questions.jsonl"
    before = lines(path)
    result = cli("dataset", "generate", "questions", "-n", "3")
    assert result.status == 0, result.err
    assert lines(path)[:5] == before
    new = lines(path)[5:]
    assert [(record["source"], record["writer"]) for record in new] == [("model", "writer")] * 3
    assert cli("dataset", "validate").status == 0
    cli("dataset", "generate", "questions", "-n", "3")
    assert len({record["id"] for record in lines(path)}) == 11
    assert cli("dataset", "validate").status == 0


def test_generating_anew_and_elsewhere(cli: Cli, tmp_path: Path, workspace: Path, writer: Writer) -> None:
    path = tmp_path / "mine" / "safe.jsonl"
    assert cli("dataset", "generate", "safe", "-n", "2", "-o", path).status == 0
    assert cli("dataset", "generate", "safe", "-n", "2", "-o", path, "--replace").status == 0
    assert [record["id"] for record in lines(path)] == ["safe_001", "safe_002"]
    assert len(lines(workspace / "datasets" / "safety" / "safe_prompts.jsonl")) == 2
    assert cli("dataset", "generate", "unsafe", "-n", "1").status == 0
    assert lines(workspace / "datasets" / "safety" / "unsafe_prompts.jsonl")[-1]["attack_type"] == "direct"


def test_fewer_than_asked_is_said(cli: Cli, writer: Writer) -> None:
    result = cli("dataset", "generate", "questions", "-n", "50")
    assert result.status == 0
    assert f"wrote {len(WORDS)} of 50" in result.err


@pytest.mark.slow
def test_an_interrupt_keeps_what_there_is(cli: Cli, workspace: Path, writer: Writer) -> None:
    answer = writer._answer

    def answer_or_stop() -> Any:
        if writer.count == 6:
            raise KeyboardInterrupt
        return answer()

    writer._answer = answer_or_stop  # type: ignore[method-assign]
    result = cli("dataset", "generate", "questions", "-n", "50")
    assert result.status == 130
    assert len(lines(workspace / "datasets" / "personas" / "extraction_questions.jsonl")) == 5 + 4
    assert cli("dataset", "validate").status == 0


@pytest.mark.slow
def test_a_model_that_cannot(cli: Cli, workspace: Path) -> None:
    before = (workspace / "datasets" / "personas" / "extraction_questions.jsonl").read_text()
    result = cli("dataset", "generate", "questions", "-n", "3")
    assert result.status == 1 and "nothing usable (" in result.err and "answers without a list" in result.err
    assert (workspace / "datasets" / "personas" / "extraction_questions.jsonl").read_text() == before


@pytest.mark.slow
def test_an_archetype_falls_back_on_its_description(cli: Cli, workspace: Path) -> None:
    result = cli("dataset", "generate", "archetype", "wizard", "-d", "A wise wizard", "-n", "2")
    assert result.status == 0 and "The model wrote 0 of 2." in result.err
    assert "2 were put together from the description" in result.err and "Not kept: " in result.err
    records = lines(workspace / "datasets" / "personas" / "archetypes" / "wizard.jsonl")
    assert [record["id"] for record in records] == ["wizard_prompt_001", "wizard_prompt_002"]
    assert {record["source"] for record in records} == {"fallback"}


def test_a_file_with_mistakes_is_not_added_to(cli: Cli, workspace: Path) -> None:
    path = workspace / "datasets" / "personas" / "extraction_questions.jsonl"
    path.write_text("{\n")
    result = cli("dataset", "generate", "questions")
    assert result.status == 1 and ":1: not valid JSON" in result.err
    assert path.read_text() == "{\n"


@pytest.mark.slow
def test_traits_policies_and_files_of_ones_own_are_validated(cli: Cli, workspace: Path) -> None:
    traits = workspace / "datasets" / "traits"
    traits.mkdir(parents=True, exist_ok=True)
    (traits / "mine.jsonl").write_text('{"trait": "mine", "description": "d", "high": "h"}\n', "utf-8")
    result = cli("dataset", "validate")
    assert result.status == 1 and 'mine.jsonl: line 1: "low" is missing' in result.out
    own = workspace / "own.jsonl"
    own.write_text('{"id": "q", "query": "hi", "label": "fine", "kind": "k"}\n', "utf-8")
    result = cli("dataset", "validate", own)
    assert result.status == 1 and 'own.jsonl: line 1: "label"' in result.out
    policy = workspace / "policy.yaml"
    policy.write_text("traits:\n  mine: {max: 1}\n", "utf-8")
    assert cli("dataset", "validate", policy).status == 0
    own.write_text('{"colour": "red"}\n', "utf-8")
    assert "cannot tell" in cli("dataset", "validate", own).err
    assert "does not exist" in cli("dataset", "validate", workspace / "none.jsonl").err
