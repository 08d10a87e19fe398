"""The conversation so far. It follows a reply that is being written until the reader scrolls up."""

from textual.containers import VerticalScroll
from textual.content import Content
from textual.widget import Widget
from textual.widgets import Static

from persona_tui.tui.printable import printable
from persona_tui.tui.widgets.message import MessageView

# Past this many, the oldest leave the tree: what is mounted decides how long a key takes to reach the screen.
MOUNTED = 120


class Note(Static):
    """What the app says in the chat: the answer to a command, or what went wrong."""

    DEFAULT_CSS = "Note { height: auto; width: 1fr; }"


class ChatLog(VerticalScroll, can_focus=False):
    """Messages and notes, oldest first."""

    def on_mount(self) -> None:
        """Follow what is added until the reader scrolls away; coming back to the end follows again."""
        self.anchor()

    def add(self, view: Widget) -> None:
        """Add a message or a note at the end."""
        self.mount(view)
        for old in list(self.query_children("MessageView, Note"))[:-MOUNTED]:
            old.remove()

    def note(self, text: str | Content, *, error: bool = False) -> None:
        """Add a note; `text` is shown as it is, without markup."""
        content = Content(printable(text)) if isinstance(text, str) else text
        self.add(Note(content, classes="-error" if error else ""))

    def last_message(self) -> MessageView | None:
        """Return the latest message that is shown."""
        views = list(self.query_children(MessageView))
        return views[-1] if views else None

    def clear_messages(self) -> None:
        """Forget everything that is shown."""
        self.query_children("MessageView, Note").remove()

    def follow(self) -> None:
        """Go to the end, and follow again."""
        self.anchor()
