"""Results on stdout: one JSON document, or plain columns that `grep` and `cut` understand."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import click

from persona_tui.core import files
from persona_tui.core.documents import printable

F = TypeVar("F", bound=Callable[..., Any])


def json_option(command: F) -> F:
    """Add `--json` to a command."""
    return click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")(command)


def force_option(command: F) -> F:
    """Add `--force` to a command that writes files which the user names."""
    return click.option("--force", is_flag=True, help="Replace files that exist.")(command)


def check_free(*paths: Path | None, force: bool = False) -> None:
    """Refuse to write over what is there, unless the user allows it with `force_option`.

    Raises:
        WorkspaceError: names the first of the files that exists.
    """
    if not force:
        files.check_free(*paths, advice=", or use --force to replace it")


def echo(text: str = "", err: bool = False) -> None:
    """Print text for people, made safe for a terminal: names, titles and errors may come from strangers."""
    click.echo(printable(text), err=err)


def shown(text: str) -> str:
    """Return what was said: safe for a terminal if that is where it goes, unchanged for a pipe."""
    return printable(text) if sys.stdout.isatty() else text


def echo_said(text: str, nl: bool = True) -> None:
    """Print what was said; see `shown`."""
    click.echo(shown(text), nl=nl)


def print_json(value: Any, indent: int | None = 2) -> None:
    """Print one JSON document; without an indent, on one line."""
    text = json.dumps(value, ensure_ascii=False, indent=indent)
    # JSON escapes the controls below space by itself; those of C1 move some terminals' cursors, too.
    click.echo(re.sub("[\x7f-\x9f]", lambda match: f"\\u{ord(match[0]):04x}", text))


def floor_as_json(floor: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """Return the floor that was enforced as results have it; None = nothing was capped."""
    return None if floor is None else {key: floor[key] for key in ("axis", "percentile", "layers")}


def shortened(text: str, width: int = 40) -> str:
    """Return the beginning of a text on one line, without control characters."""
    line = " ".join(printable(text).split())
    return line if len(line) <= width else f"{line[: width - 3]}..."


def print_table(rows: Sequence[Sequence[str]], header: Sequence[str] | None = None) -> None:
    """Print columns, as wide as they need to be. What files say in them is made safe for a terminal."""
    lines = [[printable(cell) for cell in row] for row in ([header, *rows] if header else rows)]
    if not lines:
        return
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    for line in lines:
        cells = (cell.ljust(width) for cell, width in zip(line, widths, strict=True))
        click.echo("  ".join(cells).rstrip())
