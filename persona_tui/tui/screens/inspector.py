"""The inspector where there is no room for it beside the chat."""

from typing import ClassVar

from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.screen import ModalScreen

from persona_tui.tui.sturdy import Sturdy
from persona_tui.tui.widgets.inspector import Inspector


class InspectorScreen(Sturdy, ModalScreen[None]):
    """Lies over the chat until it is closed; replies go on being written below it."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape,q,f7", "dismiss", "close", id="inspect_close"),
        Binding("f1", "app.show_help", "help", show=False, id="inspect_help"),
    ]
    DEFAULT_CSS = """
    InspectorScreen Inspector {
        width: 96%;
        max-width: 110;
        height: 92%;
        border: round $border;
        background: $surface;
        padding: 0 2;
    }
    """

    def compose(self) -> ComposeResult:
        """Return the inspector."""
        inspector = Inspector()
        inspector.border_subtitle = (
            "arrows token · d direction · l h c lowest, highest, capped · enter other words · esc"
        )
        yield inspector

    def on_mount(self) -> None:
        """Let the arrow keys move the cursor."""
        self.set_focus(self.inspector.view)

    @property
    def inspector(self) -> Inspector:
        """The inspector itself."""
        return self.query_one(Inspector)
