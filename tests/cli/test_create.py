"""`create` and `calibrate`."""

import json
from pathlib import Path

import pytest

from .conftest import Cli


@pytest.mark.slow
def test_from_a_description(cli: Cli, workspace: Path) -> None:
    result = cli("create", "grump", "--description", "A grumpy old wizard", "--no-calibrate")
    assert result.status == 0, result.err
    assert "Created grump." in result.out and "until you run persona-tui calibrate grump." in result.out
    assert "was used instead" not in result.out, "nothing was asked of the model"
    archetype = workspace / "datasets" / "personas" / "archetypes" / "grump.jsonl"
    records = [json.loads(line) for line in archetype.read_text().splitlines()]
    assert len(records) == 5
    assert {record["source"] for record in records} == {"fallback"}
    details = cli("info", "grump", "--json").json
    assert details["description"] == "A grumpy old wizard"
    assert details["calibration"] is None
    assert details["loaded"]
    assert cli("dataset", "validate").status == 0


def test_from_an_archetype(cli: Cli) -> None:
    result = cli("create", "jester", "--from-archetype", "fool", "--samples", "2", "--seed", "3")
    assert result.status == 0, result.err
    details = cli("info", "jester", "--json").json
    assert details["source"] == "archetype"
    assert details["extraction"]["num_samples_per_prompt"] == 2
    assert details["extraction"]["seed"] == 3
    assert details["calibration"]["gain"] > 0


def test_from_prompts_of_ones_own(cli: Cli, workspace: Path, tmp_path: Path) -> None:
    prompts = tmp_path / "cook.txt"
    prompts.write_text("You are a cook.\n\nYou are a baker who loves soup.\n", encoding="utf-8")
    result = cli("create", "cook", "--prompts", str(prompts), "--samples", "2", "--no-calibrate")
    assert result.status == 0, result.err
    details = cli("info", "cook", "--json").json
    assert details["source"] == "prompts"
    assert details["prompts"] == ["You are a cook.", "You are a baker who loves soup."]
    assert not (workspace / "datasets" / "personas" / "archetypes" / "cook.jsonl").exists()


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["sage", "-a", "sage"], 'a persona "sage" already'),
        (["new", "-a", "sgae"], 'Did you mean "sage"'),
        (["../new", "-a", "sage"], "cannot be a name"),
        (["new", "-d", "  "], "at least one word"),
        (["new", "-p", "nowhere.txt"], "nowhere.txt cannot be read"),
        (["new", "-a", "sage", "--samples", "0"], "num_samples_per_prompt must be"),
        (["new", "-a", "sage", "--temperature", "900"], "temperature must be"),
    ],
)
def test_what_cannot_be_made(cli: Cli, workspace: Path, args: list[str], message: str) -> None:
    before = sorted(workspace.rglob("*"))
    result = cli("create", *args)
    assert (result.status, result.out) == (1, "")
    assert message in result.err
    assert sorted(workspace.rglob("*")) == before


def test_a_persona_has_one_source(cli: Cli) -> None:
    result = cli("create", "new", "-a", "sage", "-d", "A wise man")
    assert result.status == 2 and "--from-archetype and --description cannot be combined" in result.err
    result = cli("create", "new")
    assert result.status == 2 and "One of --from-archetype, --description, --prompts" in result.err


def test_an_archetype_that_people_wrote_is_not_overwritten(cli: Cli, workspace: Path) -> None:
    assert cli("delete", "sage", "--yes").status == 0
    prompts = workspace / "datasets" / "personas" / "archetypes" / "sage.jsonl"
    before = prompts.read_text()
    result = cli("create", "sage", "--description", "A wise man")
    assert result.status == 1 and "written by hand" in result.err
    assert prompts.read_text() == before


@pytest.mark.slow
@pytest.mark.parametrize("writing", [[], ["--write-prompts"]])
def test_an_archetype_that_people_edited_is_not_overwritten(
    cli: Cli, workspace: Path, writing: list[str]
) -> None:
    create = ("create", "grump", "-d", "A grumpy old wizard", "--no-calibrate", *writing)
    assert cli(*create).status == 0
    prompts = workspace / "datasets" / "personas" / "archetypes" / "grump.jsonl"
    prompts.write_text(prompts.read_text().replace("grumpy", "cheerful"))
    before = prompts.read_text()
    assert cli("delete", "grump", "--yes").status == 0
    result = cli(*create)
    assert result.status == 1 and "--from-archetype grump" in result.err
    assert prompts.read_text() == before
    assert cli("create", "grump", "--from-archetype", "grump", "--no-calibrate").status == 0


@pytest.mark.slow
def test_the_model_writes_prompts_on_request(cli: Cli) -> None:
    result = cli("create", "grump", "-d", "A grumpy old wizard", "--write-prompts", "--no-calibrate")
    assert result.status == 0, result.err
    assert "the description itself was used instead" in result.out
    result = cli("create", "jester", "-a", "fool", "--write-prompts")
    assert result.status == 2 and "--description" in result.err


