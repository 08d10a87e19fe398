"""All methods on all test sets."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from textual.app import ComposeResult
from textual.content import Content

from persona_tui.tui.views.plot import Sheet, message
from persona_tui.tui.views.plots import percent
from persona_tui.tui.views.view import View

_WIDE = 70  # cells from which on intervals have their place
_BETWEEN = 13  # cells for one


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
    head = f"{'':2}{'method':<11}{'set':<12}{'n':>4}{'right':>7}{'':<{_BETWEEN if intervals else 0}}"
    lines = [Content.styled(f"{head}{'FPR':>7}{'FNR':>7}{'AUC':>6}", "dim")]
    before = ""
    for row in rows:
        name = row["method"]
        if before and name != before:
            lines.append(Content(""))
        label = name if name != before else ""
        mark = "> " if name == used and label else "  "
        text = f"{mark}{label:<11}{row['set']:<12}{row['n']:>4}{_accuracy(row, intervals)}{_rates(row)}"
        lines.append(Content.styled(text, "bold" if name == method else ""))
        before = name
    said = ("right: accuracy; FPR: safe called dangerous; FNR:", "dangerous called safe; > is in use.")
    words = "words: a classifier of the words, without the model."
    lines += [Content(""), *(Content.styled(line, "dim") for line in (*said, words))]
    return lines


def _accuracy(row: Mapping[str, Any], intervals: bool) -> str:
    found = row["accuracy"]
    value = percent(found and found["value"])
    between = f" {_between(found)}" if found else ""
    return f"{value:>7}{f'{between:<{_BETWEEN}}' if intervals else ''}"


def _between(found: Mapping[str, float]) -> str:
    return f"[{found['low']:.0%}, {found['high']:.0%}]"


def _rates(row: Mapping[str, Any]) -> str:
    values = [row[name] and row[name]["value"] for name in ("false_positives", "false_negatives")]
    area = f"{row['area']['value']:.3f}" if row["area"] is not None else "–"
    return f"{percent(values[0]):>7}{percent(values[1]):>7}{area:>6}"
