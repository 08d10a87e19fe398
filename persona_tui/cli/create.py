"""`create` and `calibrate`: new personas, and how loud they have to be."""

from __future__ import annotations

import re
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from persona_tui.cli.options import (
    Invocation,
    extraction_options,
    override_extraction,
    pass_invocation,
    via_option,
)
from persona_tui.cli.output import echo, json_option, print_json, print_table
from persona_tui.cli.progress import work
from persona_tui.project.about import created_in_words, loudness_in_words

if TYPE_CHECKING:
    from persona_tui.project.project import Project, Source
    from persona_tui.vectors.persona import Calibration


@click.command()
@click.argument("name", required=False)
@click.option(
    "--from-archetype",
    "-a",
    "archetype",
    metavar="A",
    help="From an archetype, yours or the catalogue's; A,B,C creates several under their own names.",
)
@click.option(
    "--description", "-d", metavar="TEXT", help="Who it is; the prompts are saved so that you can edit them."
)
@click.option("--write-prompts", is_flag=True, help="With --description: have a model write the prompts.")
@via_option
@click.option(
    "--prompts",
    "-p",
    metavar="FILE",
    type=click.Path(path_type=Path),
    help="From your own system prompts: .jsonl, or text with an empty line between prompts.",
)
@click.option("--interactive", "-i", is_flag=True, help="Ask for each choice.")
@extraction_options
@pass_invocation
def create(
    invocation: Invocation,
    /,
    name: str | None,
    archetype: str | None,
    description: str | None,
    write_prompts: bool,
    via: tuple[str, str] | None,
    prompts: Path | None,
    interactive: bool,
    **options: Any,
) -> None:
    """Create a persona from an archetype, from a description or from system prompts.

    It is saved before it is calibrated: if you cancel then, you can use it, and calibrate it later.
    """
    project = invocation.project
    override_extraction(project, options)
    if via is not None:
        project.write_via(*via)
    sources: dict[str, Source]
    if interactive:
        sources = dict([_ask(project, name, write_prompts or via is not None)])
    else:
        sources = _sources(name, archetype, description, prompts, write_prompts or via is not None)
    for chosen, source in sources.items():
        project.check_new_name(chosen, source)
    created = work(lambda context: project.create_personas(sources, context))
    for each in created:
        echo(created_in_words(each, "persona-tui calibrate"))
    echo(f"Hear it: persona-tui chat --persona {created[-1].persona.name}")


def _sources(
    name: str | None,
    archetype: str | None,
    description: str | None,
    prompts: Path | None,
    write_prompts: bool,
) -> dict[str, Source]:
    """Return what the options name: one source, or several archetypes, by the names of the personas."""
    from persona_tui.datasets.records import read_prompt_file
    from persona_tui.project.project import FromArchetype, FromDescription, FromPrompts

    context = click.get_current_context()
    options = {"--from-archetype": archetype, "--description": description, "--prompts": prompts}
    given = [option for option, value in options.items() if value is not None]
    if len(given) > 1:
        raise click.UsageError(
            f"{' and '.join(given)} cannot be combined: a persona has one source.", context
        )
    if not given:
        if name is None:
            raise click.UsageError("Missing argument 'NAME'.", context)
        raise click.UsageError(f"One of {', '.join(options)} and --interactive is needed.", context)
    if write_prompts and description is None:
        raise click.UsageError("--write-prompts and --via go with --description.", context)
    if archetype is not None:
        several = [each.strip() for each in archetype.split(",") if each.strip()]
        if name is None:
            return {each: FromArchetype(each) for each in several}
        if len(several) > 1:
            raise click.UsageError("Several archetypes keep their own names: leave NAME out.", context)
        return {name: FromArchetype(archetype)}
    if name is None:
        raise click.UsageError("Missing argument 'NAME'.", context)
    if prompts is not None:
        read = read_prompt_file(prompts.expanduser())
        echo(f"{len(read)} prompt{'s' * (len(read) != 1)} in {prompts}.", err=True)
        return {name: FromPrompts(tuple(read))}
    return {name: FromDescription(str(description), write_prompts)}


def _ask(project: Project, name: str | None, by_model: bool) -> tuple[str, Source]:
    """Guide through name and source; every question says what may be answered."""
    from persona_tui.datasets.records import list_archetypes
    from persona_tui.project.project import FromArchetype, FromDescription

    echo("A persona is a voice that the model can be steered towards.", err=True)
    while True:
        name = name or click.prompt("Its name (letters, digits, _ and -)", err=True)
        if (problem := _name_problem(project, str(name))) is None:
            break
        echo(problem, err=True)
        name = None
    known = list_archetypes(project.workspace)
    if (
        known
        and click.prompt("From a description or an archetype", type=_KIND, default="description", err=True)
        == "archetype"
    ):
        chosen = str(click.prompt("Which one", type=click.Choice(known), err=True))
        return str(name), _shown_and_edited(project, FromArchetype(chosen), None)
    echo("Who is it? One sentence: what it is like, how it speaks, what it cares about.", err=True)
    description = str(click.prompt("Description", err=True))
    source = FromDescription(description, by_model)
    return str(name), source if by_model else _shown_and_edited(project, source, description)


