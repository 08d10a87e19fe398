"""What every dialog shares: escape leaves it, f1 tells its keys."""

from typing import ClassVar, TypeVar

from textual.binding import Binding, BindingType
from textual.screen import ModalScreen

from persona_tui.tui.sturdy import Sturdy

Answer = TypeVar("Answer")


class Dialog(Sturdy, ModalScreen[Answer | None]):
    """Lies over the chat until it is answered; None = it was left without an answer."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape,q", "leave", "leave", id="dialog_leave"),
        Binding("f1", "app.show_help", "help", id="dialog_help"),
        Binding("ctrl+t,ctrl+z", "app.undelete", "bring back", show=False, id="dialog_undelete"),
        Binding("down", "app.focus_next", "next", show=False, id="dialog_next"),
        Binding("up", "app.focus_previous", "previous", show=False, id="dialog_previous"),
    ]

    def action_leave(self) -> None:
        """Close it without an answer."""
        self.dismiss(None)
