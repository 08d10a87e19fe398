"""Folders, names and writes."""

import os
from pathlib import Path

import pytest

from persona_tui.core import workspace as workspace_module
from persona_tui.core.errors import WorkspaceError
from persona_tui.core.files import atomic_write_bytes, atomic_write_text, safe_name
from persona_tui.core.workspace import Workspace, model_slug, packaged_root


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A small stand-in for what travels in the package, and a data folder of our own."""
    root = tmp_path / "package"
    (root / "datasets" / "safety").mkdir(parents=True)
    (root / "datasets" / "safety" / "safe.jsonl").write_text("{}\n")
    (root / "vectors" / "builtin").mkdir(parents=True)
    (root / "config.yaml").write_text("# shipped\nmodel:\n  name: builtin\n")
    monkeypatch.setattr(workspace_module, "packaged_root", lambda: root)
    monkeypatch.setattr(workspace_module, "user_data_dir", lambda *_, **__: str(tmp_path / "data"))
    return root


def names(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir())


# --- finding ---


def test_the_nearest_folder_with_a_config_wins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "config.yaml").write_text("")
    inner = tmp_path / "a"
    deep = inner / "b" / "c"
    deep.mkdir(parents=True)
    monkeypatch.chdir(deep)
    assert Workspace.find().root == tmp_path
    (inner / "config.yaml").write_text("")
    assert Workspace.find().root == inner


def test_elsewhere_the_data_folder_is_made_from_the_package(
    package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    monkeypatch.chdir(empty)
    found = Workspace.find()
    assert found.root == tmp_path / "data"
    assert names(found.root) == ["config.yaml", "datasets", "vectors"]
    assert (found.datasets / "safety" / "safe.jsonl").read_text() == "{}\n"
    assert names(empty) == []


def test_the_second_use_keeps_what_the_user_changed(
    package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = Workspace.find(tmp_path / "mine")
    first.config_path.write_text("# changed\n")
    (first.datasets / "safety" / "safe.jsonl").unlink()
    again = Workspace.find(tmp_path / "mine")
    assert again.config_path.read_text() == "# changed\n"
    assert names(again.datasets / "safety") == []


def test_an_interrupted_first_use_is_finished_by_the_next(package: Path, tmp_path: Path) -> None:
    root = tmp_path / "mine"
    (root / "datasets").mkdir(parents=True)
    assert names(Workspace.find(root).root) == ["config.yaml", "datasets", "vectors"]
    assert names(root / "datasets") == []


def test_a_folder_of_other_things_is_not_filled(package: Path, tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    (home / "letter.txt").write_text("dear")
    with pytest.raises(WorkspaceError, match=r"no config\.yaml"):
        Workspace.find(home)
    assert names(home) == ["letter.txt"]
    with pytest.raises(WorkspaceError, match="not a folder"):
        Workspace.find(home / "letter.txt")


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="needs a folder that cannot be written")
def test_a_data_folder_that_cannot_be_made_is_one_line(package: Path, tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    try:
        with pytest.raises(WorkspaceError, match="cannot be made"):
            Workspace.find(tmp_path / "mine")
    finally:
        tmp_path.chmod(0o700)


def test_the_packaged_files_are_found_in_this_checkout() -> None:
    assert (packaged_root() / "config.yaml").is_file()


def test_folders_follow_the_configuration(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("paths: {vectors: ./other, datasets: /data/sets}\n")
    found = Workspace(tmp_path)
    assert found.vectors == tmp_path / "other"
    assert found.datasets == Path("/data/sets")
    assert found.personas_dir("builtin") == tmp_path / "other" / "builtin" / "personas"


# --- names ---


@pytest.mark.parametrize("name", ["sage", "grumpy_wizard", "a-b", "A1", "_x", "x" * 64])
def test_plain_names_pass(name: str) -> None:
    assert safe_name(name) == name


@pytest.mark.parametrize(
    "name",
    [
        "",
        ".",
        "..",
        "../x",
        "a/b",
        "a\\b",
        "/etc/passwd",
        ".hidden",
        "-rf",
        "a b",
        "a\n",
        "é",
        "x" * 65,
        "a.b",
    ],
)
def test_paths_and_odd_names_are_refused(name: str) -> None:
    with pytest.raises(WorkspaceError) as caught:
        safe_name(name)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 160


def test_slugs_of_hub_names_keep_both_parts() -> None:
    assert model_slug("builtin") == "builtin"
    assert model_slug("gpt2") == "gpt2"
    assert model_slug("Qwen/Qwen2.5-7B") == "Qwen--Qwen2.5-7B"


@pytest.mark.parametrize(
    "name", ["/models/tiny", "./tiny", "../tiny", "~/tiny", "a/b/tiny", "..", "", "org/.."]
)
def test_slugs_of_folders_are_one_safe_part(name: str) -> None:
    slug = model_slug(name)
    assert slug not in ("", ".", "..")
    assert not set(slug) & set("/\\~ ")
    assert not slug.startswith(".")


def test_slugs_of_two_folders_with_one_name_differ() -> None:
    assert model_slug("/a/model") != model_slug("/b/model")
    assert model_slug("/a/model") == model_slug("/a/x/../model")
    assert len(model_slug("/a/" + "x" * 500)) < 100


def test_one_model_has_one_folder_of_vectors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However it is spelled, in Python as on the command line."""
    monkeypatch.chdir(tmp_path)
    model = tmp_path / "models" / "x"
    model.mkdir(parents=True)
    (model / "config.json").write_text("{}")
    (model / "x.gguf").write_bytes(b"GGUF")
    workspace = Workspace(tmp_path / "workspace")
    spellings = ["models/x", "models/x/", "./models/x", "models/../models/x", str(model), f"{model}/"]
    assert len({workspace.model_dir(each) for each in spellings}) == 1
    assert workspace.model_dir(workspace.slug("models/x")) == workspace.model_dir("models/x")
    files = ["models/x/x.gguf", "./models/x/x.gguf", str(model / "x.gguf")]
    assert len({workspace.model_dir(each) for each in files}) == 1
    assert workspace.model_dir("org/name") == workspace.vectors / "org--name"


