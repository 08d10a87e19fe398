"""Projections of a reply's tokens as they come, as a line between what is ordinary and the floor."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from textual.content import Content
from textual.widget import Widget

from persona_tui.core.mix import TRAIT_PREFIX
from persona_tui.tui.sturdy import Sturdy

LEAST_ROWS, MOST_ROWS = 3, 6  # per trace
_LABEL_WIDTH = 11
_FACTS_WIDTH = 25
_LEAST_SPAN = 2.0  # from bottom to top, so that a calm reply does not look like a storm
_KEPT = 2000
_DOTS = 4  # of a braille character, one above the other
_BRAILLE = 0x2800
_LEFT, _RIGHT = (0x40, 0x04, 0x02, 0x01), (0x80, 0x20, 0x10, 0x08)  # its dots, from the bottom up
_ZERO, _FLOOR, _LIFTED = "┈", "─", "▴"
_ORDINARY = "0 ordinary"
_Cell = tuple[str, str]


@dataclass(frozen=True)
class TracePoint:
    """One token: its projection by trace, and how far the floor lifted it."""

    projections: Mapping[str, float]
    lifted: float = 0.0


@dataclass(frozen=True)
class Line:
    """What a trace is drawn against; its zero is what is ordinary.

    Attributes:
        floor: where the floor lies, on the trace's own scale; None = it has none.
        unit: of the scale.
        weak: whether the direction cannot be relied on.
    """

    floor: float | None = None
    unit: str = ""
    weak: bool = False


def _padded(label: Content) -> Content:
    return label.pad_right(_LABEL_WIDTH - label.cell_length)


class TraceView(Sturdy, Widget):
    """A line per trace, with its zero and its floor; ▴ marks tokens that the floor lifted."""

    DEFAULT_CSS = "TraceView { height: auto; width: 1fr; }"

    def __init__(self, *, id: str | None = None) -> None:
        super().__init__(id=id)
        self._tokens: deque[TracePoint] = deque(maxlen=_KEPT)
        self._lines: dict[str, Line] = {}
        self._total = self._capped = 0

    @property
    def readings(self) -> Sequence[TracePoint]:
        """The tokens of the latest reply."""
        return self._tokens

    @property
    def lines(self) -> Mapping[str, Line]:
        """What is drawn, and around which lines."""
        return self._lines

    @property
    def names(self) -> list[str]:
        """What is traced."""
        return list(self._lines)

    @property
    def capped(self) -> int:
        """How many tokens of this reply the floor lifted."""
        return self._capped

    def show(self, lines: Mapping[str, Line]) -> None:
        """Choose what is drawn, and around which lines; nothing hides the trace."""
        taller = len(lines) != len(self._lines)
        self._lines = dict(lines)
        self.display = bool(lines)
        self.refresh(layout=taller)

    def clear(self) -> None:
        """Begin another reply."""
        self._tokens.clear()
        self._total = self._capped = 0
        self.refresh()

    def add(self, reading: TracePoint) -> None:
        """Take one token; `refresh` when there are no more."""
        self._total += 1
        self._capped += reading.lifted > 0
        self._tokens.append(reading)

    def get_content_height(self, *_: object) -> int:
        """Return how many rows the chosen traces need."""
        return self.rows * len(self._lines)

    @property
    def rows(self) -> int:
        """How many rows a trace has on a terminal of this height."""
        room = self.app.size.height // 8 // max(len(self._lines), 1)
        return max(LEAST_ROWS, min(MOST_ROWS, room))

    # --- drawing

    def render(self) -> Content:
        """Return the rows."""
        room = max(self.content_size.width - _LABEL_WIDTH - _FACTS_WIDTH, 1)
        shown = list(self._tokens)[-room:]
        rows = [row for name, line in self._lines.items() for row in self._trace(name, line, shown, room)]
        return Content("\n").join(row.truncate(max(self.content_size.width, 1)) for row in rows)

    def _trace(self, name: str, line: Line, shown: Sequence[TracePoint], room: int) -> list[Content]:
        values = [reading.projections.get(name) for reading in shown]
        lifted = [reading.lifted > 0 and line.floor is not None for reading in shown]
        scale = _Scale.of([value for value in values if value is not None], line.floor, self.rows)
        cells = _chart(values, lifted, line, scale, room)
        latest = next((value for value in reversed(values) if value is not None), None)
        label = Content(name.removeprefix(TRAIT_PREFIX)).truncate(_LABEL_WIDTH - 1, ellipsis=True)
        labels = [label, Content.styled("weak", "$text-warning") if line.weak else Content("")]
        facts = self._facts(name, line, scale)
        said = [f"{latest:+.2f}{line.unit}"] if latest is not None else []
        facts[0] = (" · ".join([*said, _ORDINARY] if not scale.row(0.0) else said), "" if said else "dim")
        return [
            Content.assemble(
                _padded(labels[row]) if row < len(labels) else " " * _LABEL_WIDTH,
                *cells[row],
                " ",
                facts.get(row, ("", "")),
            )
            for row in range(self.rows)
        ]

    def _facts(self, name: str, line: Line, scale: _Scale) -> dict[int, _Cell]:
        """Say on the right what the lines are, by row; the first row is for the latest value."""
        zero = scale.row(0.0)  # in the first row it is told beside the latest value
        if name.startswith(TRAIT_PREFIX):
            reply = {self.rows - 1: (self._reply_score(name), "dim")}
            return {**({zero: (_ORDINARY, "dim")} if zero else {}), **reply}
        found = dict[int, _Cell]()
        if line.floor is not None:
            at = max(scale.row(line.floor), 1)
            if at == zero:  # one row for both lines, and two for their names
                upper = max(at - 1, 1)
                zero, at = (upper, upper + 1) if line.floor <= 0 else (upper + 1, upper)
            capped = f" · {self._capped}/{self._total} {_LIFTED}" if self._capped else ""
            found[at] = (f"floor {line.floor:+.2f}{line.unit}{capped}", "$text-warning")
        if zero:
            found[zero] = (_ORDINARY, "dim")
        return found

    def _reply_score(self, name: str) -> str:
        """Return the reply's score on a trait so far: the mean over all its tokens but the first."""
        values = [reading.projections.get(name) for reading in list(self._tokens)[1:]]
        known = [value for value in values if value is not None]
        return f"reply {sum(known) / len(known):+.2f}" if known else "0 = neither side"


