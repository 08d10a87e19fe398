"""`dataset validate`: what it finds, and that the shipped data sets have none of it."""

import pytest

from persona_tui.core.workspace import Workspace, packaged_root
from persona_tui.datasets import records
from persona_tui.datasets.schema import Question
from persona_tui.datasets.validate import (
    Distinct,
    FileReport,
    similarity,
    tokens,
    validate_datasets,
    validate_file,
)

from .conftest import write_lines


def test_the_shipped_data_sets_are_valid() -> None:
    reports = {report.path.stem: report for report in validate_datasets(Workspace(packaged_root()))}
    assert [problem for report in reports.values() for problem in report.problems] == []
    assert reports["safe_prompts"].count == reports["unsafe_prompts"].count == 200
    assert reports["extraction_questions"].count == 100
    assert len(reports["unsafe_prompts"].categories) >= 4
    for archetype in ("sage", "trickster", "guardian", "explorer", "creator"):
        assert reports[archetype].count == 5


def question(number: int, text: str, category: str = "values") -> dict[str, str]:
    return {"id": f"q_{number}", "question": text, "category": category}


def check(workspace: Workspace, *lines: dict[str, str] | str) -> FileReport:
    return validate_file(write_lines(records.questions_path(workspace), *lines), Question)


@pytest.mark.parametrize(
    ("second", "problem"),
    [
        (question(1, "Where do you live?"), 'line 3: the id "q_1" is already on line 1'),
        (question(2, "who, then, ARE you today"), "line 3: nearly the same as line 1"),
        (question(2, "Where do you live?", "food"), 'line 3: unknown category "food"'),
        ("nonsense", "line 3: not valid JSON"),
    ],
)
def test_problems(workspace: Workspace, second: dict[str, str] | str, problem: str) -> None:
    report = check(workspace, question(1, "Who are you then, today?"), "", second)
    assert not report.ok
    assert report.problems[0].startswith(problem)


def test_every_problem_is_listed(workspace: Workspace) -> None:
    report = check(workspace, "{", question(1, "Who are you?"), "[]", question(1, "Who are you?"))
    assert len(report.problems) == 4
    assert report.count == 2


def test_missing_and_empty_files_are_problems(workspace: Workspace) -> None:
    assert check(workspace).problems == ["no records"]
    records.questions_path(workspace).unlink()
    problems = {report.path.name: report.problems for report in validate_datasets(workspace)}
    assert "does not exist" in problems["extraction_questions.jsonl"][0]
    assert problems["sage.jsonl"] == []


def test_similarity() -> None:
    assert similarity(tokens("What's bread?"), tokens("what's BREAD")) == 1
    assert similarity(tokens("one two"), tokens("three four")) == 0
    assert similarity(tokens("a b c"), tokens("b c d")) == 0.5
    assert similarity(tokens("?"), tokens("")) == 1
    assert tokens("wie heißt du, 你好?") == {"wie", "heisst", "du", "你好"}


def test_distinct_keeps_the_first_of_each() -> None:
    distinct = Distinct(["What is bread?"])
    assert not distinct.add_new("what is bread")
    assert distinct.add_new("Who was Ada?")
    assert distinct.find("Who was Ada") == 1
