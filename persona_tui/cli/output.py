"""Results on stdout: one JSON document, or plain columns that `grep` and `cut` understand."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import click

from persona_tui.core import files
from persona_tui.core.printable import printable

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


def print_json(value: Any) -> None:
    """Print one JSON document."""
    text = json.dumps(value, ensure_ascii=False, indent=2)
    # JSON escapes the controls below space by itself; those of C1 move some terminals' cursors, too.
    click.echo(re.sub("[\x7f-\x9f]", lambda match: f"\\u{ord(match[0]):04x}", text))


def print_table(rows: Sequence[Sequence[str]], header: Sequence[str] | None = None) -> None:
    """Print columns, as wide as they need to be. What files say in them is made safe for a terminal."""
    lines = [[printable(cell) for cell in row] for row in ([header, *rows] if header else rows)]
    if not lines:
        return
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    for line in lines:
        cells = (cell.ljust(width) for cell, width in zip(line, widths, strict=True))
        click.echo("  ".join(cells).rstrip())