@dataclass(frozen=True)
class _Scale:
    """From projections to dots: `low` is the lowest dot of `rows` rows, `high` the highest."""

    low: float
    high: float
    rows: int

    @classmethod
    def of(cls, values: Sequence[float], floor: float | None, rows: int) -> _Scale:
        marks = [*values, 0.0, *([floor] if floor is not None else [])]
        low, high = min(marks), max(marks)
        missing = max(_LEAST_SPAN - (high - low), 0.0) / 2
        return cls(low - missing, high + missing, rows)

    def dot(self, value: float) -> int:
        """Return which dot a value is, from the bottom."""
        return round((value - self.low) / (self.high - self.low) * (self.rows * _DOTS - 1))

    def row(self, value: float) -> int:
        """Return which row a value is in, from the top."""
        return self.rows - 1 - self.dot(value) // _DOTS


def _chart(
    values: Sequence[float | None], lifted: Sequence[bool], line: Line, scale: _Scale, room: int
) -> list[list[_Cell]]:
    """Return the rows, top to bottom, each of `room` cells."""
    blank: list[list[_Cell]] = [[(" ", "")] * room for _ in range(scale.rows)]
    blank[scale.row(0.0)] = [(_ZERO, "dim")] * room
    if line.floor is not None:
        blank[scale.row(line.floor)] = [(_FLOOR, "dim $text-warning")] * room
    before: int | None = None
    for column, (value, was_lifted) in enumerate(zip(values, lifted, strict=True)):
        if value is None:
            before = None
            continue
        dot = scale.dot(value)
        style = "$text-warning" if was_lifted else "$text-primary"
        for row, character in _column(dot if before is None else before, dot, scale.rows):
            blank[row][column] = (character, style)
        if was_lifted:
            mark = min(scale.row(value) + 1, scale.rows - 1)
            if blank[mark][column][0] in (" ", _ZERO, _FLOOR):
                blank[mark][column] = (_LIFTED, "bold $text-warning")
        before = dot
    return blank


def _column(before: int, dot: int, rows: int) -> list[tuple[int, str]]:
    """Return the characters of one token: on the left a stroke from the dot before, on the right its own."""
    bits = {(dot // _DOTS): _RIGHT[dot % _DOTS]}
    for each in range(min(before, dot), max(before, dot) + 1):
        bits[each // _DOTS] = bits.get(each // _DOTS, 0) | _LEFT[each % _DOTS]
    return [(rows - 1 - row, chr(_BRAILLE + found)) for row, found in bits.items()]
