"""A list of rows that may be empty."""

from contextlib import suppress

from textual.widgets import OptionList

from persona_tui.tui.sturdy import Sturdy


class RowList(Sturdy, OptionList):
    """Textual's list, in which (8.2) page up and page down raise while no row has been laid out."""

    def action_page_up(self) -> None:
        """Move the mark up by a page."""
        with suppress(KeyError):
            self._move_page(-1)

    def action_page_down(self) -> None:
        """Move the mark down by a page."""
        with suppress(KeyError):
            self._move_page(1)
