"""A value on one row that is changed on a screen of its own."""

from dataclasses import dataclass
from typing import ClassVar

from textual.binding import Binding, BindingType
from textual.content import Content
from textual.message import Message
from textual.reactive import reactive
from textual.widget import Widget

from persona_tui.tui.sturdy import Sturdy
from persona_tui.tui.widgets.chooser import LABEL_WIDTH


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

        field: "FieldRow"

        @property
        def control(self) -> "FieldRow":
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
