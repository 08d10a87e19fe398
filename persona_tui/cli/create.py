"""`create` and `calibrate`: new personas, and how loud they have to be."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from persona_tui.cli.options import extraction_options, override_extraction
from persona_tui.cli.output import json_option, print_json, print_table
from persona_tui.cli.progress import work
from persona_tui.cli.root import Invocation, pass_invocation

if TYPE_CHECKING:
    from persona_tui.project.project import Project, Source
    from persona_tui.vectors.persona import Calibration


@click.command()
@click.argument("name", required=False)
@click.option(
    "--from-archetype", "-a", "archetype", metavar="A", help="From the prompts in datasets/personas."
)
@click.option("--description", "-d", metavar="TEXT", help="Who it is; the model writes the prompts.")
@click.option(
    "--prompts",
    "-p",
    metavar="FILE",
    type=click.Path(path_type=Path),
    help="From system prompts of your own: .jsonl, or text with an empty line between two.",
)
@click.option("--interactive", "-i", is_flag=True, help="Ask for everything.")
@extraction_options
@pass_invocation
def create(
    invocation: Invocation,
    /,
    name: str | None,
    archetype: str | None,
    description: str | None,
    prompts: Path | None,
    interactive: bool,
    **options: Any,
) -> None:
    """Make a persona from an archetype, from a description or from system prompts."""
    from persona_tui.chat.work_commands import describe_created

    project = invocation.project
    override_extraction(project, options)
    source: Source
    if interactive:
        name, source = _ask(project, name)
    elif name is None:
        raise click.UsageError("Missing argument 'NAME'.", click.get_current_context())
    else:
        source = _source(archetype, description, prompts)
    chosen, made_from = name, source
    project.check_new_name(chosen, made_from)
    created = work(lambda context: project.create_persona(chosen, made_from, context))
    click.echo(describe_created(created))
    click.echo(f"Hear it: persona-tui chat --persona {chosen}")


def _source(archetype: str | None, description: str | None, prompts: Path | None) -> Source:
    """What the options name: exactly one source."""
    from persona_tui.datasets.records import read_prompt_file
    from persona_tui.project.project import FromArchetype, FromDescription, FromPrompts

    if sum(given is not None for given in (archetype, description, prompts)) != 1:
        raise click.UsageError(
            "One of --from-archetype, --description, --prompts and --interactive is needed.",
            click.get_current_context(),
        )
    if archetype is not None:
        return FromArchetype(archetype)
    if prompts is not None:
        return FromPrompts(tuple(read_prompt_file(prompts.expanduser())))
    return FromDescription(str(description))


def _ask(project: Project, name: str | None) -> tuple[str, Source]:
    """Guide through name and source; every question says what may be answered."""
    from persona_tui.datasets.records import list_archetypes
    from persona_tui.project.project import FromArchetype, FromDescription

    click.echo("A persona is a voice that the model can be steered towards.", err=True)
    while True:
        name = name or click.prompt("Its name (letters, digits, _ and -)", err=True)
        if (problem := _name_problem(project, str(name))) is None:
            break
        click.echo(problem, err=True)
        name = None
    known = list_archetypes(project.workspace)
    if (
        known
        and click.prompt("From a description or an archetype", type=_KIND, default="description", err=True)
        == "archetype"
    ):
        chosen = click.prompt("Which one", type=click.Choice(known), err=True)
        return str(name), FromArchetype(str(chosen))
    click.echo("Who is it? One sentence: what it is like, how it speaks, what it cares about.", err=True)
    return str(name), FromDescription(str(click.prompt("Description", err=True)))


_KIND = click.Choice(["description", "archetype"])


def _name_problem(project: Project, name: str) -> str | None:
    from persona_tui.core.errors import PersonaTuiError

    try:
        taken = project.personas.path_of(name).is_file()
    except PersonaTuiError as error:
        return str(error)
    return f'There is a persona "{name}" already.' if taken else None


@click.command()
@click.argument("name")
@json_option
@pass_invocation
def calibrate(invocation: Invocation, name: str, as_json: bool) -> None:
    """Find the loudness that is clear and still fluent.

    Expression: 0 = unsteered, 1 = what its system prompts achieve. Fluency drop: nats per token.
    """
    project = invocation.project
    persona = work(lambda context: project.calibrate(name, context))
    calibration = persona.calibration
    assert calibration is not None
    reason = persona.metadata.get("weak_reason")
    if as_json:
        print_json({"name": name, **asdict(calibration), "weak_reason": reason})
        return
    _print_curve(calibration)
    layers = ", ".join(str(layer) for layer in calibration.layers)
    click.echo(
        f"\n{name}: {calibration.recipe} at layers {layers}, gain {calibration.gain:.2f}: strength "
        f"{calibration.default_strength:g} gives expression {calibration.expression:.2f}, "
        f"fluency drop {calibration.fluency_drop:+.2f}."
    )
    if reason:
        click.echo(f"This is a weak persona: {reason}.")


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
