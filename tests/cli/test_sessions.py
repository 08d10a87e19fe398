"""`sessions`, and how a chat in lines is saved: also when it is killed."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from persona_tui.chat import SessionStore
from persona_tui.chat.log import BATCH_TOKENS
from persona_tui.core.workspace import Workspace

from .conftest import Cli, finish, spawn


@pytest.fixture
def store(workspace: Path) -> SessionStore:
    return SessionStore(Workspace(workspace))


@pytest.fixture
def talk(cli: Cli) -> Cli:
    """The command line, in a workspace with one session of two messages and a branch."""
    assert cli("chat", stdin="/max-tokens 40\nHello turquoise?\n/regenerate\n/rename Colours\n").status == 0
    return cli


# --- saving ---


def test_a_chat_in_lines_is_saved(talk: Cli, store: SessionStore, tiny_model: Path) -> None:
    (info,) = store.list()
    assert (info.title, info.messages, info.model) == ("Colours", 3, str(tiny_model))
    conversation, _ = store.load(info.id)
    settings = conversation.path()[1].runs[0].settings
    assert isinstance(settings["sampling"]["seed"], int)  # the one that was used, although none was asked for
    assert settings["fingerprint"] == info.fingerprint


def test_it_can_be_gone_on_with(talk: Cli, store: SessionStore) -> None:
    result = talk("chat", "--resume", "last", "--strength", "0.7", stdin="Again?\n/branch\n/strength\n")
    assert result.status == 0, result.err
    assert "Resumed: Colours." in result.err and "Strength 0.70." in result.err
    assert (
        "#2 model" not in result.err and "#3 model (2 of 2)" in result.err and "#4 you: Again?" in result.err
    )
    assert len(store.list()) == 1


def test_nothing_is_saved_where_nothing_was_said_or_wanted(cli: Cli, store: SessionStore) -> None:
    cli("chat", stdin="/help\n/system Be brief.\n/quit\n")
    cli("chat", "--no-save", stdin="Hello?\n")
    assert store.list() == []


@pytest.mark.slow
def test_a_killed_chat_loses_at_most_the_last_batch(workspace: Path, tiny_model: Path) -> None:
    (workspace / "config.yaml").write_text("generation: {max_new_tokens: 1900, temperature: 0.0}\n")
    child = spawn(
        "--workspace", workspace, "--model", tiny_model, "chat", "--plain", encoding="utf-8", bufsize=-1
    )
    assert child.stdin is not None and child.stdout is not None
    child.stdin.write("/persona sage\nHello?\n")
    child.stdin.flush()
    said = child.stdout.read(60)
    child.send_signal(signal.SIGKILL)
    said += finish(child).out
    store = SessionStore(Workspace(workspace))
    conversation, events = store.load(store.resolve("last"))
    question, reply = conversation.path()
    assert question.text == "Hello?" and reply.finish == "interrupted"
    # The tiny model's tokens are bytes: a token is a character at most.
    assert len(reply.token_ids) >= len(said) - BATCH_TOKENS
    written = reply.text.strip().replace("\r\n", "\n").replace("\r", "\n")  # as a text stream is read
    assert said.startswith(written) or written.startswith(said.strip())
    assert events[-1].kind == "tokens"
    with store.open(store.resolve("last")):
        pass  # nobody holds it any more


@pytest.mark.slow
def test_two_processes_cannot_write_one_session(workspace: Path, tiny_model: Path, call: Cli) -> None:
    child = spawn("--workspace", workspace, "--model", tiny_model, "chat", "--plain", bufsize=0)
    assert child.stdin is not None and child.stdout is not None
    child.stdin.write("Hello?\n")
    child.stdin.flush()
    assert child.stdout.readline()
    arguments = ("--workspace", workspace, "--model", tiny_model)
    for command in (("rename", "last", "x"), ("delete", "last", "--yes")):
        result = call(*arguments, "sessions", *command)
        assert result.status == 1
        assert f"is open in another persona-tui (process {child.pid})" in result.err
    assert call(*arguments, "chat", "--resume", "last", stdin="x\n").status == 1
    assert call(*arguments, "sessions", "show", "last").status == 0
    assert finish(child).status == 0
    assert call(*arguments, "sessions", "rename", "last", "x").status == 0


# --- the commands ---


def test_list_and_search(talk: Cli) -> None:
    listed = talk("sessions", "list")
    assert "Colours" in listed.out and listed.out.startswith("id")
    (entry,) = talk("sessions", "list", "--json").json
    assert entry["title"] == "Colours" and entry["messages"] == 3
    (hit,) = talk("sessions", "search", "TURQUOISE", "--json").json
    assert hit == {
        "session": entry["id"],
        "title": "Colours",
        "message": 1,
        "role": "user",
        "excerpt": "Hello turquoise?",
    }
    assert "#1" in talk("sessions", "search", "turquoise").out
    nothing = talk("sessions", "search", "vermilion")
    assert (nothing.status, nothing.out) == (1, "") and "No session contains" in nothing.err
    assert talk("sessions", "search", "vermilion", "--json").json == []


def test_without_sessions(cli: Cli) -> None:
    assert cli("sessions", "list").out == ""
    assert cli("sessions", "list", "--json").json == []
    result = cli("sessions", "show", "last")
    assert (result.status, result.err) == (1, "Error: there are no sessions yet\n")


def test_show(talk: Cli) -> None:
    shown = talk("sessions", "show", "colours").out
    assert "messages  2 on this branch, 3 in all" in shown
    assert "#1 you\nHello turquoise?" in shown and "#3 assistant" in shown and "2 of 2" in shown
    assert "seed " in shown and "tokens" in shown


def test_export(talk: Cli, tmp_path: Path) -> None:
    data = talk("sessions", "export", "last", "--format", "json").json
    assert [message["role"] for message in data["messages"]] == ["user", "assistant"]
    assert set(data["messages"][0]) == {"role", "content"}
    assert data["settings"]["1"][0]["settings"]["sampling"]["max_new_tokens"] == 40
    assert [node["role"] for node in data["tree"]] == ["user", "assistant", "assistant"]
    assert talk("sessions", "show", "last", "--json").json == data
    assert talk("sessions", "export", "last").out.startswith("# Colours\n")
    target = tmp_path / "out.json"
    assert talk("sessions", "export", "last", "-o", target).out == ""
    assert '"messages"' in target.read_text()
    again = talk("sessions", "export", "last", "-o", target)
    assert again.status == 1 and "exists" in again.err
    assert talk("sessions", "export", "last", "-o", target, "--force", "--format", "md").status == 0
    assert target.read_text().startswith("# Colours")


def test_half_a_character_in_a_session_is_exported(talk: Cli, store: SessionStore, tmp_path: Path) -> None:
    path = store.folder / f"{store.list()[0].id}.jsonl"
    path.write_bytes(path.read_bytes().replace(b"turquoise", rb"turquoise\ud83d"))
    for name in ("out.md", "out.json"):
        assert talk("sessions", "export", "last", "-o", tmp_path / name).status == 0
        assert "turquoise??" in (tmp_path / name).read_text(encoding="utf-8")


def test_rename_and_delete(talk: Cli, store: SessionStore) -> None:
    assert talk("sessions", "rename", "last", " New   name ").out.endswith(": New name\n")
    refused = talk("sessions", "delete", "last")
    assert refused.status == 2 and "--yes" in refused.err
    assert talk("sessions", "delete", "new name", "--yes").out.startswith("Deleted ")
    assert store.list() == []


def test_a_damaged_session_is_named(talk: Cli, store: SessionStore) -> None:
    (info,) = store.list()
    path = store.folder / f"{info.id}.jsonl"
    path.write_bytes(path.read_bytes().replace(b'"role": "user"', b'"role": user', 1))
    shown = talk("sessions", "show", "last")
    assert shown.status == 1 and f"{path}:2" in shown.err and shown.err.count("\n") == 1
    listed = talk("sessions", "list")
    assert listed.status == 0 and f"{path}:2" in listed.out
    assert talk("replay", "last").status == 1


@pytest.mark.slow
def test_these_commands_load_no_torch(talk: Cli, workspace: Path) -> None:
    import subprocess
    import sys

    from .conftest import environment

    code = (
        "import sys; from persona_tui.cli import run; run(sys.argv[1:]); "
        "sys.exit(bool({'torch', 'transformers', 'textual'} & set(sys.modules)))"
    )
    for command in (["list"], ["show", "last"], ["search", "hello"], ["export", "last"]):
        arguments = [sys.executable, "-c", code, "--workspace", str(workspace), "sessions", *command]
        result = subprocess.run(arguments, env=environment(), capture_output=True, check=False)
        assert result.returncode == 0, (command, result.stderr)


def test_ids_are_the_names_of_files(talk: Cli, store: SessionStore) -> None:
    (name,) = os.listdir(store.folder)
    assert name == f"{store.list()[0].id}.jsonl"
