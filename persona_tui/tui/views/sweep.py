"""One prompt at several strengths: side by side where there is room, else one below the other."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import zip_longest
from typing import TYPE_CHECKING

from textual.app import ComposeResult
from textual.content import Content

from persona_tui.core.documents import printable
from persona_tui.core.wording import differences, in_pieces
from persona_tui.tui.blocks import DIFFERS
from persona_tui.tui.views.plot import Sheet, message
from persona_tui.tui.views.view import View

if TYPE_CHECKING:
    from persona_tui.pictures.sweep import SweepRow

_GAP = 2
_NARROWEST = 20  # cells of a column
_TEXT = 100  # cells of a line of text, at most
_REPEATS = 0.2  # the share of repeated phrases from which on a text is broken


class SweepView(View):
    """The replies with their figures; the strength that is spoken with now is marked."""

    TITLE = "strengths"

    def compose(self) -> ComposeResult:
        """Return the parts."""
        yield Sheet(id="sweep")

    def empty(self, why: str) -> None:
        """There is nothing to show."""
        self.query_one(Sheet).show(message(why))

    def show(self, rows: Sequence[SweepRow], now: float) -> None:
        """Show replies.

        Args:
            rows: one for each strength.
            now: the strength that is spoken with.
        """
        self.query_one(Sheet).show(lambda width, height: sweep_rows(rows, width, now))


def sweep_rows(rows: Sequence[SweepRow], width: int, now: float) -> list[Content]:
    """Return the replies in as many columns as there are strengths, if `width` allows; else stacked.

    Words that the unsteered reply does not have there are coloured.
    """
    plain = next((printable(row.text) for row in rows if not row.strength), None)
    room = (width - _GAP * (len(rows) - 1)) // max(len(rows), 1)
    if room < _NARROWEST:
        return _stacked(rows, min(width, _TEXT), now, plain)
    columns = [_column(place, row, min(room, _TEXT), now, plain) for place, row in enumerate(rows, 1)]
    gap, blank = Content(" " * _GAP), Content("")
    return [
        gap.join((line or blank).pad_right(room - (line or blank).cell_length) for line in lines)
        for lines in zip_longest(*columns)
    ]


def _stacked(rows: Sequence[SweepRow], width: int, now: float, plain: str | None) -> list[Content]:
    lines: list[Content] = []
    for place, row in enumerate(rows, 1):
        lines += _headed(
            _title(place, row, now), [Content.styled(each, _style(row)) for each in row.figures], width
        )
        lines += [*_text(row, width, plain), Content("")]
    return lines


def _headed(title: Content, figures: Sequence[Content], width: int) -> list[Content]:
    """Return a title with its figures, in one line or in more; none of them is divided."""
    lines, between = [title], Content("  ")
    for figure in figures:
        longer = Content.assemble(lines[-1], between, figure)
        if longer.cell_length <= width:
            lines[-1] = longer
        else:
            lines.append(Content.assemble("  ", figure))
        between = Content.styled(" · ", "dim")
    return lines


def _column(place: int, row: SweepRow, width: int, now: float, plain: str | None) -> list[Content]:
    figures = [Content.styled(figure, _style(row)).truncate(width) for figure in row.figures]
    return [_title(place, row, now).truncate(width), *figures, Content(""), *_text(row, width, plain)]


def _title(place: int, row: SweepRow, now: float) -> Content:
    mark = (" ← now", "$text-accent") if abs(row.strength - now) < 0.005 else ("", "")
    strength = (f"strength {row.strength:.2f}", "bold $text-primary")
    return Content.assemble((f"{place} ", "dim"), strength, mark)


def _style(row: SweepRow) -> str:
    return "$text-warning" if row.repetition > _REPEATS else "$text-muted"


def _text(row: SweepRow, width: int, plain: str | None) -> list[Content]:
    if not row.text:
        return [Content.styled("(no word)", "dim")]
    text = printable(row.text)
    spans = differences(plain, text)[1] if plain else ()
    pieces = ((piece, DIFFERS if differs else "") for piece, differs in in_pieces(text, spans))
    return Content.assemble(*pieces).wrap(width)
