"""Projections of a reply's tokens as they come, as bars around a line: the floor, or ordinary replies."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from textual.content import Content
from textual.widget import Widget

from persona_tui.core.workspace import TRAIT_PREFIX
from persona_tui.tui.sturdy import Sturdy

ROWS = 2  # per trace: above the line, and below it
_BARS = "▁▂▃▄▅▆▇█"
_LINE, _LIFTED = "▁", "▴"
_EIGHTHS = len(_BARS)
_KEPT = 2000
_LABEL_WIDTH = 11
_FACTS_WIDTH = 25
_LEAST_SPAN = 1.0  # on either side of the line, so that a calm reply does not look like a storm


@dataclass(frozen=True)
class TracePoint:
    """One token: its projection by trace, and how far the floor lifted it."""

    projections: Mapping[str, float]
    lifted: float = 0.0


@dataclass(frozen=True)
class Line:
    """What a trace is drawn around.

    Attributes:
        at: where it lies, on the trace's own scale.
        is_floor: whether that is a floor that is enforced; else it is the mean of ordinary replies.
        unit: of the scale.
    """

    at: float = 0.0
    is_floor: bool = False
    unit: str = ""


class TraceView(Sturdy, Widget):
    """Two rows per trace: bars above the line reach into the upper one; ▴ marks tokens that were lifted."""

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
        return ROWS * len(self._lines)

    # --- drawing

    def render(self) -> Content:
        """Return the rows."""
        room = max(self.content_size.width - _LABEL_WIDTH - _FACTS_WIDTH, 1)
        shown = list(self._tokens)[-room:]
        rows = [row for name, line in self._lines.items() for row in self._trace(name, line, shown, room)]
        return Content("\n").join(row.truncate(max(self.content_size.width, 1)) for row in rows)

    def _trace(self, name: str, line: Line, shown: Sequence[TracePoint], room: int) -> list[Content]:
        values = [reading.projections.get(name) for reading in shown]
        upper, lower = _chart(values, [reading.lifted > 0 for reading in shown], line, room)
        latest = next((value for value in reversed(values) if value is not None), None)
        label = Content(name.removeprefix(TRAIT_PREFIX)).truncate(_LABEL_WIDTH - 1, ellipsis=True)
        return [
            Content.assemble(
                label.pad_right(_LABEL_WIDTH - label.cell_length),
                upper,
                (f" {latest:+.2f}{line.unit}" if latest is not None else " ·", ""),
            ),
            Content.assemble(" " * _LABEL_WIDTH, lower, (f" {self._fact(name, line)}", "dim")),
        ]

    def _fact(self, name: str, line: Line) -> str:
        if name.startswith(TRAIT_PREFIX):
            return self._reply_score(name)
        if not line.is_floor:
            return "line: ordinary"
        capped = f" · {self._capped}/{self._total} {_LIFTED}" if self._capped else ""
        return f"floor {line.at:+.2f}{capped}"

    def _reply_score(self, name: str) -> str:
        """What the reply scores on a trait so far: the mean over its tokens but the first, the prompt's."""
        values = [reading.projections.get(name) for reading in list(self._tokens)[1:]]
        known = [value for value in values if value is not None]
        return f"reply {sum(known) / len(known):+.2f}" if known else "line: neither side"


def _chart(
    values: Sequence[float | None], lifted: Sequence[bool], line: Line, room: int
) -> tuple[Content, Content]:
    """Return the row above the line and the one below it, each `room` cells wide."""
    known = [abs(value - line.at) for value in values if value is not None]
    span = max([_LEAST_SPAN, *known])
    style = "$text-warning" if line.is_floor else "$text-muted"
    upper, lower = [], []
    for value, was_lifted in zip(values, lifted, strict=True):
        bar = "$text-warning" if was_lifted and line.is_floor else "$text-primary"
        if value is None:
            upper.append((_LINE, f"dim {style}"))
            lower.append((" ", ""))
            continue
        height = round((value - line.at) / span * _EIGHTHS)
        upper.append(_above(height, was_lifted and line.is_floor, bar, style))
        lower.append((_BARS[max(min(_EIGHTHS + height, _EIGHTHS) - 1, 0)], bar))
    rest = room - len(values)
    return (
        Content.assemble(*upper, (_LINE * rest, f"dim {style}")),
        Content.assemble(*lower, " " * rest),
    )


def _above(height: int, lifted: bool, bar: str, line: str) -> tuple[str, str]:
    if lifted:
        return _LIFTED, "bold $text-warning"
    if height <= 0:
        return _LINE, f"dim {line}"
    return _BARS[min(height, _EIGHTHS) - 1], bar
