"""Vectors that were made on one model, used on a copy of it, and refused on another."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from persona_tui.core.workspace import model_slug
from persona_tui.vectors.files import load_tensors, save_tensors
from tests.model.conftest import make_model, make_tokenizer

from .conftest import Cli, Result


def a_model(folder: Path, seed: int = 0, **changes: object) -> Path:
    make_model("qwen2", seed, max_position_embeddings=2048, **changes).save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    return folder


def rewritten(path: Path, **changes: Any) -> None:
    """Change a file's metadata; what becomes None is left out."""
    tensors, metadata = load_tensors(path)
    changed = {key: value for key, value in {**metadata, **changes}.items() if value is not None}
    save_tensors(path, tensors, changed)


def with_its_vectors(call: Cli, workspace: Path, made_on: Path, model: Path, *args: str) -> Result:
    """Call a command on a model that has another one's vectors."""
    vectors = workspace / "vectors"
    shutil.copytree(vectors / model_slug(str(made_on)), vectors / model_slug(str(model)))
    return call("--workspace", workspace, "--model", model, *args)


SAY = ("generate", "hi", "--persona", "sage")


def test_on_the_same_model_nothing_is_said(cli: Cli) -> None:
    result = cli(*SAY, "--json")
    assert (result.status, result.err, result.json["notes"]) == (0, "", [])


@pytest.mark.slow
def test_a_copy_in_another_precision_is_used_with_one_note(cli: Cli, tiny_model: Path) -> None:
    result = cli("--dtype", "bfloat16", *SAY, "--json")
    assert result.status == 0, result.err
    (note,) = result.json["notes"]
    assert note.startswith(f"The vectors were made on {tiny_model}")
    assert note.endswith("is a near copy (its weights differ by 0.2%).")
    assert result.err == f"{note}\n"  # once, though the axes' file says the same
    compared = cli("--dtype", "bfloat16", "compare", "hi", "--a", "persona=sage", "--json")
    assert compared.json["notes"] == [note] and compared.err == f"{note}\n"
    found = {each["name"]: each for each in cli("--dtype", "bfloat16", "doctor", "--json").json}
    assert found["personas"]["state"] == "note" and note in found["personas"]["detail"]


def test_other_weights_of_the_same_shape_are_refused(
    call: Cli, workspace: Path, tiny_model: Path, tmp_path: Path
) -> None:
    other = a_model(tmp_path / "other", seed=1)
    result = with_its_vectors(call, workspace, tiny_model, other, *SAY)
    assert result.status == 1 and result.err.count("\n") == 1 and not result.out
    assert f"was made on {tiny_model}" in result.err and f"cannot be used with {other}" in result.err
    assert "the same shape, but other weights (they differ by 14" in result.err


@pytest.mark.parametrize(
    ("changes", "shape"),
    [
        ({"hidden_size": 64}, "qwen2, 3 layers of 64, 260 tokens"),
        ({"num_hidden_layers": 4}, "qwen2, 4 layers of 32, 260 tokens"),
        ({"vocab_size": 300}, "qwen2, 3 layers of 32, 300 tokens"),
    ],
)
def test_another_size_is_refused_and_both_are_named(
    call: Cli, workspace: Path, tiny_model: Path, tmp_path: Path, changes: dict[str, object], shape: str
) -> None:
    other = a_model(tmp_path / "other", **changes)
    result = with_its_vectors(call, workspace, tiny_model, other, *SAY)
    assert result.status == 1 and result.err.count("\n") == 1 and not result.out
    assert f"cannot be used with {other} ({shape})" in result.err
    assert "(qwen2, 3 layers of 32, 260 tokens)" in result.err


def test_files_without_a_sketch_are_told_by_their_fingerprint(
    call: Cli, cli: Cli, workspace: Path, tiny_model: Path, tmp_path: Path
) -> None:
    for path in (workspace / "vectors").rglob("*.safetensors"):
        rewritten(path, model_sketch=None, model_shape=None)
    result = cli("--dtype", "bfloat16", *SAY, "--json")
    assert (result.status, result.err, result.json["notes"]) == (0, "", [])
    other = a_model(tmp_path / "other", seed=1)
    refused = with_its_vectors(call, workspace, tiny_model, other, *SAY)
    assert refused.status == 1 and "(fingerprints " in refused.err


def test_what_is_known_of_a_persona_has_the_shape_and_not_the_sketch(cli: Cli) -> None:
    shown = cli("info", "sage")
    assert "architecture qwen2" in shown.out and "sketch" not in shown.out
    assert "model_sketch" not in json.dumps(cli("info", "sage", "--json").json)


@pytest.mark.parametrize("command", [("list",), ("list", "--json"), ("trait", "list"), ("monitor", "list")])
def test_a_name_of_no_model_is_an_error_and_not_an_empty_list(cli: Cli, command: tuple[str, ...]) -> None:
    result = cli("--model", "no-such/model", *command)
    assert (result.status, result.out) == (1, "")
    assert result.err.startswith('Error: "no-such/model" is not on this machine')
