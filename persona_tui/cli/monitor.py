"""`monitor fit`, `check`, `evaluate` and `list`: self-monitoring from the command line."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from persona_tui.cli.interrupt import quick_interrupt
from persona_tui.cli.misplaced import with_misplaced
from persona_tui.cli.monitor_attacks import compare, critique, redteam
from persona_tui.cli.monitor_errors import print_errors
from persona_tui.cli.monitor_results import dimensions, layers, results, threshold
from persona_tui.cli.options import Invocation, pass_invocation
from persona_tui.cli.output import check_free, echo, force_option, json_option, print_json, print_table
from persona_tui.cli.progress import note, work
from persona_tui.core.documents import json_value
from persona_tui.core.errors import MonitorError, PersonaTuiError

if TYPE_CHECKING:
    from persona_tui.monitors.evaluation import Evaluation
    from persona_tui.monitors.monitor import SelfMonitor
    from persona_tui.monitors.verdict import Verdict
    from persona_tui.project.project import Project

_METHODS = ("tone", "content", "projection", "probe", "consensus")
_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)
_OUTPUT = click.Path(dir_okay=False, path_type=Path)


@click.group()
def monitor() -> None:
    """Detect dangerous requests by the model's own activations."""


for command in (threshold, layers, dimensions, results, redteam, critique, compare):
    monitor.add_command(command)


# Fitting ----------------------------------------------------------------------------------------------------


@monitor.command()
@click.argument("name", default="default")
@click.option(
    "--data",
    type=click.Choice(["training", "large", "both"]),
    default="both",
    show_default=True,
    help="What to fit on: 25 + 25 queries, the larger set's training split, or both.",
)
@click.option("--file", type=_FILE, help="Your own labelled queries instead, as JSON Lines.")
@click.option("--like", type=_FILE, help="Fit on the data of another monitor's file, even another model's.")
@click.option(
    "--method",
    type=click.Choice(["auto", *_METHODS]),
    default="auto",
    show_default=True,
    help="The method to use; auto: the consensus of several layers, unless another has clearly fewer "
    "false alarms. All are fitted.",
)
@click.option(
    "--min-catch",
    type=click.FloatRange(0, 1, min_open=True),
    metavar="SHARE",
    help="Share of plain dangerous requests to catch in cross-validation. [default: 0.985]",
)
@click.option(
    "--max-false-alarms",
    type=click.FloatRange(0, 1),
    metavar="SHARE",
    help="Share of harmless queries, look-alikes included, that may be flagged; instead of --min-catch.",
)
@click.option("--measure/--no-measure", default=True, help="Also measure it on held-out queries.")
@click.option("--seed", type=int, default=0, show_default=True, help="Seed of the cross-validation folds.")
@json_option
@pass_invocation
def fit(
    invocation: Invocation,
    /,
    name: str,
    data: str,
    file: Path | None,
    like: Path | None,
    method: str,
    min_catch: float | None,
    max_false_alarms: float | None,
    measure: bool,
    seed: int,
    as_json: bool,
) -> None:
    """Fit the monitor NAME on the model, replacing one of this name.

    Positions, layers and thresholds are chosen by cross-validation on the training queries, to catch the
    share of plain dangerous requests that --min-catch asks for with as few false alarms as possible.
    """
    from persona_tui.monitors.trade import DEFAULT_CATCH, Trade

    context = click.get_current_context()
    if file is not None and like is not None:
        raise click.UsageError("Use either --file or --like, not both.", context)
    if min_catch is not None and max_false_alarms is not None:
        raise click.UsageError("Use either --min-catch or --max-false-alarms, not both.", context)
    project = invocation.project
    trade = Trade(DEFAULT_CATCH if min_catch is None else min_catch, max_false_alarms)
    made = work(lambda context: project.fit_monitor(name, context, data, file, like, method, seed, trade))
    measured = _measured(project, name) if measure else None
    made = project.monitors.load(name)
    if as_json:
        print_json(made.summary())
        return
    echo(f"Wrote {project.monitors.path_of(name)}")
    _print_methods(made)
    print_errors(made, measured)
    if made.weakness:
        note(f"{made.weakness[0].upper()}{made.weakness[1:]}.")


def _measured(project: Project, name: str) -> Evaluation | None:
    """Return a monitor on the shipped test sets; None if it was fitted on some of them."""
    try:
        return work(lambda context: project.evaluate_monitor(name, context))
    except MonitorError as error:
        note(f"Not measured: {str(error).rstrip('.')}.")
        return None


