"""`init` and `extract-axes`: what a model needs before it can be steered."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from persona_tui.cli.options import Invocation, extraction_options, override_extraction, pass_invocation
from persona_tui.cli.output import echo, print_table
from persona_tui.cli.progress import work
from persona_tui.project.about import axes_in_words, prepared_in_words

if TYPE_CHECKING:
    from persona_tui.extraction.personas import Refusals
    from persona_tui.project.project import Project
    from persona_tui.vectors.axes import Axes
    from persona_tui.vectors.persona import PersonaVector


_refusals_option = click.option(
    "--refusals",
    type=click.Choice(["own", "given"]),
    default="own",
    show_default=True,
    help="What the safety axis is made of: refusals that the model writes, or given ones that it reads.",
)


@click.command()
@click.option(
    "--roles",
    metavar="all|A,B,...",
    help="Also keep the mean of archetypes, the catalogue's too: points of a map of persona space.",
)
@extraction_options
@_refusals_option
@pass_invocation
def init(invocation: Invocation, /, roles: str | None, refusals: Refusals, **options: Any) -> None:
    """Prepare what is missing: data sets, axes, archetypes.

    What is already there stays; extract-axes extracts the axes again. --roles asks at most five short replies
    of each archetype.
    """
    project = invocation.project
    override_extraction(project, options)
    wanted = None if roles == "all" else [each.strip() for each in (roles or "").split(",") if each.strip()]
    done = work(lambda context: project.init(context, refusals, wanted))
    echo(prepared_in_words(project, done))


@click.command("extract-axes")
@extraction_options
@_refusals_option
@pass_invocation
def extract_axes(invocation: Invocation, /, refusals: Refusals, **options: Any) -> None:
    """Extract the axes and the archetypes' personas again.

    Prints what capping on each axis costs: the change of the answers' log-probability per token, in nats, on
    prompts to refuse and on ordinary ones. Near 0 is harmless; far below 0, refusals are lost. Then, at the
    last layer and measured from halfway between both: the mean of an axis' positive side (answers to safe
    prompts; the Assistant), of its negative side (refusals; personas), and the floor.
    """
    project = invocation.project
    override_extraction(project, options)
    axes, personas = work(lambda context: project.extract_axes(context, refusals))
    _print_axes(project, axes)
    _print_personas(personas)


def _print_axes(project: Project, axes: Axes) -> None:
    echo(f"Axes of {project.settings.model.name}, layers {axes.layers[0]} to {axes.layers[-1]}.")
    settings = project.settings
    measured = axes.metadata.get("capping") or {}
    rows = [
        [
            name,
            f"{measured[name]['unsafe']:+.3f}" if name in measured else "-",
            f"{measured[name]['safe']:+.3f}" if name in measured else "-",
            *_readings(axes, name, settings.steering.safety_floor_percentile),
            ", ".join(
                [
                    *(["default"] if name == axes.default_capping_axis else []),
                    *(["weak"] if axes.weakness(name) else []),
                ]
            ),
        ]
        for name in axes.names
    ]
    print_table(rows, header=["capping axis", "unsafe", "safe", "+ side", "- side", "floor", ""])
    echo(axes_in_words(axes))


def _readings(axes: Axes, name: str, percentile: float) -> list[str]:
    """Return where both sides of an axis and its floor lie, from halfway between the sides, at the last
    layer.
    """
    layer = axes.layers[-1]
    sides, centre = axes.sides(name, layer), axes.centre(name, layer)
    if sides is None or centre is None:
        return ["-", "-", "-"]
    return [f"{each - centre:+.2f}" for each in (*sides, axes.floor(name, layer, percentile))]


def _print_personas(personas: list[PersonaVector]) -> None:
    if personas:
        echo()
        rows = [_persona_row(persona) for persona in personas]
        print_table(rows, header=["persona", "expression", "fluency drop", "floor leaves", ""])


def _persona_row(persona: PersonaVector) -> list[str]:
    calibration = persona.calibration
    if calibration is None:
        return [persona.name, "-", "-", "-", "not calibrated"]
    left = "-" if calibration.floor_leaves is None else f"{calibration.floor_leaves:.0%}"
    figures = [f"{calibration.expression:.2f}", f"{calibration.fluency_drop:+.2f}", left]
    return [persona.name, *figures, str(persona.metadata.get("weak_reason") or "")]
