"""A text area, for the prompt and for longer texts."""

from __future__ import annotations

from textual.geometry import Offset
from textual.widgets import TextArea

from persona_tui.tui.sturdy import Sturdy


class TextPad(Sturdy, TextArea):
    """Textual's, in which (8.2) undoing a long paste raises.

    Undoing shortens the text first and moves the cursor back last. If the scrollbar goes in between, the
    cursor is looked for in a line that does not exist any more; it will be scrolled to once it has moved.
    """

    def scroll_cursor_visible(self, center: bool = False, animate: bool = False) -> Offset:
        """Scroll to the cursor, unless its line is gone."""
        if self.cursor_location[0] >= self.document.line_count:
            return Offset()
        return super().scroll_cursor_visible(center, animate)