def _print_methods(made: SelfMonitor) -> None:
    rows = []
    for name, detector in made.detectors.items():
        area = detector.fit["auc"]
        rows.append(
            [
                name,
                detector.position,
                ", ".join(map(str, detector.layers)),
                f"{detector.threshold:.4g}",
                _share(detector.fit.get("direct_caught")),
                _share(detector.fit.get("plain_flagged")),
                _share(detector.fit.get("flagged")),
                f"{area['value']:.3f} [{area['low']:.3f}, {area['high']:.3f}]",
                "used" if name == made.method else "",
            ]
        )
    header = [
        "method",
        "position",
        "layers",
        "threshold",
        "caught",
        "plain flagged",
        "harmless flagged",
        "AUC",
    ]
    echo("By cross-validation on what it is fitted on:")
    print_table(rows, [*header, ""])
    reply = made.reply
    layers = ", ".join(map(str, reply.layers))
    echo(f"Replies are judged by {reply.method}, layers {layers}, threshold {reply.threshold:.4g}.")


def _share(estimate: dict[str, float] | None) -> str:
    return "-" if estimate is None else f"{estimate['value']:.3f}"


# Checking ---------------------------------------------------------------------------------------------------


@monitor.command()
@click.argument("text")
@click.option("--monitor", "name", metavar="NAME", help="Which one. [default: monitoring.monitor]")
@click.option("--method", type=click.Choice(_METHODS), help="Use this method instead of the monitor's own.")
@click.option("--field", metavar="KEY", help="With -: read JSON objects and check the text under this key.")
@json_option
@pass_invocation
def check(
    invocation: Invocation,
    /,
    text: str,
    name: str | None,
    method: str | None,
    field: str | None,
    as_json: bool,
) -> None:
    """Judge TEXT, or every line of stdin if it is - (one JSON object for each).

    A line that cannot be judged gets an object with its `line` and the `error`, and the others go on; the
    exit status is then 1.
    """
    if field is not None and text != "-":
        raise click.UsageError("--field only works with stdin: TEXT must be -.", click.get_current_context())
    if text != "-" and not text.strip():
        raise click.UsageError("The text is empty.", click.get_current_context())
    project = invocation.project
    with quick_interrupt():
        chosen = name or project.settings.monitoring.monitor
        project.monitors.check_exists(chosen)  # before the model is loaded
        loaded = project.monitors.load(chosen, project.model)
        if text == "-":
            _check_lines(loaded, method, field)
        else:
            _print_verdict(loaded.check(text, method), as_json)


def _print_verdict(verdict: Verdict, as_json: bool) -> None:
    if as_json:
        print_json(verdict.as_dict())
        return
    harm = ""
    if verdict.category is not None and verdict.category_probability is not None:
        harm = f"; likeliest {verdict.category}, {verdict.category_probability:.0%}"
    echo(f"{verdict.label}: {verdict.reason}{harm}")


def _check_lines(loaded: SelfMonitor, method: str | None, field: str | None) -> None:
    """One JSON object for each line that is not empty, as soon as it has come."""
    lines = bad = 0
    for number, line in enumerate(_input_lines(), 1):
        if not line.strip():
            continue
        lines += 1
        try:
            verdict = loaded.check(_text_of(line, field), method)
            found: dict[str, Any] = {"line": number, **verdict.as_dict()}
        except PersonaTuiError as error:
            bad += 1
            found = {"line": number, "error": str(error)}
        print_json(found, indent=None)
        sys.stdout.flush()
    if bad:
        note(f"{bad} of {lines} lines could not be judged.")
        click.get_current_context().exit(1)


def _input_lines() -> Iterator[bytes]:
    """Yield the lines of stdin as they are: what is not text is a line's own problem."""
    from persona_tui.datasets.transcripts import bounded_lines

    raw = getattr(sys.stdin, "buffer", None)
    if raw is not None:
        yield from (line for _, line in bounded_lines(raw))
    else:
        yield from (line.encode() for line in sys.stdin)


def _text_of(line: bytes, field: str | None) -> str:
    """Return the text that a line asks about.

    Raises:
        MonitorError: it is not text, or no object with that key.
    """
    try:
        text = line.decode("utf-8-sig").rstrip("\r\n")
    except UnicodeDecodeError:
        raise MonitorError("the line is not UTF-8 text") from None
    if "\0" in text:
        raise MonitorError("the line is not text: it contains null characters")
    if field is None:
        return text
    try:
        value = json_value(text)
    except ValueError as error:
        raise MonitorError(f"the line is not JSON ({getattr(error, 'msg', error)})") from None
    found = value.get(field) if isinstance(value, dict) else None
    if not isinstance(found, str):
        raise MonitorError(f'the line is not an object with a text under "{field}"')
    return found


# Evaluating -------------------------------------------------------------------------------------------------


