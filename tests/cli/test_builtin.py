"""What a user does first: the tiny model, and the vectors that come with it."""

import json
from pathlib import Path

import pytest

from persona_tui.datasets.schema import ArchetypePrompt

from .conftest import REPOSITORY, Cli, finish, spawn

ARCHETYPES = ["creator", "explorer", "guardian", "sage", "trickster"]


@pytest.fixture
def first_use(call: Cli, tmp_path: Path) -> Cli:
    """A command line in a workspace that is made on first use."""
    (tmp_path / "new").mkdir()
    return lambda *args, **options: call("--workspace", tmp_path / "new", *args, **options)


@pytest.mark.slow
def test_a_question_through_a_pipe() -> None:
    result = finish(spawn("--workspace", REPOSITORY, "--model", "tiny", "chat"), "What is bread?\n")
    assert result.status == 0, result.err
    assert len(result.out.split()) > 3
    assert result.err == ""


@pytest.mark.slow
def test_the_likeliest_answer_is_to_the_point(first_use: Cli) -> None:
    assert "bread" in first_use("generate", "What is bread?", "--temperature", "0").out.casefold()


def test_the_archetypes_are_there_and_clear(first_use: Cli) -> None:
    entries = first_use("list", "--json").json
    assert [entry["name"] for entry in entries] == ARCHETYPES
    assert all(entry["calibrated"] and not entry["weak"] for entry in entries)


@pytest.mark.slow
def test_everything_is_in_order(first_use: Cli) -> None:
    result = first_use("doctor")
    assert result.status == 0, result.out


@pytest.mark.slow
def test_init_has_nothing_to_do(first_use: Cli) -> None:
    result = first_use("init")
    assert result.status == 0, result.err
    assert "there already" in result.out and "Extracted" not in result.out


@pytest.mark.slow
@pytest.mark.parametrize("name", ARCHETYPES)
def test_every_archetype_changes_the_answer(first_use: Cli, name: str) -> None:
    def answer(*options: str) -> str:
        made = first_use("generate", "How do I bake bread?", "--seed", "1", "--json", *options)
        return str(made.json["response"])

    assert answer("--persona", name) != answer()


@pytest.mark.slow
def test_a_described_character(first_use: Cli, tmp_path: Path) -> None:
    made = first_use(
        "create",
        "wizard",
        "--description",
        "A grumpy but secretly kind old wizard",
        "--samples=2",
        "--max-new-tokens=16",
        "--no-calibrate",
    )
    assert made.status == 0, made.err
    prompts = tmp_path / "new" / "datasets" / "personas" / "archetypes" / "wizard.jsonl"
    records = [ArchetypePrompt.model_validate_json(line) for line in prompts.read_text().splitlines()]
    assert len(records) == 5
    assert {record.source for record in records} == {"fallback"}, "a template writes them unless asked not to"
    details = json.loads(first_use("info", "wizard", "--json").out)
    assert details["prompt_sources"] == ["fallback"]
    assert first_use("generate", "Who are you?", "--persona", "wizard", "--seed", "1").out.strip()
