"""Escape sequences in files that strangers made do not reach the terminal."""

from __future__ import annotations

import json
from pathlib import Path

from safetensors import safe_open
from safetensors.torch import load_file, save_file

from persona_tui.core.documents import printable
from persona_tui.vectors.files import METADATA_KEY

from .conftest import Cli

NASTY = "x\x1b]52;c;cm0gLXJmIC8=\x07\x1b[2J\x9b31m\x1b]8;;http://evil\x1b\\"


def spoil(path: Path) -> None:
    """Put sequences into every text of a vector file's metadata that a stranger could choose."""
    with safe_open(path, "pt") as file:
        about = json.loads(file.metadata()[METADATA_KEY])
    for key in ("description", "source", "created", "model_name", "weak_reason", "archetype"):
        about[key] = NASTY
    save_file(load_file(path), path, {METADATA_KEY: json.dumps(about)})


def test_lists_and_details_are_clean(cli: Cli, workspace: Path) -> None:
    for path in workspace.glob("vectors/*/personas/*.safetensors"):
        spoil(path)
    for command in (
        ("list",),
        ("info", "sage"),
        ("load", "sage"),
        ("list", "--json"),
        ("info", "sage", "--json"),
    ):
        result = cli(*command)
        assert result.status == 0, result.err
        for text in (result.out, result.err):
            assert printable(text) == text, (command, text)


def test_sessions_and_errors_are_clean(cli: Cli, workspace: Path) -> None:
    cli("chat", stdin="hello there\n")
    (path,) = workspace.glob("sessions/*.jsonl")
    text = path.read_text().replace("hello there", json.dumps(NASTY)[1:-1])
    path.write_text(text)
    for command in (
        ("sessions", "list"),
        ("sessions", "search", "x"),
        (NASTY,),
        ("info", NASTY),
        ("config", "set", NASTY, "1"),
    ):
        result = cli(*command)
        assert printable(result.out) == result.out and printable(result.err) == result.err, command
    renamed = cli("sessions", "rename", "last", NASTY)
    assert printable(renamed.out) == renamed.out
