"""A picture in a terminal's cells: lines of braille dots, with characters over them."""

from __future__ import annotations

from textual.content import Content

from persona_tui.tui.views.plots import joined

ACROSS, DOWN = 2, 4  # dots of a cell
_BRAILLE = 0x2800
_BITS = ((0x01, 0x02, 0x04, 0x40), (0x08, 0x10, 0x20, 0x80))


class Canvas:
    """So many cells. Columns and rows count from the top left; what lies outside is left out."""

    def __init__(self, width: int, height: int) -> None:
        self.width, self.height = width, height
        self._dots: dict[tuple[int, int], tuple[int, str]] = {}  # by cell: bits, style
        self._cells: dict[tuple[int, int], tuple[str, str]] = {}
        self._grounds: dict[int, str] = {}

    def dot(self, x: float, y: float, style: str) -> None:
        """Set a dot; cells have `ACROSS` of them side by side, and `DOWN` one above the other."""
        column, row = int(x) // ACROSS, int(y) // DOWN
        bits, _ = self._dots.get((column, row), (0, ""))
        self._dots[column, row] = bits | _BITS[int(x) % ACROSS][int(y) % DOWN], style

    def line(self, start: tuple[float, float], end: tuple[float, float], style: str) -> None:
        """Draw a line from dot to dot."""
        steps = max(int(abs(end[0] - start[0])), int(abs(end[1] - start[1])), 1)
        for step in range(steps + 1):
            share = step / steps
            self.dot(start[0] + (end[0] - start[0]) * share, start[1] + (end[1] - start[1]) * share, style)

    def put(self, column: int, row: int, text: str, style: str = "") -> None:
        """Write characters, one cell wide each, over whatever is there."""
        for place, character in enumerate(text):
            self._cells[column + place, row] = (character, style)

    def ground(self, row: int, style: str) -> None:
        """Give a row another background."""
        self._grounds[row] = style

    def rule(self, row: int, character: str, style: str) -> None:
        """Draw a line across, under everything else."""
        for column in range(self.width):
            self._cells.setdefault((column, row), (character, style))

    def pole(self, column: int, character: str, style: str) -> None:
        """Draw a line from top to bottom, under everything else."""
        for row in range(self.height):
            self._cells.setdefault((column, row), (character, style))

    def rows(self) -> list[Content]:
        """Return the rows, top to bottom."""
        return [
            joined([self._cell(column, row) for column in range(self.width)]) for row in range(self.height)
        ]

    def _cell(self, column: int, row: int) -> tuple[str, str]:
        ground = self._grounds.get(row, "")
        character, style = self._cells.get((column, row), (" ", ""))
        if (column, row) in self._dots and character in _UNDER:
            bits, style = self._dots[column, row]
            character = chr(_BRAILLE + bits)
        return character, f"{style} {ground}".strip()


_UNDER = " ┈┊─╌"  # what dots cover
