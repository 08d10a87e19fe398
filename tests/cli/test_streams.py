"""Pipes, interrupts and full disks, in processes of their own."""

from __future__ import annotations

import json
import signal
import subprocess
from pathlib import Path

import pytest

from .conftest import command, environment, finish, spawn

pytestmark = pytest.mark.slow


def test_a_reader_that_leaves_is_no_error(workspace: Path, tiny_model: Path) -> None:
    (workspace / "config.yaml").write_text("generation:\n  max_new_tokens: 1900\n")
    process = spawn("--workspace", workspace, "--model", tiny_model, "generate", "hi", bufsize=0)
    assert process.stdout is not None and process.stderr is not None
    process.stdout.read(1)
    process.stdout.close()
    assert process.stderr.read() == ""
    assert process.wait(60) in (0, 1)


def test_a_short_result_nobody_reads_is_no_error() -> None:
    process = spawn("--help")
    assert process.stdout is not None and process.stderr is not None
    process.stdout.close()
    assert process.stderr.read() == ""
    process.wait(60)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
def test_a_full_disk_is_one_line() -> None:
    with Path("/dev/full").open("w") as full:
        process = spawn("--help", stdout=full)
    result = process.communicate(timeout=60)[1]
    assert process.returncode == 1
    assert "No space left" in result and "Traceback" not in result


def test_an_interrupt_during_long_work(workspace: Path, tiny_model: Path) -> None:
    (workspace / "config.yaml").write_text(
        "extraction:\n  max_new_tokens: 500\n  num_samples_per_prompt: 500\n"
    )
    before = {path: path.read_bytes() for path in workspace.rglob("*") if path.is_file()}
    process = spawn("--workspace", workspace, "--model", tiny_model, "extract-axes")
    assert process.stderr is not None
    assert "through the model" in process.stderr.readline()
    assert "assistant baseline" in process.stderr.readline()
    process.send_signal(signal.SIGINT)
    assert process.wait(5) == 130
    last = process.stderr.read().splitlines()[-1]
    assert last == "Stopped. Nothing was kept of this step (axes): run the same command to start it again."
    after = {path: path.read_bytes() for path in workspace.rglob("*") if path.is_file()}
    assert {path: data for path, data in after.items() if path.parent.name != "partial"} == before


def test_an_interrupt_of_what_keeps_nothing_says_so(tmp_path: Path) -> None:
    file = tmp_path / "talks.jsonl"
    file.write_text('{"prompt": "Is it late?", "response": "Yes."}\n' * 20_000)
    (tmp_path / "new").mkdir()
    process = spawn("--workspace", tmp_path / "new", "--model", "tiny", "trait", "score", file)
    assert process.stderr is not None
    assert process.stderr.readline()  # how far it is
    process.send_signal(signal.SIGINT)
    assert process.wait(20) == 130
    assert process.stderr.read().splitlines()[-1] == "Stopped. Nothing was kept."


def test_a_request_to_end_keeps_what_is_finished(workspace: Path, tiny_model: Path) -> None:
    (workspace / "config.yaml").write_text(
        "extraction:\n  max_new_tokens: 30\n  num_samples_per_prompt: 500\n  batch_size: 4\n"
    )
    process = spawn("--workspace", workspace, "--model", tiny_model, "extract-axes")
    assert process.stderr is not None
    assert "through the model" in process.stderr.readline()
    while (line := process.stderr.readline()).startswith("assistant baseline: 0%"):
        pass  # until a batch is finished, and so kept
    assert "assistant baseline" in line
    process.send_signal(signal.SIGTERM)
    assert process.wait(20) == 143
    last = process.stderr.read().splitlines()[-1]
    assert last == "Stopped. Finished work is kept: run the same command to resume."
    assert list(workspace.glob("vectors/*/partial/axes.*.safetensors"))


@pytest.mark.parametrize("command_line", [["generate", "hi"], ["list"], ["list", "--json"]], ids=" ".join)
def test_a_closed_output_is_an_error(workspace: Path, tiny_model: Path, command_line: list[str]) -> None:
    line = " ".join(
        f"'{part}'" for part in command("--workspace", workspace, "--model", tiny_model, *command_line)
    )
    done = subprocess.run(
        ["sh", "-c", f"exec {line} >&-"], capture_output=True, text=True, env=environment(), check=False
    )
    assert done.returncode == 1
    assert done.stderr == "Error: standard output is closed: there is nowhere to write to\n"


def test_only_json_on_stdout(workspace: Path, tiny_model: Path) -> None:
    result = finish(spawn("--workspace", workspace, "--model", tiny_model, "generate", "hi", "--json"))
    assert json.loads(result.out)["prompt_tokens"] > 0
    assert result.err == ""


def test_an_encoding_without_the_models_letters(workspace: Path, tiny_model: Path) -> None:
    done = subprocess.run(
        command("--workspace", workspace, "--model", tiny_model, "generate", "-", "--max-new-tokens", "50"),
        input="h\xff\xfe".encode("latin-1"),
        capture_output=True,
        env={**environment(), "PYTHONIOENCODING": "ascii"},
        timeout=100,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.isascii()
