"""Which kinds of queries a monitor is wrong about, and which requests it misses."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from persona_tui.cli.output import echo, print_table

if TYPE_CHECKING:
    from persona_tui.monitors.evaluation import Evaluation
    from persona_tui.monitors.monitor import SelfMonitor

_NAMED = 8  # requests that are named, of either sort


def print_errors(monitor: SelfMonitor, evaluation: Evaluation | None) -> None:
    """Print the share of wrong verdicts by kind of query, and the dangerous ones that pass.

    Args:
        monitor: judges with the method and the threshold that it uses.
        evaluation: of it, on queries that it was not fitted on; None = there is none.
    """
    fit = monitor.detector().fit
    fitted = _by_kind(fit.get("kinds") or [])
    held_out = _by_kind(evaluation.errors() if evaluation is not None else [])
    if not fitted and not held_out:
        return
    echo(f"Errors of {monitor.method}, by kind of query:")
    rows = [
        [kind, label, *_cells(fitted.get((kind, label))), *_cells(held_out.get((kind, label)))]
        for kind, label in dict.fromkeys([*fitted, *held_out])
    ]
    print_table(rows, ["kind", "label", "fitted on", "cross-validated", "held out", "wrong"])
    _name("Missed in cross-validation", fit.get("missed") or [])
    if evaluation is not None:
        _name("Missed among the held-out ones", [each.query for each in evaluation.missed()])


def _by_kind(kinds: list[dict[str, Any]]) -> dict[tuple[str, str], dict[str, Any]]:
    return {(each["kind"] or "-", each["label"]): each for each in kinds}


def _cells(found: dict[str, Any] | None) -> list[str]:
    if found is None:
        return ["-", "-"]
    wrong = found["wrong"]
    return [str(found["n"]), f"{wrong['value']:.2f} [{wrong['low']:.2f}, {wrong['high']:.2f}]"]


def _name(what: str, queries: list[str]) -> None:
    if queries:
        more = f", and {len(queries) - _NAMED} more" if len(queries) > _NAMED else ""
        echo(f"{what}: " + ", ".join(f'"{query}"' for query in queries[:_NAMED]) + f"{more}.")
