"""Data sets are read line by line, and a mistake names its line."""

from pathlib import Path

import pytest

from persona_tui.core.errors import DatasetError, WorkspaceError
from persona_tui.core.workspace import Workspace
from persona_tui.datasets import records
from persona_tui.datasets.schema import Question, UnsafePrompt

from .conftest import write_lines


def test_every_kind_is_read(workspace: Workspace) -> None:
    assert [item.question for item in records.read_questions(workspace)] == ["What do you value most?"]
    assert records.read_archetype(workspace, "sage")[0].traits == ("wise",)
    assert records.read_safety(workspace, "safe")[0].category == "how_to"
    assert isinstance(records.read_safety(workspace, "unsafe")[0], UnsafePrompt)
    assert records.list_archetypes(workspace) == ["sage"]


GOOD = '{"id": "a", "question": "Who are you?", "category": "identity"}'


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "not valid JSON"),
        ("[" * 100_000, "not valid JSON"),
        ('["a"]', 'a JSON object is needed, not ["a"]'),
        ('{"id": "b", "category": "x"}', '"question" is missing'),
        ('{"id": "b", "question": "  ", "category": "x"}', '"question": a text that is not empty is needed'),
        ('{"id": "b", "question": 3, "category": "x"}', '"question": a text is needed, not 3'),
        (
            '{"id": "b", "question": "Q?", "categorie": "x"}',
            'unknown key "categorie". Did you mean "category"?',
        ),
    ],
)
def test_a_bad_line_is_named(workspace: Workspace, line: str, message: str) -> None:
    path = write_lines(records.questions_path(workspace), GOOD, "", line)
    with pytest.raises(DatasetError) as caught:
        records.read_questions(workspace)
    text = str(caught.value)
    assert text.startswith(f"{path}:3: ")
    assert message in text or "is missing" in text
    assert "\n" not in text


def test_lines_before_a_mistake_are_delivered(workspace: Workspace) -> None:
    path = write_lines(records.questions_path(workspace), GOOD, "{")
    found = records.read_jsonl(path, Question)
    assert next(found).id == "a"
    with pytest.raises(DatasetError):
        next(found)


def test_text_that_is_not_utf8(workspace: Workspace) -> None:
    path = records.questions_path(workspace)
    path.write_bytes(b'{"id": "\xff"}\n')
    with pytest.raises(DatasetError, match="1: not UTF-8"):
        records.read_questions(workspace)


def test_a_byte_order_mark_is_no_mistake(workspace: Workspace) -> None:
    records.questions_path(workspace).write_bytes(b"\xef\xbb\xbf" + GOOD.encode())
    assert len(records.read_questions(workspace)) == 1


def test_missing_and_empty_files(workspace: Workspace) -> None:
    path = records.questions_path(workspace)
    write_lines(path)
    with pytest.raises(DatasetError, match="is empty"):
        records.read_questions(workspace)
    path.unlink()
    with pytest.raises(DatasetError, match="does not exist"):
        records.read_questions(workspace)


def test_an_unknown_archetype_offers_the_nearest(workspace: Workspace) -> None:
    with pytest.raises(DatasetError, match='Did you mean "sage"'):
        records.read_archetype(workspace, "saeg")
    with pytest.raises(DatasetError, match="There are sage"):
        records.read_archetype(workspace, "zzz")


def test_an_archetype_cannot_be_a_path(workspace: Workspace) -> None:
    with pytest.raises(WorkspaceError):
        records.archetype_path(workspace, "../secret")


def test_prompts_of_ones_own_are_text_or_json_lines(tmp_path: Path) -> None:
    text = tmp_path / "prompts.txt"
    text.write_text("You are a cook.\nYou love soup.\n\n  \nYou are a baker.\n", encoding="utf-8")
    assert records.read_prompt_file(text) == ["You are a cook. You love soup.", "You are a baker."]
    lines = tmp_path / "prompts.jsonl"
    write_lines(lines, '{"id": "a", "system_prompt": "You are a cook."}')
    assert records.read_prompt_file(lines) == ["You are a cook."]
    for marks in (("- ", "- "), ("1. ", "2. ")):
        text.write_text(f"{marks[0]}You are a cook\n{marks[1]}You love soup\n", encoding="utf-8")
        assert records.read_prompt_file(text) == ["You are a cook", "You love soup"]
    text.write_text(" \n", encoding="utf-8")
    with pytest.raises(DatasetError, match="is empty"):
        records.read_prompt_file(text)
    with pytest.raises(DatasetError, match="No such file"):
        records.read_prompt_file(tmp_path / "nowhere.txt")


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("list.json", '["You are a cook.", "You are a baker."]'),
        ("object.json", '{"prompts": ["You are a cook.", "You are a baker."]}'),
        ("ids.jsonl", '{"id": 1, "prompt": "You are a cook."},\n{"character": "You are a baker."}\n'),
        ("table.csv", 'prompt\n"You are a cook."\nYou are a baker.\n'),
        ("lines.txt", "You are a cook.\nYou are a baker.\n"),
    ],
)
def test_prompts_in_the_forms_that_people_have(tmp_path: Path, name: str, text: str) -> None:
    path = tmp_path / name
    path.write_text(text, encoding="utf-8")
    assert records.read_prompt_file(path) == ["You are a cook.", "You are a baker."]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("prompts.yaml", "- You are a cook.\n"),
        ("prompts.json", '[{"name": "a", "age": "b"}]'),
        ("prompts.jsonl", '{"prompt": "You are \\ud83d a cook."}'),
        ("prompts.csv", "name,age\na,b\n"),
    ],
)
def test_what_is_no_prompt_never_becomes_one(tmp_path: Path, name: str, text: str) -> None:
    path = tmp_path / name
    path.write_text(text, encoding="utf-8")
    with pytest.raises(DatasetError, match=name):
        records.read_prompt_file(path)


def test_queries_with_other_labels_and_without_ids(tmp_path: Path) -> None:
    path = tmp_path / "mine.jsonl"
    write_lines(path, '{"id": 7, "query": "a", "label": 0}', '{"prompt": "b", "label": "unsafe"}')
    found = records.read_queries(path)
    assert [(each.id, each.query, each.label) for each in found] == [
        ("7", "a", "safe"),
        ("2", "b", "dangerous"),
    ]
    table = tmp_path / "mine.csv"
    table.write_text("query,label,category\na,0,\nb,1,fraud\n")
    assert [(each.label, each.category) for each in records.read_queries(table)] == [
        ("safe", None),
        ("dangerous", "fraud"),
    ]
