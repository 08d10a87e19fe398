"""A list of rows that may be empty."""

from contextlib import suppress
from typing import ClassVar

from textual.binding import Binding, BindingType
from textual.widgets import OptionList

from persona_tui.tui.sturdy import Sturdy


class RowList(Sturdy, OptionList):
    """Textual's list, in which (8.2) page up and page down raise while no row has been laid out.

    Beside the chat letters never come here: they go to the prompt.
    """

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("j", "cursor_down", "down", show=False),
        Binding("k", "cursor_up", "up", show=False),
        Binding("g", "first", "first", show=False),
        Binding("G", "last", "last", show=False),
    ]

    def action_page_up(self) -> None:
        """Move the mark up by a page."""
        with suppress(KeyError):
            self._move_page(-1)

    def action_page_down(self) -> None:
        """Move the mark down by a page."""
        with suppress(KeyError):
            self._move_page(1)
