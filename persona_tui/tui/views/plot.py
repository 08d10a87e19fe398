"""Widgets that draw whatever fits them: a plot of a given size, and a sheet that scrolls."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Sequence

from textual import events
from textual.app import ComposeResult
from textual.containers import VerticalScroll
from textual.content import Content
from textual.widget import Widget
from textual.widgets import Static

from persona_tui.tui.sturdy import Sturdy

Draw = Callable[[int, int], Sequence[Content]]  # given width and height, the rows


class Plot(Sturdy, Widget):
    """Fills its place with what a function draws for that size."""

    DEFAULT_CSS = "Plot { height: 1fr; width: 1fr; }"

    def __init__(self, *, id: str | None = None) -> None:
        super().__init__(id=id)
        self._draw: Draw = lambda width, height: ()

    def show(self, draw: Draw) -> None:
        """Draw this from now on."""
        self._draw = draw
        self.refresh()

    def render(self) -> Content:
        """Return the rows."""
        width, height = max(self.content_size.width, 1), max(self.content_size.height, 1)
        return _page(self._draw(width, height)[:height], width)


class Sheet(Sturdy, VerticalScroll):
    """Text that may be longer than its place; the arrow keys scroll it."""

    DEFAULT_CSS = """
    Sheet { height: 1fr; width: 1fr; scrollbar-size-vertical: 1; scrollbar-gutter: stable; }
    Sheet > Static { height: auto; width: 1fr; }
    """

    def __init__(self, *, id: str | None = None) -> None:
        super().__init__(id=id)
        self._draw: Draw = lambda width, height: ()

    def compose(self) -> ComposeResult:
        """Return what is scrolled."""
        yield Static("", markup=False)

    def show(self, draw: Draw) -> None:
        """Draw this from now on."""
        self._draw = draw
        self._redraw()

    def on_resize(self, _: events.Resize) -> None:
        """Draw it again for the new width."""
        self._redraw()

    def _redraw(self) -> None:
        if self.is_mounted and self.children:
            width = self.scrollable_content_region.width or self.size.width
            rows = self._draw(max(width, 10), max(self.size.height, 1))
            self.query_one(Static).update(_page(rows, max(width, 10)))


def message(text: str) -> Draw:
    """Return what draws a sentence instead of a plot."""
    return lambda width, height: [Content.styled(line, "dim") for line in textwrap.wrap(text, max(width, 10))]


def _page(rows: Sequence[Content], width: int) -> Content:
    return Content("\n").join(row.truncate(width, ellipsis=True) for row in rows)
