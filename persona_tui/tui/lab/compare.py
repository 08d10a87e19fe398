"""All methods on all test sets."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from textual.app import ComposeResult
from textual.content import Content

from persona_tui.tui.lab.drawn import Sheet, message
from persona_tui.tui.lab.plots import percent
from persona_tui.tui.lab.view import View

_WIDE = 74  # cells from which on intervals have their place


class CompareView(View):
    """One row for each method and set."""

    TITLE = "methods"

    def compose(self) -> ComposeResult:
        """Return the table."""
        yield Sheet(id="comparison")

    def empty(self, why: str) -> None:
        """There is nothing to show."""
        self.query_one(Sheet).show(message(why))

    def show(self, rows: list[dict[str, Any]], method: str, used: str) -> None:
        """Show a comparison.

        Args:
            rows: as `Evaluation.rows` has them.
            method: the one that is looked at; it stands out.
            used: the one that the monitor uses.
        """
        self.query_one(Sheet).show(lambda width, height: _table(rows, method, used, width))


def _table(rows: list[dict[str, Any]], method: str, used: str, width: int) -> list[Content]:
    intervals = width >= _WIDE
    head = f"{'':2}{'method':<11}{'set':<12}{'n':>4}  {'accuracy':<{18 if intervals else 7}}"
    lines = [Content.styled(f"{head}{'FPR':>7}{'FNR':>8}{'AUC':>7}", "dim")]
    before = ""
    for row in rows:
        name = row["method"]
        if before and name != before:
            lines.append(Content(""))
        label = name if name != before else ""
        mark = "> " if name == used and label else "  "
        text = f"{mark}{label:<11}{row['set']:<12}{row['n']:>4}  {_accuracy(row, intervals)}{_rates(row)}"
        lines.append(Content.styled(text, "bold" if name == method else ""))
        before = name
    lines += [Content(""), Content.styled("> is in use. FPR: safe called dangerous; FNR: dangerous", "dim")]
    lines.append(Content.styled("called safe. words: a classifier of the words, no model.", "dim"))
    return lines


def _accuracy(row: Mapping[str, Any], intervals: bool) -> str:
    found = row["accuracy"]
    if found is None:
        return "–".ljust(18 if intervals else 7)
    value = f"{found['value']:.1%}"
    return f"{value:<6}{_between(found):<12}" if intervals else value.ljust(7)


def _between(found: Mapping[str, float]) -> str:
    return f"[{found['low']:.0%}, {found['high']:.0%}]"


def _rates(row: Mapping[str, Any]) -> str:
    values = [row[name] and row[name]["value"] for name in ("false_positives", "false_negatives")]
    area = f"{row['area']['value']:.3f}" if row["area"] is not None else "–"
    return f"{percent(values[0]):>7}{percent(values[1]):>8}{area:>7}"
