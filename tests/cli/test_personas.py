"""`list`, `info`, `load`, `unload` and `delete`."""

import shutil
import sys
from pathlib import Path

import pytest

from .conftest import Cli


def persona_file(workspace: Path, name: str) -> Path:
    return next(workspace.glob(f"vectors/*/personas/{name}.safetensors"))


def test_list(cli: Cli) -> None:
    result = cli("list")
    assert result.status == 0
    assert [line.split()[0] for line in result.out.splitlines()] == ["name", "fool", "sage"]
    entries = cli("list", "--json").json
    assert [entry["name"] for entry in entries] == ["fool", "sage"]
    assert {entry["source"] for entry in entries} == {"archetype"}
    assert all(entry["calibrated"] and not entry["loaded"] for entry in entries)


def test_the_list_says_which_axes_are_weak(cli: Cli, workspace: Path) -> None:
    told = cli("list")
    assert "The safety axis is weak: made of" in told.err  # a random model refuses nothing
    assert "persona-tui extract-axes" in told.err
    assert "assistant axis" not in told.err
    assert "weak" not in cli("list", "--json").err
    axes = next(workspace.glob("vectors/*/axes.safetensors"))
    axes.write_bytes(axes.read_bytes()[:100])
    damaged = cli("list")
    assert damaged.status == 0 and str(axes) in damaged.err and "sage" in damaged.out


def test_loading_is_remembered(cli: Cli) -> None:
    assert cli("list", "--loaded", "--json").json == []
    assert cli("list", "--loaded").out == ""
    assert cli("load", "sage").out == "Loaded sage.\n"
    assert cli("load", "sage").status == 0
    assert [entry["name"] for entry in cli("list", "--loaded", "--json").json] == ["sage"]
    assert cli("unload", "sage").out == "Unloaded sage.\n"
    assert cli("list", "--loaded", "--json").json == []
    again = cli("unload", "sage")
    assert again.status == 1 and "not loaded" in again.err


@pytest.mark.parametrize("command", ["info", "load", "delete", "calibrate"])
def test_unknown_names_offer_the_nearest(cli: Cli, command: str) -> None:
    result = cli(command, "sgae")
    assert result.status == 1
    assert 'Did you mean "sage"?' in result.err


@pytest.mark.parametrize("command", ["info", "load", "delete"])
def test_a_name_is_never_a_path(cli: Cli, command: str) -> None:
    result = cli(command, "../../config")
    assert result.status == 1 and "cannot be a name" in result.err


def test_info(cli: Cli, tiny_model: Path) -> None:
    details = cli("info", "sage", "--json").json
    assert details["name"] == "sage"
    assert details["model_name"] == str(tiny_model)
    assert details["prompts"] == ["Be wise.", "You are a sage."]
    assert details["calibration"]["recipe"] in ("response", "prompt_last")
    assert details["calibration"]["curve"]
    text = cli("info", "sage").out
    assert "system prompts" in text and "gain" in text and "curve" not in text


def test_a_damaged_file_does_not_hide_the_others(cli: Cli, workspace: Path) -> None:
    persona_file(workspace, "fool").write_bytes(b"nonsense")
    fool, sage = cli("list", "--json").json
    assert "error" in fool and "error" not in sage
    assert cli("list").status == 0
    assert cli("info", "fool").status == 1
    assert cli("delete", "fool", "--yes").status == 0


