"""Which projections are drawn under the chat."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import ClassVar

from textual import on
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Vertical
from textual.content import Content
from textual.widgets import OptionList, Static
from textual.widgets.option_list import Option

from persona_tui.tui.screens.dialog import Dialog
from persona_tui.tui.sturdy import RowList


class TraceList(RowList):
    """Rows to tick."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("space", "select", "tick", id="traces_tick"),
        Binding("enter", "screen.use", "use it", id="traces_use"),
    ]


_NAMES, _LONGEST_NAME = 14, 34  # cells of the column of names, and of a name that is longer


class TracesScreen(Dialog[list[str]]):
    """A list to tick. The answer is what is ticked, in the order of the list."""

    def __init__(self, offered: Mapping[str, str], chosen: Collection[str]) -> None:
        """
        Args:
            offered: what can be traced, and what it is.
            chosen: what is traced now.
        """
        super().__init__()
        self._offered = offered
        self._ticked = {name for name in chosen if name in offered}

    def compose(self) -> ComposeResult:
        """Return the dialog."""
        with Vertical(classes="dialog") as dialog:
            dialog.border_title = "trace"
            dialog.border_subtitle = "space ticks · enter uses it · esc cancels"
            yield Static("What is drawn under the chat, token by token:", classes="question")
            yield TraceList(*(Option(self._row(name), id=name) for name in self._offered), compact=True)

    def _row(self, name: str) -> Content:
        ticked = name in self._ticked
        return Content.assemble(
            ("[✓] " if ticked else "[ ] ", "$text-accent" if ticked else "dim"),
            Content.styled(_cut(name), "bold" if ticked else ""),
            (f" {self._offered[name]}", "dim"),
        )

    @on(OptionList.OptionSelected)
    def _tick(self, event: OptionList.OptionSelected) -> None:
        event.stop()
        name = event.option_id or ""
        self._ticked ^= {name}
        event.option_list.replace_option_prompt(name, self._row(name))

    def action_use(self) -> None:
        """Take what is ticked."""
        self.dismiss([name for name in self._offered if name in self._ticked])


def _cut(name: str) -> str:
    """Return a name in a column of its own, cut if it would push what it is out of the row."""
    return Content(name).truncate(_LONGEST_NAME, ellipsis=True).plain.ljust(_NAMES)
