"""`monitor redteam`, `critique` and `compare`: attacks by rule, what a model makes of replies, models side by
side.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from persona_tui.cli.options import Invocation, pass_invocation
from persona_tui.cli.output import echo, json_option, print_json, print_table
from persona_tui.cli.progress import note, work

if TYPE_CHECKING:
    from persona_tui.monitors.compare import Reader, Transfer


@click.command()
@click.argument("name", required=False)
@click.option(
    "--count",
    type=click.IntRange(4, 1000),
    default=40,
    show_default=True,
    help="Use at most this many requests for each disguise.",
)
@click.option(
    "--seed",
    type=int,
    default=0,
    show_default=True,
    help="Seed for choosing requests, and letters to change.",
)
@json_option
@pass_invocation
def redteam(invocation: Invocation, /, name: str | None, count: int, seed: int, as_json: bool) -> None:
    """Attack a monitor by rule, and say how many requests it still catches.

    Held-out dangerous requests are reworded, padded, misspelled, encoded, put into a story, and asked in
    other languages; the same is done to harmless questions, to see what the disguise alone does.
    """
    from persona_tui.monitors.query_sets import load_sets
    from persona_tui.monitors.redteam import red_team

    project = invocation.project
    chosen = name or project.settings.monitoring.monitor
    project.monitors.check_exists(chosen)
    sets = load_sets(project.workspace)
    monitor = project.monitors.load(chosen, project.model)
    found = work(lambda context: red_team(monitor, sets, count, seed, context))
    if as_json:
        print_json(
            {"monitor": monitor.name, "method": monitor.method, "attacks": [each.as_dict() for each in found]}
        )
        return
    rows = [[each.kind, each.attack, str(each.n), str(each.caught), str(each.flagged)] for each in found]
    print_table(rows, ["kind", "attack", "n", "caught", "harmless flagged"])
    worst = [each for each in found if each.missed and each.attack != "none"]
    for each in sorted(worst, key=lambda result: result.caught.value)[:3]:
        echo(f'Missed by {each.attack}: "{each.missed[0]}"')


@click.command()
@json_option
@pass_invocation
def critique(invocation: Invocation, /, as_json: bool) -> None:
    """Try whether the model can judge replies, which `guard: critique` asks of it.

    Sixteen exchanges whose answer is known: plain ones, refusals, and replies that help to do harm.
    """
    from persona_tui.monitors.critique_trial import trial

    found = trial(invocation.project.model)
    if as_json:
        print_json(found.as_dict())
        return
    echo(f"{found.sentence[0].upper()}{found.sentence[1:]} (AUC {found.area}).")


@click.command()
@click.argument("models", nargs=-1, required=True, metavar="MODEL...")
@click.option(
    "--data",
    type=click.Choice(["training", "large", "both"]),
    default="both",
    show_default=True,
    help="What the vectors are made from.",
)
@json_option
@pass_invocation
def compare(invocation: Invocation, /, models: tuple[str, ...], data: str, as_json: bool) -> None:
    """Compare what models make of dangerous requests, and carry vectors from one to the other.

    Each MODEL is read in turn. Vectors are carried over by a linear map between two models' activations of
    the same neutral texts.
    """
    from persona_tui.monitors.compare import read_model, side_by_side, transfer
    from persona_tui.monitors.query_sets import STANDARD, load_sets

    project = invocation.project
    sets = load_sets(project.workspace)
    readers = [_read(invocation, name, data, read_model) for name in dict.fromkeys(models)]
    rows = side_by_side(readers, sets)
    standard = next(each for each in sets if each.name == STANDARD)
    carried = [transfer(one, other, standard) for one in readers for other in readers if one is not other]
    if as_json:
        print_json({"models": rows, "transfer": [each.as_dict() for each in carried]})
        return
    _print_models(readers, rows)
    if carried:
        _print_transfer(carried)


def _read(invocation: Invocation, name: str, data: str, read_model: Any) -> Reader:
    """Return what a model makes of everything; it is let go of afterwards."""
    from persona_tui.project import models

    note(f"Reading with {name}.")
    project = invocation.project
    there = models.with_model(project, models.ModelChoice(name))
    return work(lambda context: read_model(there.model, project.workspace, data, context))  # type: ignore[no-any-return]


def _print_models(readers: list[Reader], rows: list[dict[str, Any]]) -> None:
    table = []
    for reader, row in zip(readers, rows, strict=True):
        table.append(
            [
                row["model"],
                f"{row['best_layer']} of {row['layers']}",
                f"{row['separation']:.4g}",
                f"{row['magnitude']:.4g}",
                _figure(row.get("standard_content")),
                _figure(row.get("adversarial_content")),
                row["best_method"],
                _figure(row.get(f"standard_{reader.best}")),
                _figure(row.get(f"adversarial_{reader.best}")),
            ]
        )
    of_content = ["model", "best layer", "separation", "magnitude", "standard", "adversarial"]
    print_table(table, [*of_content, "best method", "standard", "adversarial"])
    echo("Layer, separation (of cosines) and magnitude are those of the content vectors.")


def _print_transfer(carried: list[Transfer]) -> None:
    rows = [
        [each.source, each.target, f"{each.explained:.2f}", str(each.area), str(each.own)] for each in carried
    ]
    print_table(rows, ["vectors of", "on", "map explains", "AUC, standard", "AUC of its own"])


def _figure(estimate: dict[str, float] | None) -> str:
    return "-" if estimate is None else f"{estimate['value']:.2f}"
