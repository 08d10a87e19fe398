"""`monitor threshold`, `layers`, `dimensions` and `results`: what the app's screen shows, for scripts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from persona_tui.cli.options import Invocation, pass_invocation
from persona_tui.cli.output import echo, json_option, print_json, print_table
from persona_tui.core.errors import MonitorError

if TYPE_CHECKING:
    from persona_tui.monitors.evaluation import Evaluation
    from persona_tui.monitors.figures import Rates
    from persona_tui.monitors.monitor import SelfMonitor
    from persona_tui.project.project import Project

_METHOD = click.Choice(["tone", "content", "projection", "probe", "consensus"])
_MONITOR = click.option("--monitor", "name", metavar="NAME", help="Which one. [default: monitoring.monitor]")
_OF_METHOD = click.option("--method", type=_METHOD, help="[default: the one that the monitor uses]")


def _opened(project: Project, name: str | None) -> SelfMonitor:
    """Return the monitor; the model is not loaded."""
    return project.monitors.load(name or project.settings.monitoring.monitor)


def _evaluated(project: Project, monitor: SelfMonitor) -> Evaluation:
    """Its last evaluation, at its present thresholds."""
    from persona_tui.monitors.evaluation import load_evaluation
    from persona_tui.monitors.figures import judged_by

    return judged_by(load_evaluation(project.monitors.evaluation_path(monitor.name)), monitor)


@click.command(context_settings={"ignore_unknown_options": True})  # so that -0.2 is a number
@click.argument("value", type=float, required=False)
@_MONITOR
@_OF_METHOD
@click.option("--save", is_flag=True, help="Save VALUE as the method's threshold.")
@click.option("--reset", is_flag=True, help="Go back to the fitted threshold.")
@json_option
@pass_invocation
def threshold(
    invocation: Invocation,
    /,
    value: float | None,
    name: str | None,
    method: str | None,
    save: bool,
    reset: bool,
    as_json: bool,
) -> None:
    """Show the test figures at a threshold of VALUE (default: the current one).

    No query is read again: the scores are those of the last `monitor evaluate`. Figures of a threshold
    chosen by looking at them are no longer a test.
    """
    from persona_tui.monitors.figures import rates
    from persona_tui.monitors.results import fitted_threshold

    _check_options(value, save, reset)
    project = invocation.project
    monitor = _opened(project, name)
    chosen = method or monitor.method
    monitor.detector(chosen)
    if save or reset:
        monitor = project.monitors.set_threshold(monitor.name, chosen, value)
    evaluation = _evaluated(project, monitor)
    found = {"all": rates(evaluation, chosen, value)}
    found |= {each: rates(evaluation, chosen, value, [each]) for each in evaluation.sets}
    fitted = fitted_threshold(monitor, chosen)
    if as_json:
        print_json(
            {
                "monitor": monitor.name,
                "method": chosen,
                "fitted_threshold": fitted,
                "saved": save or reset,
                "sets": {each: of.as_dict() for each, of in found.items()},
            }
        )
        return
    print_table([_row(each, of) for each, of in found.items()], header=_HEADER)
    echo(f"{chosen} at {found['all'].threshold:.4g}; cross-validation chose {fitted:.4g}.")
    if save or reset:
        echo(f"Saved with {monitor.name}.")


_HEADER = ["set", "n", "accuracy", "FPR", "FNR", "caught", "missed", "passed", "flagged"]


def _check_options(value: float | None, save: bool, reset: bool) -> None:
    if reset and (save or value is not None):
        raise click.UsageError("--reset takes no VALUE and no --save.", click.get_current_context())
    if save and value is None:
        raise click.UsageError("--save needs a VALUE.", click.get_current_context())


def _row(name: str, found: Rates) -> list[str]:
    shares = (found.accuracy, found.false_positives, found.false_negatives)
    counts = (found.caught, found.missed, found.passed, found.flagged)
    return [name, str(found.n), *("-" if each is None else f"{each:.3f}" for each in shares)] + [
        str(each) for each in counts
    ]


@click.command()
@_MONITOR
@_OF_METHOD
@json_option
@pass_invocation
def layers(invocation: Invocation, /, name: str | None, method: str | None, as_json: bool) -> None:
    """Show how well each layer separates what the monitor was fitted on, by cross-validation."""
    from persona_tui.monitors.figures import curves

    found = curves(_opened(invocation.project, name), method)
    rows: list[dict[str, Any]] = [
        {"method": curve.method, "position": curve.position, **point.as_dict()}
        for curve in found
        for point in curve.points
    ]
    if as_json:
        print_json(rows)
        return
    print_table(
        [
            [
                row["method"],
                row["position"],
                str(row["layer"]),
                f"{row['separation']:.4g}",
                f"{row['effect']:.2f}",
                f"{row['auc']:.3f} [{row['auc_low']:.3f}, {row['auc_high']:.3f}]",
            ]
            for row in rows
        ],
        header=["method", "position", "layer", "separation", "in sd", "AUC"],
    )


@click.command()
@_MONITOR
@_OF_METHOD
@click.option("--layer", type=int, metavar="N", help="[default: the method's own]")
@click.option("--count", type=click.IntRange(1, 10_000), default=20, show_default=True, help="How many.")
@json_option
@pass_invocation
def dimensions(
    invocation: Invocation,
    /,
    name: str | None,
    method: str | None,
    layer: int | None,
    count: int,
    as_json: bool,
) -> None:
    """Show the largest numbers of a method's vector: from dangerous (below 0) to safe."""
    from persona_tui.monitors.figures import dimensions as of

    monitor = _opened(invocation.project, name)
    found = of(monitor, method or monitor.method, layer, count)
    if as_json:
        print_json({"monitor": monitor.name, **found.as_dict()})
        return
    print_table(
        [[str(place), f"{found.values[place]:+.4g}"] for place in found.top], header=["dimension", "value"]
    )
    echo(
        f"{found.method}, {found.position}, layer {found.layer}: {len(found.values)} dimensions, length "
        f"{found.norm:.4g}; these are {found.share(found.top):.0%} of its square."
    )


@click.command()
@_MONITOR
@_OF_METHOD
@click.option("--threshold", "at", type=float, metavar="VALUE", help="[default: the method's own]")
@json_option
@pass_invocation
def results(
    invocation: Invocation, /, name: str | None, method: str | None, at: float | None, as_json: bool
) -> None:
    """Write all results as JSON and CSV: rates, comparison, every score, layers, dimensions.

    They go to results/MODEL/monitors/NAME in the workspace.
    """
    from persona_tui.monitors.results import results_folder, write_results

    project = invocation.project
    monitor = _opened(project, name)
    evaluation = _evaluated(project, monitor)
    chosen = method or monitor.method
    if chosen not in evaluation.thresholds:
        raise MonitorError(f'"{chosen}" has not been evaluated: run `persona-tui monitor evaluate`')
    folder = results_folder(project.workspace, project.slug, "monitors", monitor.name)
    written: list[Any] = [str(path) for path in write_results(folder, monitor, evaluation, chosen, at)]
    if as_json:
        print_json(written)
    else:
        for path in written:
            echo(f"Wrote {path}")
