"""Workspaces, names, models and texts as the world has them."""

from __future__ import annotations

import os
import resource
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from persona_tui.core.files import only_writer
from tests.cli.conftest import REPOSITORY, Cli, command, environment
from tests.model.conftest import make_model, make_tokenizer
from tests.stress.conftest import Say, check, everything, no_hang

pytestmark = pytest.mark.slow

NAMES = (
    "../sage",
    "..",
    ".",
    "/etc/passwd",
    "a/b",
    "a\\b",
    "~/x",
    ".hidden",
    "-rf",
    "x" * 65,
    "x" * 5000,
    "nul\x00byte",
    "new\nline",
    "dünn",
    "مرحبا",
    "🙂",
    "a b",
    "$(reboot)",
    "%00",
    "CON ",
    "",
    " ",
)
TEXTS = (
    "שלום, מי אתה?",
    "مرحبا، ما اسمك؟",
    "\u202eright to left override\u202c",
    "👩‍👩‍👧‍👦 family, Z̴̢a̷l̶g̸o̵, ﷽",
    "\x1b[31mred\x1b[0m \x07bell",
    "\ufeffbom \u200b\u2060 nothing to see",
    "tab\tand\r\nline",
    "a" * 1500,
    "\ud800 alone",
)


def files_of(folder: Path) -> set[str]:
    return set(everything(folder))


def test_names_that_are_paths(cli: Cli, workspace: Path, tmp_path: Path, outside: Path, say: Say) -> None:
    before, tried = files_of(tmp_path), 0
    for name in NAMES:
        for arguments in (
            ("info", "--", name),
            ("load", "--", name),
            ("unload", "--", name),
            ("delete", "--yes", "--", name),
            ("create", "--from-archetype", "sage", "--", name),
            ("create", "new", "--from-archetype", name),
            ("calibrate", "--", name),
            ("generate", "hi", "--persona", name),
            ("generate", "hi", "--blend", f"{name}:1"),
            ("sessions", "show", "--", name),
            ("sessions", "delete", "--yes", "--", name),
            ("dataset", "generate", "archetype", "-d", "A sage", "--", name),
        ):
            with no_hang(arguments):
                result = cli(*arguments)
            check(result, arguments)
            assert result.status in (1, 2), arguments
            tried += 1
    say(f"{tried} commands with {len(NAMES)} names that are paths and worse: all refused, nothing written")
    assert files_of(tmp_path) == before