def test_vectors_made_under_the_former_name_are_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    model = tmp_path / "models" / "x"
    model.mkdir(parents=True)
    (model / "config.json").write_text("{}")
    workspace = Workspace(tmp_path)
    (workspace.vectors / "models--x").mkdir(parents=True)
    for name in ("models/x", "./models/x/", str(model)):
        assert workspace.model_dir(name).name == "models--x"


@pytest.mark.parametrize("name", ["./nothing", "/no/where", "a/b/c", "models/x/"])
def test_a_path_to_nothing_is_an_error(tmp_path: Path, name: str) -> None:
    with pytest.raises(WorkspaceError, match="There is no model folder"):
        Workspace(tmp_path).model_dir(name)


# --- writes ---


def test_a_write_makes_folders_and_replaces(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b.txt"
    atomic_write_text(path, "one\n")
    atomic_write_text(path, "zwö\n")
    assert path.read_bytes() == "zwö\n".encode()
    assert names(path.parent) == ["b.txt"]


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    path = tmp_path / "b.txt"
    path.write_text("old")

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, step, fail)
    with pytest.raises(WorkspaceError, match="No space left"):
        atomic_write_bytes(path, b"new")
    assert path.read_text() == "old"
    assert names(tmp_path) == ["b.txt"]


def test_an_interrupt_leaves_no_temporary_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        atomic_write_bytes(tmp_path / "b.txt", b"new")
    assert names(tmp_path) == []


def test_links_out_of_the_workspace_are_refused(tmp_path: Path) -> None:
    inside, outside = tmp_path / "inside", tmp_path / "outside"
    inside.mkdir()
    outside.mkdir()
    (outside / "x").write_text("theirs")
    (inside / "x").symlink_to(outside / "x")
    (inside / "folder").symlink_to(outside, target_is_directory=True)
    for path in (inside / "x", inside / "folder" / "x", inside / ".." / "outside" / "x"):
        with pytest.raises(WorkspaceError, match="link out of"):
            atomic_write_bytes(path, b"ours", inside=inside)
    assert (outside / "x").read_text() == "theirs"


def test_links_within_the_workspace_are_followed(tmp_path: Path) -> None:
    (tmp_path / "real").write_text("old")
    (tmp_path / "link").symlink_to("real")
    atomic_write_text(tmp_path / "link", "new", inside=tmp_path)
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "real").read_text() == "new"


def test_a_folder_in_the_way_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "x").mkdir()
    with pytest.raises(WorkspaceError, match="cannot be written"):
        atomic_write_bytes(tmp_path / "x", b"")
    assert names(tmp_path) == ["x"]
