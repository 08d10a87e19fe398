"""The queries that are farthest on the wrong side of the threshold."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

from textual.app import ComposeResult
from textual.content import Content

from persona_tui.core.documents import printable
from persona_tui.monitors.evaluation import ScoredQuery
from persona_tui.tui.views.plot import Sheet, message
from persona_tui.tui.views.plots import number
from persona_tui.tui.views.scores import STYLES
from persona_tui.tui.views.view import View

COUNT = 40


class WrongView(View):
    """The most wrong first, each with its score."""

    TITLE = "wrong"

    def compose(self) -> ComposeResult:
        """Return the list."""
        yield Sheet(id="wrong")

    def empty(self, why: str) -> None:
        """There is nothing to show."""
        self.query_one(Sheet).show(message(why))

    def show(self, wrong: Sequence[ScoredQuery], method: str) -> None:
        """Show these."""
        if wrong:
            self.query_one(Sheet).show(lambda width, height: _rows(wrong, method, width))
        else:
            self.empty("Nothing is on the wrong side of the threshold.")


def _rows(wrong: Sequence[ScoredQuery], method: str, width: int) -> list[Content]:
    lines = []
    for query in wrong:
        called = "dangerous" if query.label == "safe" else "safe"
        about = f"{query.set}, {(query.category or query.kind).replace('_', ' ')}"
        lines.append(
            Content.assemble(
                (f"{query.label} called {called}", STYLES.get(query.label, "")),
                f" {number(query.scores[method])} ",
                (f"{about}", "dim"),
            )
        )
        lines += [Content(f"  {line}") for line in textwrap.wrap(printable(query.query), max(width - 3, 10))]
    return lines