@monitor.command()
@click.argument("names", nargs=-1, metavar="[NAME]...")
@click.option("--file", type=_FILE, help="Your own labelled queries instead of the shipped sets.")
@click.option("--plot", type=_OUTPUT, help="Draw the first monitor: .png or .svg (the plots extra).")
@click.option("--csv", "csv_file", type=_OUTPUT, help="Also write the table to this file.")
@force_option
@json_option
@pass_invocation
def evaluate(
    invocation: Invocation,
    /,
    names: tuple[str, ...],
    file: Path | None,
    plot: Path | None,
    csv_file: Path | None,
    force: bool,
    as_json: bool,
) -> None:
    """Measure monitors (by default the configured one) on queries they were not fitted on.

    All methods, on every set, with 95% intervals. `words` is a classifier of the words alone, for comparison.
    Results on the shipped sets are kept beside the monitor, as JSON and CSV.
    """
    from persona_tui.core.files import atomic_write_text
    from persona_tui.monitors.evaluation import as_csv, evaluate
    from persona_tui.monitors.plots import check_plot, draw
    from persona_tui.monitors.query_sets import load_sets, set_from

    project = invocation.project
    check_free(plot, csv_file, force=force)
    if plot is not None:
        check_plot(plot)
    chosen = list(dict.fromkeys(names)) or [project.settings.monitoring.monitor]
    for name in chosen:
        project.monitors.check_exists(name)
    sets = load_sets(project.workspace) if file is None else [set_from(file)]
    loaded = [project.monitors.load(name, project.model) for name in chosen]
    done = [work(lambda context, each=each: evaluate(each, sets, context)) for each in loaded]  # type: ignore[misc]
    if file is None:
        for each in done:
            project.monitors.keep_evaluation(each)
    if csv_file is not None:
        atomic_write_text(csv_file, as_csv(done))
    if plot is not None:
        draw(loaded[0], done[0], plot)
    if as_json:
        print_json([each.as_dict() for each in done])
        return
    for of, each in zip(loaded, done, strict=True):
        _print_evaluation(each)
        print_errors(of, each)


def _print_evaluation(evaluation: Evaluation) -> None:
    echo(f"Monitor {evaluation.monitor} of {evaluation.model}, which uses {evaluation.method}.")
    rows = [
        [row["method"], row["set"], str(row["n"])]
        + [_figure(row[name]) for name in ("accuracy", "false_positives", "false_negatives", "area")]
        for row in evaluation.rows()
    ]
    print_table(
        rows, ["method", "set", "n", "accuracy", "safe called dangerous", "dangerous called safe", "AUC"]
    )
    harms = evaluation.categories()
    if harms is not None:
        echo(f"Categories named correctly: {_figure(harms['accuracy'])} of {harms['n']}.")
        if likely := harms.get("likely"):
            echo(f"Where a badge names one: {_figure(likely['accuracy'])} of {likely['n']}.")
    wrong = evaluation.most_wrong(count=5)
    if wrong:
        echo(f"Worst errors with {evaluation.method}:")
        print_table(
            [[f"  {query.label}", f"{query.scores[evaluation.method]:.3g}", query.query] for query in wrong]
        )


def _figure(estimate: dict[str, float] | None) -> str:
    if estimate is None:
        return "-"
    return f"{estimate['value']:.2f} [{estimate['low']:.2f}, {estimate['high']:.2f}]"


# Listing ----------------------------------------------------------------------------------------------------


@monitor.command("list")
@json_option
@pass_invocation
def list_(invocation: Invocation, /, as_json: bool) -> None:
    """List this model's monitors; > marks the one that chats use."""
    project = invocation.project
    found = with_misplaced(project, project.monitors.summaries(), project.monitors.folder)
    if not found:
        project.check_known()
    if as_json:
        print_json(found)
        return
    if not found:
        note("There are no monitors of this model yet. `persona-tui monitor fit` fits one.")
        return
    rows = [_list_row(each, project.settings.monitoring.monitor) for each in found]
    print_table(rows, ["", "monitor", "method", "layers", "fitted on", "AUC", "caught", "created"])
    for each in found:
        if weakness := each.get("weakness"):
            note(f"{weakness[0].upper()}{weakness[1:]}.")


def _list_row(summary: dict[str, Any], used: str) -> list[str]:
    mark = ">" if summary["name"] == used else ""
    if "error" in summary:
        return [mark, summary["name"], "-", "-", "-", "-", "-", summary["error"]]
    queries = sum(source["queries"] for source in summary["data"])
    area = summary["cross_validation"][summary["method"]]["auc"]["value"]
    layers = ", ".join(map(str, summary["layers"]))
    created = str(summary["created"] or "-")[:10]
    caught = f"{summary['caught']['value']:.2f}" if summary["caught"] else "-"
    if summary["weakness"]:
        caught += " (weak)"
    fitted_on = f"{queries} queries"
    return [mark, summary["name"], summary["method"], layers, fitted_on, f"{area:.3f}", caught, created]
