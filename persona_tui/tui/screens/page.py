"""A page of text over the chat: help, details of a persona."""

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
        Binding("escape,q,f1,enter", "dismiss", "close", id="page_close")
    ]

    def __init__(self, title: str, text: Content) -> None:
        super().__init__()
        self._title, self._text = title, text

    def compose(self) -> ComposeResult:
        """Return the page."""
        with VerticalScroll(classes="dialog page") as page:
            page.border_title = self._title
            page.border_subtitle = "esc closes"
            yield Static(self._text)

    def on_mount(self) -> None:
        """Let the arrow keys scroll."""
        self.query_one(VerticalScroll).focus()


def page_width(terminal: int) -> int:
    """Return how wide the text of a page is on a terminal of so many columns; see `.page` in the styles."""
    return max(min(_WIDTH, terminal * 96 // 100) - _FRAME, 20)
