"""`list`, `info`, `load`, `unload` and `delete`: the personas on the disk. None of them loads the model."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from persona_tui.cli.misplaced import with_misplaced
from persona_tui.cli.options import Invocation, pass_invocation
from persona_tui.cli.output import echo, json_option, print_json, print_table, shortened
from persona_tui.project.about import about, sections
from persona_tui.project.shape import belonging

if TYPE_CHECKING:
    from persona_tui.project.project import Project


@click.command("list")
@click.option("--loaded", is_flag=True, help="Only the loaded ones.")
@click.option("--catalogue", is_flag=True, help="The archetypes that personas can be created from.")
@json_option
@pass_invocation
def list_(invocation: Invocation, loaded: bool, catalogue: bool, as_json: bool) -> None:
    """List the personas of the model.

    "calibrated to" is the expression (0 = unsteered, 1 = what its system prompts achieve) that calibration
    gave a persona at its default strength, with the floor in force: up to 0.8 where that is fluent.
    """
    project = invocation.project
    if catalogue:
        _list_catalogue(project, as_json)
        return
    in_memory = project.personas.list_loaded()
    names = in_memory if loaded else project.personas.list_available()
    check = belonging(project)
    entries = [_entry(project, name, name in in_memory, check) for name in names]
    if not loaded:
        entries = with_misplaced(project, entries, project.personas.personas_dir, loaded=False)
    if not entries:
        project.check_known()
    if as_json:
        print_json(entries)
    elif not entries:
        which = "loaded" if loaded else "there"
        how = "" if loaded else ": `persona-tui init` adds what ships, `persona-tui create` makes one"
        echo(f"No personas are {which} for {project.settings.model.name}{how}.", err=True)
    else:
        print_table([_row(entry) for entry in entries], header=["name", "loaded", "calibrated", "made from"])
        _tell_weak_axes(project)


def _tell_weak_axes(project: Project) -> None:
    """Name the axes that may not mean what they say; a bad file of theirs is told, and hides nothing."""
    from persona_tui.core.errors import VectorFileError

    try:
        axes = project.personas.axes
    except VectorFileError as error:
        echo(str(error), err=True)
        return
    doubts = [] if axes is None else [axes.doubt(name) for name in axes.names]
    for doubt in filter(None, doubts):
        echo(doubt, err=True)


def _list_catalogue(project: Project, as_json: bool) -> None:
    """The workspace's own archetypes, and those of the catalogue."""
    from persona_tui.datasets.records import list_archetypes, read_catalogue

    own = list_archetypes(project.workspace)
    entries: list[dict[str, Any]] = [{"name": name, "summary": "", "tags": [], "own": True} for name in own]
    entries += [
        {"name": each.name, "summary": each.summary, "tags": list(each.tags), "own": False}
        for each in read_catalogue(project.workspace)
        if each.name not in own
    ]
    if as_json:
        print_json(entries)
    elif not entries:
        echo("There are no archetypes: run `persona-tui init` to write some.", err=True)
    else:
        rows = [
            [
                each["name"],
                shortened(each["summary"] or "datasets/personas/archetypes", 60),
                ", ".join(each["tags"]),
            ]
            for each in entries
        ]
        print_table(rows, header=["archetype", "who it is", "tags"])


def _entry(
    project: Project, name: str, loaded: bool, check: Callable[[Path, Mapping[str, Any]], None]
) -> dict[str, Any]:
    """Return a persona's line. What is wrong with a file is said there; it must not hide the others."""
    from persona_tui.core.errors import PersonaTuiError

    entry: dict[str, Any] = {"name": name, "loaded": loaded}
    try:
        persona = project.personas.get(name)
        check(project.personas.path_of(name), persona.metadata)
    except PersonaTuiError as error:
        return {**entry, "error": str(error)}
    calibration = persona.calibration
    return {
        **entry,
        "source": persona.metadata.get("source"),
        "description": persona.metadata.get("description"),
        "calibrated": calibration is not None,
        "expression": None if calibration is None else calibration.expression,
        "weak": bool(persona.metadata.get("weak")),
    }


def _row(entry: dict[str, Any]) -> list[str]:
    loaded = "yes" if entry["loaded"] else ""
    if "error" in entry:
        return [entry["name"], loaded, "", entry["error"]]
    calibrated = "no" if entry["expression"] is None else f"to {entry['expression']:.2f}"
    weak = " (weak)" if entry["weak"] else ""
    return [
        entry["name"],
        loaded,
        f"{calibrated}{weak}",
        shortened(entry["description"] or entry["source"] or "", 60),
    ]


@click.command()
@click.argument("name")
@click.option(
    "--tokens", is_flag=True, help="What NAME means to the model: tokens that it raises and lowers."
)
@json_option
@pass_invocation
def info(invocation: Invocation, name: str, tokens: bool, as_json: bool) -> None:
    """Show a persona's details."""
    if tokens:
        _tokens(invocation.project, name, as_json)
        return
    details = about(invocation.project, name)
    if as_json:
        print_json(details)
        return
    for title, rows in sections(details).items():
        if title:
            echo(f"\n{title}")
        print_table([[f"  {key}" if title else key, value] for key, value in rows])


def _tokens(project: Project, name: str, as_json: bool) -> None:
    """The tokens that a direction raises and lowers most, layer by layer."""
    from persona_tui.pictures.tokens import token_shifts

    project.personas.get(name)  # what does not exist is an error before the model loads
    found = token_shifts(project.model, project.personas, name)
    if as_json:
        print_json([{"layer": each.layer, "raised": each.raised, "lowered": each.lowered} for each in found])
        return
    rows = [
        [
            str(each.layer),
            *(" ".join(token.strip() or "·" for token, _ in side) for side in (each.raised, each.lowered)),
        ]
        for each in found
    ]
    print_table(rows, header=["layer", "raises", "lowers"])


@click.command()
@click.argument("name")
@pass_invocation
def load(invocation: Invocation, name: str) -> None:
    """Load a persona, now and in later runs."""
    personas = invocation.project.personas
    belonging(invocation.project)(personas.path_of(name), personas.about(name))
    personas.keep_loaded(name)
    echo(f"Loaded {name}.")


@click.command()
@click.argument("name")
@pass_invocation
def unload(invocation: Invocation, name: str) -> None:
    """Forget a loaded persona. Its file stays."""
    from persona_tui.core.errors import PersonaNotFoundError, nearest

    personas = invocation.project.personas
    if not personas.unload(name):
        raise PersonaNotFoundError(f'"{name}" is not loaded.{nearest(name, personas.list_loaded())}')
    echo(f"Unloaded {name}.")


@click.command()
@click.argument("name")
@click.option("--yes", "-y", is_flag=True, help="Do not ask.")
@pass_invocation
def delete(invocation: Invocation, name: str, yes: bool) -> None:
    """Delete a persona. Its file goes to the workspace's trash folder."""
    from persona_tui.project import deletion

    project = invocation.project
    if not project.personas.path_of(name).is_file():
        project.personas.get(name)  # raises, and offers the nearest name
    if not yes:
        _confirm(name)
    file = deletion.delete(project, name).file
    echo(f"Deleted {file.path}. It is in the trash: {file.kept}")


def _confirm(name: str) -> None:
    if not sys.stdin.isatty():
        raise click.UsageError("This cannot ask without a terminal: add --yes.", click.get_current_context())
    if not click.confirm(f"Delete {name}?", err=True):
        echo(f"Kept {name}.", err=True)
        click.get_current_context().exit(1)