@contextmanager
def somebody_else() -> Iterator[None]:
    """Without the rights of root, who may write everywhere."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


def test_a_workspace_that_cannot_be_written(cli: Cli, workspace: Path, tiny_model: Path) -> None:
    commands = (
        ("create", "new", "--from-archetype", "fool", "--no-calibrate"),
        ("extract-axes", "--no-calibrate"),
        ("calibrate", "sage"),
        ("delete", "sage", "--yes"),
        ("load", "sage"),
        ("config", "set", "model.dtype", "auto"),
        ("dataset", "generate", "archetype", "elf", "-d", "An elf"),
    )
    for arguments in (("list",), ("generate", "hi"), *commands[:1]):
        cli(*arguments)  # what is imported now need not be readable to somebody else
    cli("delete", "new", "--yes")
    before = everything(workspace)
    for path in (workspace, *workspace.rglob("*")):
        path.chmod(0o555 if path.is_dir() else 0o444)
    for parent in [workspace, *workspace.parents[:-2], *tiny_model.parents[:-2]]:
        parent.chmod(parent.stat().st_mode | 0o055)
    for path in tiny_model.iterdir():
        path.chmod(0o644)
    try:
        with somebody_else():
            for arguments in commands:
                result = cli(*arguments)
                check(result, arguments)
                assert result.status == 1 and "cannot be" in result.err, (arguments, result.err)
            assert cli("list").status == 0
            assert cli("generate", "hi", "--persona", "sage").status == 0
    finally:
        for path in (workspace, *workspace.rglob("*")):
            path.chmod(0o755 if path.is_dir() else 0o644)
    assert everything(workspace) == before


def test_a_full_disk(workspace: Path, tiny_model: Path) -> None:
    """No file may be longer than a few bytes: to a program that is a disk without room."""
    before = everything(workspace)

    def no_room() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (3000, 3000))

    arguments = ("--workspace", workspace, "--model", tiny_model, "extract-axes", "--no-calibrate")
    done = subprocess.run(
        [sys.executable, "-m", "tests.killing", "never", *map(str, arguments)],
        capture_output=True,
        text=True,
        cwd=REPOSITORY,
        env={**environment(), "PYTHONDONTWRITEBYTECODE": "1"},
        preexec_fn=no_room,
    )
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("Error: ") and "cannot be written" in done.stderr
    after = everything(workspace)
    assert {name: data for name, data in after.items() if "partial" not in name} == before
    assert not [name for name in after if name.endswith(".tmp")]


def test_a_second_writer_is_told_who_is_the_first(cli: Cli, workspace: Path) -> None:
    (folder,) = workspace.glob("vectors/*")
    with only_writer(folder / "partial", "axes"):
        for arguments in (("extract-axes",), ("create", "new", "-a", "fool"), ("calibrate", "sage")):
            result = cli(*arguments)
            assert result.status == 1 and f"process {os.getpid()} is writing" in result.err, result.err
        assert cli("list").status == 0 and cli("load", "fool").status == 0
    assert cli("calibrate", "sage").status == 0


def test_a_model_folder_with_parts_missing(call: Cli, workspace: Path, tmp_path: Path, say: Say) -> None:
    model = tmp_path / "model"
    make_model("llama").save_pretrained(model, max_shard_size="30KB")
    make_tokenizer().save_pretrained(model)
    parts = sorted(model.iterdir())
    for path in parts:
        copy = Path(shutil.copytree(model, tmp_path / "copy"))
        (copy / path.name).unlink()
        for change in (
            lambda file: None,
            lambda file: file.write_bytes(b""),
            lambda file: file.write_bytes(b"\x80{"),
        ):
            change(copy / path.name)
            result = call("--workspace", workspace, "--model", copy, "generate", "hi")
            check(result, path.name)
        shutil.rmtree(copy)
    say(f"{3 * len(parts)} models with a part missing, empty or overwritten: no crash")


def test_a_base_model_without_a_chat_template(call: Cli, workspace: Path, tmp_path: Path) -> None:
    model = tmp_path / "base"
    make_model("gpt2", n_positions=1024).save_pretrained(model)
    make_tokenizer(chat=False).save_pretrained(model)
    base = ("--workspace", workspace, "--model", model)
    assert call(*base, "init", "--no-calibrate").status == 0
    result = call(*base, "generate", "hi", "--persona", "sage", "--max-new-tokens", "4", "--json")
    assert result.status == 0 and result.json["persona"] == "sage"


def test_texts_of_all_kinds(cli: Cli, workspace: Path, say: Say) -> None:
    for text in TEXTS:
        sayable = text.encode("utf-8", "replace").decode()
        check(cli("generate", sayable, "--max-new-tokens", "2", "--json"), text)
        check(cli("chat", stdin=f"{sayable}\n/quit\n"), text)
        check(cli("generate", "hi", "--system", sayable, "--max-new-tokens", "2"), text)
        check(cli("create", "other", "-d", sayable, "--no-calibrate"), text)
        check(cli("delete", "other", "--yes"), text)
        check(cli("generate", "hi", "--persona", sayable), text)
    check(cli("sessions", "list"), "sessions")
    assert cli("dataset", "validate").status == 0
    say(f"{6 * len(TEXTS)} commands with {len(TEXTS)} texts: right to left, control characters, no UTF-8 ...")


def test_texts_that_are_no_text() -> None:
    for data in (b"\xff\xfe\xfd", b"\x00" * 100, bytes(range(256))):
        done = subprocess.run(
            command("generate", "-", "--max-new-tokens", "2"),
            input=data,
            capture_output=True,
            env=environment(),
        )
        assert b"Traceback" not in done.stderr and b"mistake" not in done.stderr
        assert done.returncode in (0, 1, 2)


def test_a_prompt_longer_than_the_context(cli: Cli, workspace: Path) -> None:
    for text in ("word " * 1000, "x" * 100_000):
        result = cli("generate", text)
        assert result.status == 1 and "context" in result.err and result.err.count("\n") == 1
        questions = workspace / "datasets" / "personas" / "extraction_questions.jsonl"
        before = questions.read_text()
        questions.write_text(before + f'{{"id": "long", "question": "{text}?", "category": "values"}}\n')
        result = cli("extract-axes", "--no-calibrate", "--questions", "10", "--samples", "5")
        assert result.status == 1 and "context" in result.err, result.err
        questions.write_text(before)
    assert cli("extract-axes", "--no-calibrate").status == 0
