"""What reaches the user's streams: results and our own lines, nothing else."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cli.conftest import Cli, command, environment, finish, spawn

WARNS = """
import logging, sys, warnings
from persona_tui.cli import main
from persona_tui.project.project import Project
opened = Project.open
def opening(*args, **options):
    import transformers
    warnings.warn("a library's warning", FutureWarning)
    transformers.utils.logging.get_logger("transformers.models").error("a library's line")
    logging.getLogger("torch.nn").warning("another library's line")
    return opened(*args, **options)
Project.open = opening
main(sys.argv[1:])
"""


@pytest.mark.slow
def test_generate_says_nothing_on_stderr(
    workspace: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONWARNINGS", "always")  # whatever a library warns about goes to the log
    result = finish(spawn("--workspace", workspace, "--model", tiny_model, "generate", "hi", "--seed", "7"))
    assert (result.status, result.err) == (0, "")


def warned(workspace: Path, *options: str) -> subprocess.CompletedProcess[str]:
    arguments = [sys.executable, "-c", WARNS, *options, "--workspace", str(workspace), "list"]
    return subprocess.run(arguments, text=True, capture_output=True, env=environment(), timeout=100)


@pytest.mark.slow
def test_a_librarys_warning_goes_to_the_log(workspace: Path) -> None:
    done = warned(workspace)
    assert done.returncode == 0
    assert done.stderr.startswith("No personas are there for ") and done.stderr.count("\n") == 1
    log = "".join(path.read_text() for path in (workspace / "logs").glob("*.log"))
    assert "FutureWarning: a library's warning" in log
    assert "a library's line" in log and "another library's line" in log


@pytest.mark.slow
def test_debug_shows_it(workspace: Path) -> None:
    assert "a library's warning" in warned(workspace, "--debug").stderr


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="no such signals")
@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_told_to_end_a_chat_is_saved(
    workspace: Path, tiny_model: Path, number: signal.Signals, status: int
) -> None:
    process = spawn("--workspace", workspace, "--model", tiny_model, "chat")
    assert process.stdin is not None and process.stdout is not None
    process.stdin.write("hi\n")
    process.stdin.flush()
    assert process.stdout.readline()
    process.send_signal(number)
    assert process.wait(timeout=60) == status
    (session,) = (workspace / "sessions").glob("*.jsonl")
    assert session.read_text().endswith("}\n")


@pytest.mark.slow
@pytest.mark.parametrize("stream", [0, 2])
def test_a_closed_stream_is_no_mistake(workspace: Path, stream: int) -> None:
    line = " ".join(f"'{part}'" for part in command("--workspace", workspace, "list"))
    done = subprocess.run(
        ["sh", "-c", f"{line} {stream}>&-"], text=True, capture_output=True, env=environment(), timeout=100
    )
    assert done.returncode == 0
    assert "Traceback" not in done.stderr and "mistake" not in done.stderr


def test_a_deleted_working_directory_is_one_line(workspace: Path, tmp_path: Path) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    line = " ".join(f"'{part}'" for part in command("list"))
    done = subprocess.run(
        ["sh", "-c", f"rmdir '{gone}'; {line}"],
        cwd=gone, text=True, capture_output=True, env=environment(), timeout=100,
    )  # fmt: skip
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1 and "working directory" in done.stderr


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
@pytest.mark.parametrize("command", [("config", "show"), ("list", "--catalogue")])  # a little, and much
def test_a_full_disk_is_one_line(workspace: Path, command: tuple[str, ...]) -> None:
    with open("/dev/full", "w") as full:
        process = spawn("--workspace", workspace, *command, stdout=full)
        _, err = process.communicate(timeout=100)
    assert process.returncode == 1
    assert err.count("\n") == 1 and "No space left" in err


def test_a_workspace_that_has_no_room_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "new").mkdir()
    limit = (100_000, 100_000)  # bytes of a file; the vectors are larger
    small = {"preexec_fn": lambda: resource.setrlimit(resource.RLIMIT_FSIZE, limit)}
    process = spawn("--workspace", tmp_path / "new", "list", **small)
    _, err = process.communicate(timeout=100)
    assert process.returncode == 1
    assert err == f"Error: The workspace {tmp_path / 'new'} cannot be made: File too large.\n"


def test_a_config_keeps_its_line_ends_and_its_mark(cli: Cli, workspace: Path) -> None:
    path = workspace / "config.yaml"
    path.write_bytes(b"\xef\xbb\xbf# Mine.\r\ngeneration:\r\n  seed: 7\r\n")
    assert cli("config", "set", "generation.seed", "8").status == 0
    assert path.read_bytes() == b"\xef\xbb\xbf# Mine.\r\ngeneration:\r\n  seed: 8\r\n"


def test_tables_are_safe_for_a_terminal(cli: Cli, workspace: Path) -> None:
    path = workspace / "sessions"
    path.mkdir()
    (path / "s.jsonl").write_text(
        '{"kind": "session", "format": 1, "model": "m\\u001b]52;c;aGk=\\u0007"}\n'
        '{"kind": "title", "title": "\\u001b[2Jx\\u009b1m"}\n'
    )
    shown = cli("sessions", "list").out + cli("sessions", "list", "--json").out
    assert "x" in shown
    assert not {"\x1b", "\x07", "\x9b"} & set(shown)


def test_what_is_no_session_is_not_written_to(cli: Cli, workspace: Path, tmp_path: Path) -> None:
    folder = workspace / "sessions"
    folder.mkdir()
    notes = folder / "notes.jsonl"
    notes.write_text('{"mine": 1}\nan unfinished line')
    outside = tmp_path / "outside.jsonl"
    outside.write_text('{"kind": "session", "format": 1}\n')
    (folder / "linked.jsonl").symlink_to(outside)
    before = notes.read_bytes(), outside.read_bytes()
    assert cli("sessions", "rename", "notes", "x").status == 1
    assert cli("sessions", "rename", "linked", "x").status == 1
    assert before == (notes.read_bytes(), outside.read_bytes())


def test_an_empty_newest_session_does_not_spoil_last(cli: Cli, workspace: Path) -> None:
    folder = workspace / "sessions"
    folder.mkdir()
    (folder / "good.jsonl").write_text('{"kind": "session", "format": 1, "model": "m"}\n')
    os.utime(folder / "good.jsonl", (1, 1))
    (folder / "newer.jsonl").write_text("")
    assert cli("sessions", "rename", "last", "A title").out == "good: A title\n"


def test_outputs_are_replaced_with_force_only(cli: Cli, workspace: Path, tmp_path: Path) -> None:
    table = tmp_path / "t.csv"
    table.write_text("mine")
    for arguments in (
        ("monitor", "evaluate", "--csv", table),
        ("monitor", "evaluate", "--plot", table),
        ("trait", "curate", table, "--rules", "x>0.5", "-o", table),
        ("trait", "curate", table, "--rules", "x>0.5", "-o", tmp_path / "new", "--reasons", table),
    ):
        result = cli(*arguments)
        assert result.status == 1 and f"{table} exists" in result.err and "--force" in result.err
    assert table.read_text() == "mine"


def test_names_that_not_every_system_can_store(cli: Cli) -> None:
    for name in ("CON", "nul", "com1"):
        result = cli("create", name, "--description", "A calm voice")
        assert result.status == 1 and "Windows" in result.err
    assert "upper and lower case" in cli("create", "Sage", "--description", "A calm voice").err
