"""What each turn of the conversation scores, and where it drifts to."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from textual.app import ComposeResult
from textual.content import Content

from persona_tui.core.documents import printable
from persona_tui.traits.results import ROLES
from persona_tui.traits.score import TurnScore, drift_of
from persona_tui.tui.views.plot import Plot, Sheet, message
from persona_tui.tui.views.plots import bars, hanging, repeated, squeezed
from persona_tui.tui.views.view import View

_WHO = {"user": "you", "assistant": "model"}
_LABEL = 13
_LEAST_SPAN = 1.0  # so that a calm conversation does not look like a storm
_CELL = 8

Broken = Collection[tuple[int | None, str]]  # turn and trait of breaches


class TurnsView(View):
    """One trait as bars over the turns, and all of them as numbers."""

    TITLE = "turns"
    DEFAULT_CSS = """
    TurnsView Plot { height: 7; }
    TurnsView Sheet { min-height: 4; }
    """

    def compose(self) -> ComposeResult:
        """Return the parts."""
        yield Plot(id="drift")
        yield Sheet(id="turn-table")

    def empty(self, why: str) -> None:
        """There is nothing to show."""
        self.query_one(Plot).show(message(why))
        self.query_one(Sheet).show(message(""))

    def show(self, turns: Sequence[TurnScore], name: str, names: Sequence[str], broken: Broken) -> None:
        """Show scores.

        Args:
            turns: of the conversation.
            name: the trait that is drawn.
            names: of all traits.
            broken: the scores that a policy does not allow.
        """
        self.query_one(Plot).show(lambda width, height: _drift(turns, name, width))
        self.query_one(Sheet).show(lambda width, height: _table(turns, name, names, broken, width))


def _drift(turns: Sequence[TurnScore], name: str, width: int) -> list[Content]:
    rows = [
        Content.assemble((f"{name} by turn", "bold"), (" · 1 = its high examples, −1 = its low ones", "dim"))
    ]
    for role in ROLES:
        scores = [turn.scores[name] for turn in turns if turn.role == role]
        span = max([_LEAST_SPAN, *map(abs, scores)])
        room = max(width - _LABEL - 1, 8)
        # Few turns do not become few huge blocks: a turn has four cells at most.
        cells, _ = repeated(squeezed(scores, room), min(room, 4 * max(len(scores), 1)))
        drift = drift_of(turns, role).get(name)
        said = f"drift {drift:+.2f}" if drift is not None else "one turn" if scores else "nothing"
        drawn = [*bars(cells, 2, span, "$text-success"), *hanging(cells, 1, span, "$text-error")]
        labels = [_WHO[role], said]
        for label, row in zip([*labels, ""], drawn, strict=True):
            rows.append(Content.assemble((label.ljust(_LABEL), "" if label == _WHO[role] else "dim"), row))
    return rows


def _table(
    turns: Sequence[TurnScore], name: str, names: Sequence[str], broken: Broken, width: int
) -> list[Content]:
    ordered = [name, *(other for other in names if other != name)]
    head = "".join(f"{_short(each):>{_CELL}}" for each in ordered)
    rows = [Content.styled(f"{'turn':<5}{'':<6}{head}  text", "dim")]
    for turn in turns:
        parts: list[tuple[str, str]] = [(f"{turn.turn:<5}", "dim"), (f"{_WHO[turn.role]:<6}", "")]
        for each in ordered:
            breaks = turn.role == "assistant" and (turn.turn, each) in broken
            text = "n/a" if each in turn.outside else f"{turn.scores[each]:+.2f}{'!' if breaks else ''}"
            parts.append(
                (f"{text:>{_CELL}}", "bold $text-error" if breaks else "bold" if each == name else "")
            )
        said = " ".join(printable(turn.text).split())
        rows.append(Content.assemble(*parts, (f"  {said}", "dim")))
    if broken:
        rows.append(Content.styled("! is beyond a limit", "$text-error"))
    return rows


def _short(name: str) -> str:
    return name[: _CELL - 1].rstrip("_")
