"""`init`, `extract-axes` and `doctor`."""

import json
from pathlib import Path

import pytest

from .conftest import Cli, make_workspace


@pytest.mark.slow
def test_init_prepares_and_then_leaves_alone(call: Cli, tmp_path: Path, tiny_model: Path) -> None:
    root = make_workspace(tmp_path / "new")
    args = ("--workspace", root, "--model", tiny_model, "init", "--no-calibrate")
    first = call(*args)
    assert first.status == 0, first.err
    assert "extracted" in first.out and "Personas: fool, sage." in first.out
    axes = next(root.glob("vectors/*/axes.safetensors"))
    before = axes.stat().st_mtime_ns
    second = call(*args)
    assert second.status == 0 and "there already" in second.out
    assert axes.stat().st_mtime_ns == before


@pytest.mark.slow
def test_init_makes_what_is_missing(cli: Cli, workspace: Path) -> None:
    assert cli("delete", "fool", "--yes").status == 0
    (workspace / "datasets" / "safety" / "safe_prompts.jsonl").unlink()
    result = cli("init", "--no-calibrate")
    assert result.status == 0, result.err
    assert "Restored" in result.out and "Extracted fool." in result.out
    assert cli("dataset", "validate", "--json").json[0]["records"] == 200


@pytest.mark.slow
def test_init_names_a_bad_data_set(cli: Cli, workspace: Path) -> None:
    path = workspace / "datasets" / "personas" / "extraction_questions.jsonl"
    path.write_text("{\n[]\n")
    result = cli("init")
    assert (result.status, result.out) == (1, "")
    assert f"{path}: line 1: not valid JSON" in result.err and "2 more" in result.err


@pytest.mark.slow
def test_extract_axes_shows_what_capping_costs(cli: Cli) -> None:
    result = cli("extract-axes", "--no-calibrate", "--max-new-tokens", "2")
    assert result.status == 0, result.err
    rows = [line.split() for line in result.out.splitlines() if line.strip()]
    assert [row[0] for row in rows if row[0] in ("assistant", "safety")] == ["assistant", "safety"]
    assert sum("default" in row for row in rows) == 1
    assert {"sage", "fool"} <= {row[0] for row in rows}
    assert "floor leaves" in result.out


@pytest.mark.slow
def test_doctor_finds_everything_in_order(cli: Cli) -> None:
    result = cli("doctor")
    assert result.status == 0, result.out
    checks = {check["name"]: check["state"] for check in cli("doctor", "--json").json}
    assert list(checks) == [
        "python",
        "torch",
        "transformers",
        "device",
        "memory",
        "workspace",
        "datasets",
        "model",
        "axes",
        "personas",
        "monitor",
        "terminal",
    ]
    assert "WRONG" not in checks.values()
    (detail,) = (check["detail"] for check in cli("doctor", "--json").json if check["name"] == "axes")
    assert "The safety axis is weak: made of" in detail and "persona-tui extract-axes" in detail


@pytest.mark.slow
def test_doctor_finds_what_is_wrong(call: Cli, cli: Cli, workspace: Path) -> None:
    next(workspace.glob("vectors/*/axes.safetensors")).unlink()
    (workspace / "datasets" / "safety" / "safe_prompts.jsonl").unlink()
    next(workspace.glob("vectors/*/personas/sage.safetensors")).write_bytes(b"no")
    result = cli("doctor", "--json")
    assert result.status == 1
    wrong = {check["name"] for check in result.json if check["state"] == "WRONG"}
    assert wrong == {"axes", "datasets", "personas"}
    gone = call("--workspace", workspace, "--model", "/no/such/model", "doctor", "--json")
    assert "model" in {check["name"] for check in gone.json if check["state"] == "WRONG"}


def test_doctor_survives_a_broken_configuration(call: Cli, workspace: Path) -> None:
    (workspace / "config.yaml").write_text("steering: [")
    result = call("--workspace", workspace, "doctor")
    assert result.status == 1
    assert "workspace" in result.out and "terminal" in result.out


@pytest.mark.slow
def test_roles_are_points_of_the_map(cli: Cli, workspace: Path, tmp_path: Path) -> None:
    catalogue = workspace / "datasets" / "personas" / "catalogue.jsonl"
    entry = {"name": "baker", "summary": "Bakes.", "system_prompts": ["You bake.", "You love bread."]}
    catalogue.write_text(json.dumps(entry) + "\n", encoding="utf-8")
    assert cli("init", "--roles", "all").status == 0
    picture = tmp_path / "map.svg"
    result = cli("plot", "map", "-o", picture)
    assert result.status == 0, result.err
    assert "baker" in picture.read_text(encoding="utf-8")


@pytest.mark.slow
def test_means_of_roles_are_kept_on_request(cli: Cli, workspace: Path) -> None:
    before = cli("list", "--json").json
    result = cli("init", "--roles", "sage,fool")
    assert result.status == 0, result.err
    assert "Means of 2 roles." in result.out
    assert len(list(workspace.glob("vectors/*/roles.safetensors"))) == 1
    assert cli("list", "--json").json == before
    assert "Means of" not in cli("init").out
    refused = cli("init", "--roles", "sgae")
    assert refused.status == 1 and 'Did you mean "sage"?' in refused.err