def test_delete_needs_a_yes(cli: Cli, workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = persona_file(workspace, "sage")
    assert cli("delete", "sage").status == 2
    monkeypatch.setattr("persona_tui.cli.personas.sys", _Terminal())
    kept = cli("delete", "sage", stdin="n\n")
    assert kept.status == 1 and "Kept sage" in kept.err
    assert path.exists()
    deleted = cli("delete", "sage", stdin="y\n")
    assert deleted.status == 0 and str(path) in deleted.out
    assert not path.exists()
    (kept,) = (workspace / "trash").rglob("sage.safetensors")
    assert str(kept) in deleted.out
    assert cli("delete", "fool", "--yes").status == 0


class _Terminal:
    """Stands for `sys` where somebody sits at the keyboard."""

    class _Stdin:
        def isatty(self) -> bool:
            return True

    stdin = _Stdin()
    stdout = sys.stdout


def test_vectors_of_another_model_are_refused(
    call: Cli, workspace: Path, tiny_model: Path, tmp_path: Path
) -> None:
    from tests.model.conftest import make_model, make_tokenizer

    other = tmp_path / "other"
    make_model("qwen2", seed=5).save_pretrained(other)
    make_tokenizer().save_pretrained(other)
    mine = persona_file(workspace, "sage")
    from persona_tui.core.workspace import model_slug

    theirs = workspace / "vectors" / model_slug(str(other)) / "personas" / "sage.safetensors"
    theirs.parent.mkdir(parents=True)
    theirs.write_bytes(mine.read_bytes())
    result = call("--workspace", workspace, "--model", other, "generate", "hi", "--persona", "sage")
    assert result.status == 1
    assert str(tiny_model) in result.err and str(other) in result.err


def test_the_list_says_which_personas_belong_to_another_model(
    call: Cli, cli: Cli, workspace: Path, tiny_model: Path, tmp_path: Path
) -> None:
    """Told without loading the model: by the sizes in its config.json, or by the axes in its folder."""
    from tests.model.conftest import make_model, make_tokenizer

    folder = persona_file(workspace, "sage").parent
    for name, options in (("wider", {"hidden_size": 128}), ("sibling", {"seed": 5})):
        make_model("qwen2", **options).save_pretrained(tmp_path / name)
        make_tokenizer().save_pretrained(tmp_path / name)
        root = tmp_path / f"{name}-workspace"
        shutil.copytree(workspace, root)
        shutil.rmtree(root / "vectors")
        made = call("--workspace", root, "--model", tmp_path / name, "extract-axes", "--no-calibrate")
        assert made.status == 0, made.err
        shutil.copy(next(root.glob("vectors/*/personas/sage.safetensors")), folder / f"{name}.safetensors")
    entries = {entry["name"]: entry for entry in cli("list", "--json").json}
    for name in ("wider", "sibling"):
        said = entries[name]["error"]
        assert str(tmp_path / name) in said and f"cannot be used with {tiny_model}" in said
        loaded = cli("load", name)
        assert loaded.status == 1 and said in loaded.err
        about = cli("info", name, "--json").json
        assert about["problem"] == said and about["cosines"] == {"personas": {}, "axes": {}}
    assert "error" not in entries["sage"] and "error" not in entries["fool"]
    assert cli("info", "sage", "--json").json["problem"] is None
    assert cli("plot", "cosines", "-o", tmp_path / "cosines.svg").status == 0


def test_info_says_how_alike_a_persona_is_to_the_others(cli: Cli) -> None:
    found, back = (cli("info", name, "--json").json["cosines"] for name in ("sage", "fool"))
    assert set(found["personas"]) == {"fool"} and set(found["axes"]) == {"assistant", "safety"}
    assert found["personas"]["fool"] == back["personas"]["sage"]
    assert f"fool  {found['personas']['fool']:+.2f}" in cli("info", "sage").out


def test_what_lies_in_a_wrong_place_is_named_with_what_to_do(cli: Cli, workspace: Path) -> None:
    folder = persona_file(workspace, "sage").parent.parent
    (folder / "traits").mkdir(exist_ok=True)
    persona_file(workspace, "sage").rename(folder / "traits" / "sage.safetensors")
    shutil.copy(persona_file(workspace, "fool"), folder.parent / "fool.safetensors")
    (folder / "personas" / "broken.safetensors").write_bytes(b"nothing")
    entries = {entry["name"]: entry for entry in cli("list", "--json").json}
    assert set(entries) == {"fool", "broken", "fool.safetensors", "sage.safetensors"}
    assert entries["sage.safetensors"]["error"] == f"it is a persona: move it to {folder / 'personas'}"
    assert "error" not in entries["fool"]
    (folder / "traits" / "theirs.pt").write_bytes(b"")
    for command in (("list",), ("trait", "list"), ("monitor", "list")):
        listed = cli(*command).out
        assert "it is a persona: move it to" in listed
        assert f"persona-tui import {folder / 'traits' / 'theirs.pt'}" in listed


def test_a_link_to_nowhere_is_told(cli: Cli, workspace: Path) -> None:
    (sage,) = workspace.glob("vectors/*/personas/sage.safetensors")
    sage.unlink()
    sage.symlink_to(workspace / "elsewhere.safetensors")
    for command in (["info", "sage"], ["generate", "hi", "--persona", "sage"], ["delete", "sage", "--yes"]):
        refused = cli(*command)
        assert refused.status == 1 and "sage.safetensors cannot be used: it is a link" in refused.err
    assert "link to nowhere" in cli("list").out and cli("generate", "hi", "--persona", "fool").status == 0
