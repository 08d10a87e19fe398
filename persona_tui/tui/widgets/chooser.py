"""Settings on one row: one of a few values, or a value that is changed on a screen of its own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from textual.binding import Binding, BindingType
from textual.content import Content
from textual.message import Message
from textual.reactive import reactive
from textual.widget import Widget

from persona_tui.tui.sturdy import Sturdy

LABEL_WIDTH = 10


class Chooser(Sturdy, Widget, can_focus=True):
    """`axis       ‹ assistant ›`, with a warning of a word or two behind it."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("left", "turn(-1)", "before", id="chooser_before"),
        Binding("right,space,enter", "turn(1)", "after", id="chooser_after"),
        Binding("down", "app.focus_next", "next", show=False, id="chooser_next"),
        Binding("up", "app.focus_previous", "previous", show=False, id="chooser_previous"),
    ]
    DEFAULT_CSS = """
    Chooser { height: 1; width: 1fr; }
    Chooser:focus { background: $boost; text-style: bold; }
    """

    value: reactive[str] = reactive("")
    warning: reactive[str] = reactive("")

    @dataclass
    class Changed(Message):
        """The user chose a value."""

        chooser: Chooser
        value: str

        @property
        def control(self) -> Chooser:
            return self.chooser

    def __init__(self, label: str, values: Sequence[str] = (), *, id: str | None = None) -> None:
        """
        Args:
            label: what it is about.
            values: what there is to choose from.
            id: of the widget.
        """
        super().__init__(id=id)
        self.label = label
        self.values = values

    def action_turn(self, step: int) -> None:
        """Go to another value, round and round."""
        if not self.values:
            self.app.bell()
            return
        place = self.values.index(self.value) if self.value in self.values else -1
        self.post_message(self.Changed(self, self.values[(place + step) % len(self.values)]))

    def on_click(self) -> None:
        """A click is one step on."""
        self.action_turn(1)

    def render(self) -> Content:
        """Return the row."""
        if not self.values:
            return Content.assemble(self.label.ljust(LABEL_WIDTH), " ", (self.value or "—", "dim"))
        return Content.assemble(
            self.label.ljust(LABEL_WIDTH),
            " ",
            ("‹ ", "dim"),
            (self.value, "$text-accent"),
            (" › ", "dim"),
            (self.warning, "$text-warning"),
        )


class FieldRow(Sturdy, Widget, can_focus=True):
    """`layers     4 as calibrated`; enter asks for another value."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("enter,space", "edit", "change", id="field_edit"),
        Binding("down", "app.focus_next", "next", show=False, id="field_next"),
        Binding("up", "app.focus_previous", "previous", show=False, id="field_previous"),
    ]
    DEFAULT_CSS = """
    FieldRow { height: 1; width: 1fr; }
    FieldRow:focus { background: $boost; text-style: bold; }
    """

    value: reactive[str] = reactive("")

    @dataclass
    class EditAsked(Message):
        """The user wants to change the value."""

        field: FieldRow

        @property
        def control(self) -> FieldRow:
            return self.field

    def __init__(self, label: str, *, id: str | None = None) -> None:
        super().__init__(id=id)
        self.label = label

    def action_edit(self) -> None:
        """Ask for another value."""
        self.post_message(self.EditAsked(self))

    def on_click(self) -> None:
        """A click asks, too."""
        self.action_edit()

    def render(self) -> Content:
        """Return the row."""
        text = Content.assemble(self.label.ljust(LABEL_WIDTH), " ", (self.value, "$text-accent"))
        return text.truncate(max(self.size.width, 1), ellipsis=True)
