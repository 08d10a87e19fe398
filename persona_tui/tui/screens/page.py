"""A page of text over the chat: help, details of a persona."""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import VerticalScroll
from textual.content import Content
from textual.screen import ModalScreen
from textual.widgets import Static

from persona_tui.tui.sturdy import Sturdy

_WIDTH = 100
_FRAME = 8  # border, padding, scrollbar


class PageScreen(Sturdy, ModalScreen[None]):
    """Shows text until it is closed; scrolls when it is long."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape,q,enter", "dismiss", "close", id="page_close"),
        Binding("f1", "more", "more", show=False, id="page_more"),
    ]

    def __init__(
        self,
        title: str,
        text: Content | Callable[[int], Content],
        more: Callable[[], PageScreen] | None = None,
    ) -> None:
        """
        Args:
            title: of the page.
            text: what it shows; or what makes that for a width in cells.
            more: makes the page that f1 goes on to; None = f1 closes this one.
        """
        super().__init__()
        self._title, self._text, self._more = title, text, more

    def compose(self) -> ComposeResult:
        """Return the page."""
        with VerticalScroll(classes="dialog page") as page:
            page.border_title = self._title
            page.border_subtitle = "esc closes" + (" · f1 what the words mean" if self._more else "")
            yield Static(self._drawn())

    def on_resize(self) -> None:
        """Draw the page for the new width."""
        for page in self.query(Static):
            page.update(self._drawn())

    def _drawn(self) -> Content:
        return self._text(page_width(self.app.size.width)) if callable(self._text) else self._text

    def on_mount(self) -> None:
        """Let the arrow keys scroll."""
        self.query_one(VerticalScroll).focus()

    def action_more(self) -> None:
        """Go on to the next page, or close this one."""
        if self._more is not None:
            self.app.switch_screen(self._more())
        else:
            self.dismiss()


def page_width(terminal: int) -> int:
    """Return how wide the text of a page is on a terminal of so many columns; see `.page` in the styles."""
    return max(min(_WIDTH, terminal * 96 // 100) - _FRAME, 20)