def test_a_new_model_needs_no_axes_for_its_first_persona(
    call: Cli, workspace: Path, tiny_model: Path
) -> None:
    for path in workspace.glob("vectors/*/axes.safetensors"):
        path.unlink()
    arguments = ("--workspace", workspace, "--model", tiny_model)
    result = call(*arguments, "create", "new", "-a", "fool", "--no-calibrate")
    assert result.status == 0, result.err
    assert call(*arguments, "info", "new", "--json").json["orthogonalised"] is False
    listed = {line.split()[0]: line.split() for line in call(*arguments, "list").out.splitlines()}
    assert "no" in listed["new"][1:] and "to" in listed["sage"][1:]


def test_several_archetypes_at_once_keep_their_names(cli: Cli, workspace: Path) -> None:
    catalogue = workspace / "datasets" / "personas" / "catalogue.jsonl"
    entry = {"name": "baker", "summary": "Bakes.", "tags": ["craft"], "system_prompts": ["You bake."] * 2}
    catalogue.write_text(json.dumps(entry) + "\n", encoding="utf-8")
    assert cli("list", "--catalogue").out.splitlines()[-1].split() == ["baker", "Bakes.", "craft"]
    assert cli("delete", "fool", "--yes").status == 0
    result = cli("create", "-a", "fool,baker", "--samples", "2", "--no-calibrate")
    assert result.status == 0, result.err
    assert "Created fool." in result.out and "Created baker." in result.out
    assert cli("info", "baker", "--json").json["calibrated"] is False
    assert "persona-tui calibrate baker" in cli("info", "baker").out
    result = cli("create", "name", "-a", "fool,baker")
    assert result.status == 2 and "leave NAME out" in result.err


def test_the_band_is_searched_with_three_personas_or_more(cli: Cli) -> None:
    result = cli("calibrate")
    assert result.status == 2 and "--band" in result.err
    have = len(cli("list", "--json").json)
    for number in range(max(0, 3 - have)):
        made = cli("create", f"more{number}", "-a", "fool", "--samples", "2", "--no-calibrate")
        assert made.status == 0, made.err
    found = cli("calibrate", "--band", "--json")
    assert found.status == 0, found.err
    assert found.json["band"] in [each["layers"] for each in found.json["compared"]]


def test_interactively_from_an_archetype(cli: Cli) -> None:
    result = cli("create", "-i", "--no-calibrate", stdin="no name\nsage\njester\narchetype\nfool\n")
    assert result.status == 0, result.err
    assert "Created jester." in result.out
    assert "cannot be a name" in result.err and 'A persona "sage" already' in result.err
    assert cli("info", "jester", "--json").json["source"] == "archetype"


def test_interactively_from_a_description(cli: Cli) -> None:
    result = cli("create", "wizard", "-i", "--no-calibrate", stdin="\nA grumpy wizard\n")
    assert result.status == 0, result.err
    assert cli("info", "wizard", "--json").json["description"] == "A grumpy wizard"


def test_interactively_the_prompts_are_shown_and_edited(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    editor = tmp_path / "editor"
    editor.write_text('#!/bin/sh\nprintf "You are Grog.\\n\\nSpeak like\\nGrog.\\n" > "$1"\n')
    editor.chmod(0o755)
    monkeypatch.setenv("EDITOR", str(editor))
    monkeypatch.delenv("VISUAL", raising=False)
    result = cli("create", "grog", "-i", "--no-calibrate", stdin="\nA grumpy troll\ny\n")
    assert result.status == 0, result.err
    assert "grumpy troll" in result.err and "  1. " in result.err
    known = cli("info", "grog", "--json").json
    assert known["prompts"] == ["You are Grog.", "Speak like Grog."]
    assert known["description"] == "A grumpy troll"


def test_an_interview_that_breaks_off(cli: Cli) -> None:
    result = cli("create", "-i", stdin="wizard\n")
    assert result.status == 1
    assert cli("list", "--json").json == cli("list", "--json").json
    assert "wizard" not in cli("list").out


def test_calibrate(cli: Cli) -> None:
    result = cli("calibrate", "sage", "--json")
    assert result.status == 0, result.err
    assert result.json["name"] == "sage"
    assert result.json["default_strength"] == 0.3
    assert any(point["chosen"] for point in result.json["curve"])
    text = cli("calibrate", "sage").out
    assert text.splitlines()[0].split() == [
        "recipe",
        "layers",
        "coefficient",
        "expression",
        "fluency",
        "drop",
    ]
    assert "gain" in text


def test_what_stands_for_a_trait_is_no_name_of_a_persona(cli: Cli, tmp_path: Path) -> None:
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text('{"system_prompt": "You are a wizard."}\n', encoding="utf-8")
    result = cli("create", "trait:x", "--prompts", prompts)
    assert result.status == 1 and "Error: 'trait:x' cannot be a name" in result.err
