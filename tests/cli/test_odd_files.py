"""Pipes, devices and documents without an end, given to every command that reads a file of the user's own."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from persona_tui.cli.trait.shared import conversations
from persona_tui.core.errors import DatasetError
from tests.core.test_documents import BOMB

from .conftest import Cli

# What is read, with FILE in the place of the file, and the names that the file may have.
COMMANDS = {
    "trait check DATA --policy FILE": (".yaml",),
    "trait check FILE --policy a>1": (".txt", ".jsonl", ".json"),
    "trait curate FILE --rules a>1 -o OUT": (".jsonl",),
    "trait curate DATA --policy FILE -o OUT": (".yaml",),
    "trait score FILE": (".txt", ".jsonl"),
    "trait extract FILE": (".yaml", ".jsonl"),
    "dataset validate FILE": (".yaml", ".jsonl", ".csv"),
    "create x --prompts FILE": (".txt", ".jsonl", ".json"),
    "monitor fit x --file FILE": (".jsonl",),
}
CASES = [(command, suffix) for command, suffixes in COMMANDS.items() for suffix in suffixes]


def _line(command: str, file: Path, folder: Path) -> list[str]:
    data = folder / "data.txt"
    data.write_text("User: Hi\nAssistant: Hello there.\n")
    words = {"FILE": str(file), "DATA": str(data), "OUT": str(folder / "out.jsonl")}
    return [words.get(word, word) for word in command.split()]


def _is_one_line(result: object, file: Path) -> None:
    status, err = getattr(result, "status"), getattr(result, "err")  # noqa: B009
    assert status in (1, 2), err
    lines = [line for line in err.splitlines() if line.startswith("Error: ")]
    assert len(lines) <= 1 and "bug in persona-tui" not in err and "Traceback" not in err


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes with names here")
@pytest.mark.parametrize(("command", "suffix"), CASES)
def test_a_pipe_and_a_device_are_refused(command: str, suffix: str, cli: Cli, tmp_path: Path) -> None:
    pipe, device = tmp_path / f"pipe{suffix}", tmp_path / f"device{suffix}"
    os.mkfifo(pipe)
    device.symlink_to("/dev/zero")
    for file in (pipe, device):
        _is_one_line(cli(*_line(command, file, tmp_path)), file)
    assert not (tmp_path / "out.jsonl").exists()


@pytest.mark.parametrize(("command", "suffix"), CASES)
def test_documents_without_an_end_are_refused(command: str, suffix: str, cli: Cli, tmp_path: Path) -> None:
    for text in (BOMB, "[" * 5000, "[" * 5000 + "]" * 5000, '{"a":' * 3000):
        file = tmp_path / f"deep{suffix}"
        file.write_text(text + "\n")
        if suffix in (".txt", ".csv"):
            continue  # words, and not a document
        _is_one_line(cli(*_line(command, file, tmp_path)), file)


def test_what_is_no_file_is_not_taken_for_a_text(cli: Cli, tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="is a folder: name a file in it"):
        list(conversations(str(tmp_path)))
    os.mkfifo(tmp_path / "pipe.jsonl")
    assert "is not a regular file" in cli("dataset", "validate", tmp_path / "pipe.jsonl").err


@pytest.mark.slow
def test_half_an_emoji_is_a_lines_own_problem(cli: Cli, tmp_path: Path) -> None:
    assert cli("monitor", "fit", "--data", "training", "--no-measure").status == 0
    lines = '{"query": "How do I bake?"}\n{"query": "\\ud83d"}\n{"query": 5}\n{"query": "Hi"}\n'
    result = cli("monitor", "check", "-", "--field", "query", stdin=lines)
    assert result.status == 1, result.err
    assert ["error" in json.loads(line) for line in result.out.splitlines()] == [False, True, True, False]


def test_a_configuration_without_an_end_is_refused(cli: Cli, workspace: Path) -> None:
    for text in (BOMB, "[" * 5000, "steering: &a {x: *a}\n"):
        (workspace / "config.yaml").write_text(text)
        result = cli("list")
        assert result.status == 1 and result.err.startswith("Error: config.yaml"), result.err
        assert len(result.err.splitlines()) == 1


def test_a_model_folder_with_a_pipe_in_it_is_refused(
    call: Cli, workspace: Path, tiny_model: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    for path in tiny_model.iterdir():
        (folder / path.name).symlink_to(path)
    (folder / "tokenizer.json").unlink()
    os.mkfifo(folder / "tokenizer.json")
    result = call("--workspace", workspace, "--model", folder, "generate", "hi")
    assert result.status == 1 and "tokenizer.json" in result.err and "not a regular file" in result.err