def _shown_and_edited(project: Project, source: Source, description: str | None) -> Source:
    """Show a source's system prompts, and let them be changed in the user's editor."""
    from persona_tui.project.project import FromPrompts

    prompts = project.prompts_of(source)
    echo("These system prompts ask for it:", err=True)
    for number, prompt in enumerate(prompts, start=1):
        echo(f"  {number}. {prompt}", err=True)
    edited = _edited(prompts)
    return source if edited == prompts else FromPrompts(tuple(edited), description)


def _edited(prompts: list[str]) -> list[str]:
    """Return the same, or what the user has made of them, with an empty line between two."""
    from persona_tui.core.errors import DatasetError

    try:
        if not click.confirm("Edit them", default=False, err=True):
            return prompts
    except click.Abort:
        if sys.stdin.isatty():
            raise
        return prompts  # answers from a pipe may end here
    text = click.edit("\n\n".join(prompts) + "\n")
    if text is None:  # closed without saving
        return prompts
    edited = [" ".join(block.split()) for block in re.split(r"\n\s*\n", text) if block.strip()]
    if not edited:
        raise DatasetError("no system prompt is left, so nothing was created")
    return edited


_KIND = click.Choice(["description", "archetype"])


def _name_problem(project: Project, name: str) -> str | None:
    from persona_tui.core.errors import PersonaTuiError

    try:
        taken = project.personas.path_of(name).is_file()
    except PersonaTuiError as error:
        return str(error)
    return f'A persona "{name}" already exists.' if taken else None


@click.command()
@click.argument("name", required=False)
@click.option("--band", is_flag=True, help="Find the layers that suit this model, and fit every persona.")
@click.option(
    "--prompts",
    "-p",
    metavar="FILE",
    type=click.Path(path_type=Path),
    help="System prompts for the character that an imported NAME should sound like.",
)
@click.option("--description", "-d", metavar="TEXT", help="The same, in a sentence.")
@json_option
@pass_invocation
def calibrate(
    invocation: Invocation,
    name: str | None,
    band: bool,
    prompts: Path | None,
    description: str | None,
    as_json: bool,
) -> None:
    """Calibrate NAME: find the gain at which it is clear and still fluent.

    NAME is a persona, or a trait as trait:NAME. Expression: 0 = unsteered, 1 = what its system prompts
    achieve. Fluency drop: nats per token. --band tries bands of layers with the existing personas (at least
    three), keeps the best band for this model, and calibrates every persona for it.
    """
    from persona_tui.datasets.records import read_prompt_file

    project = invocation.project
    if band == (name is not None):
        raise click.UsageError("Give either NAME or --band.", click.get_current_context())
    if name is None:
        _calibrate_band(project, as_json)
        return
    if prompts is not None and description is not None:
        raise click.UsageError("Give either --prompts or --description.", click.get_current_context())
    texts = read_prompt_file(prompts) if prompts is not None else None
    persona = work(lambda context: project.calibrate(name, context, texts, description))
    calibration = persona.calibration
    reason = persona.metadata.get("weak_reason")
    if calibration is None:  # without system prompts, there is no expression
        if as_json:
            print_json({"name": name, **persona.metadata["loudness"], "gain": persona.metadata["gain"]})
        else:
            echo(loudness_in_words(persona))
        return
    if as_json:
        print_json({"name": name, **asdict(calibration), "weak_reason": reason})
        return
    _print_calibration(name, calibration)
    if reason:
        echo(f"This is a weak persona: {reason}.")


def _print_calibration(name: str, calibration: Calibration) -> None:
    _print_curve(calibration)
    layers = ", ".join(str(layer) for layer in calibration.layers)
    quiet = calibration.unguided_gain
    without = "" if quiet is None else f" ({quiet:.2f} without the guide)"
    echo(
        f"\n{name}: {calibration.recipe} at layers {layers}, gain {calibration.gain:.2f}{without}: strength "
        f"{calibration.default_strength:g} gives expression {calibration.expression:.2f}, "
        f"fluency drop {calibration.fluency_drop:+.2f}."
    )
    if calibration.floor_leaves is not None:
        echo(
            f"The floor on the {calibration.floor} axis leaves {calibration.floor_leaves:.0%} of what "
            "it expresses without one."
        )


def _calibrate_band(project: Project, as_json: bool) -> None:
    band, table = work(project.find_band)
    if as_json:
        found = [{"layers": list(layers), "recovered": share} for layers, share in table.items()]
        print_json({"band": list(band), "compared": found})
        return
    rows = [
        [f"{layers[0]}-{layers[-1]}", f"{share:.3f}", "<" if layers == band else ""]
        for layers, share in table.items()
    ]
    print_table(rows, header=["layers", "recovered", ""])


def _print_curve(calibration: Calibration) -> None:
    rows = [
        [
            point["recipe"],
            " ".join(str(layer) for layer in point["layers"]),
            f"{point['coefficient']:.2f}",
            f"{point['expression']:.2f}",
            f"{point['fluency_drop']:+.2f}",
            "<" if point.get("chosen") else "",
        ]
        for point in calibration.curve
    ]
    print_table(rows, header=["recipe", "layers", "coefficient", "expression", "fluency drop", ""])
