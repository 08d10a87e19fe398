"""One message of the conversation: a single widget, whether it is being written or finished."""

from textual.content import Content
from textual.geometry import Size
from textual.selection import Selection
from textual.widget import Widget

from persona_tui.tui.markdown import MarkdownText
from persona_tui.tui.printable import printable


class MessageView(Widget):
    """A heading (who speaks, and how) and the text, as Markdown for replies and as it is for the user."""

    DEFAULT_CSS = """
    MessageView { height: auto; width: 1fr; }
    """

    def __init__(self, role: str, heading: Content, text: str = "") -> None:
        """
        Args:
            role: "user" or "assistant".
            heading: the first line.
            text: what has been said so far.
        """
        super().__init__(classes=f"-{role}")
        self.role = role
        self._heading = heading
        self._markdown = MarkdownText(printable(text) if role == "assistant" else "")
        self._plain = printable(text) if role == "user" else ""
        self._lines: tuple[int, list[Content]] | None = None  # for a width

    @property
    def source(self) -> str:
        """The text as it was written."""
        return self._plain or self._markdown.source

    def write(self, text: str) -> None:
        """Add text to a reply that is being written."""
        self._markdown.append(printable(text))
        self._changed()

    def set_heading(self, heading: Content) -> None:
        """Replace the first line."""
        self._heading = heading
        self._changed()

    def _changed(self) -> None:
        before = len(self._lines[1]) if self._lines else 0
        width = self._lines[0] if self._lines else self.content_size.width
        self._lines = None
        # Only a new line moves what lies below; laying out the whole chat is the dear part.
        self.refresh(layout=len(self._get_lines(width)) != before)

    def _get_lines(self, width: int) -> list[Content]:
        if self._lines is None or self._lines[0] != width:
            room = max(width, 1)
            body = Content(self._plain).wrap(room) if self._plain else self._markdown.lines(room)
            self._lines = (width, [self._heading.truncate(room, ellipsis=True), *body])
        return self._lines[1]

    def get_content_height(self, container: Size, viewport: Size, width: int) -> int:
        """Return how many lines the message needs at a width."""
        return len(self._get_lines(width))

    def render(self) -> Content:
        """Return the message for the widget's present width."""
        return Content("\n").join(self._get_lines(self.content_size.width))

    def get_selection(self, selection: Selection) -> tuple[str, str] | None:
        """Return the text that was marked with the mouse."""
        return selection.extract(self.render().plain), "\n"
