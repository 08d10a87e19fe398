"""The chat, which can be split: A on the left, where the conversation goes on, and B beside it."""

from __future__ import annotations

from textual.app import ComposeResult
from textual.containers import Horizontal, Vertical
from textual.content import Content
from textual.widget import Widget
from textual.widgets import Static

from persona_tui.tui.sturdy import Sturdy
from persona_tui.tui.widgets.chat_log import ChatLog


class SideHead(Sturdy, Widget):
    """Two rows above a side: its setting, and how far its answer is."""

    DEFAULT_CSS = "SideHead { height: 2; width: 1fr; }"

    def __init__(self, letter: str, *, id: str | None = None) -> None:
        """
        Args:
            letter: which side it is.
            id: of the widget.
        """
        super().__init__(id=id)
        self._letter = letter
        self._who = self._how = self._facts = ""

    def show(self, who: str, how: str, facts: str) -> None:
        """Show who speaks, how, and how far that is. Where there is no room for all, a name is cut."""
        if (who, how, facts) != (self._who, self._how, self._facts):
            self._who, self._how, self._facts = who, how, facts
            self.refresh()

    def render(self) -> Content:
        """Return the rows."""
        width = max(self.size.width, 1)
        front, how = Content.styled(f"{self._letter}  ", "bold"), Content.styled(self._how, "$text-accent")
        room = max(width - front.cell_length - how.cell_length, 1)
        who = Content.styled(self._who, "bold $text-accent").truncate(room, ellipsis=True)
        rows = (Content.assemble(front, who, how), Content.styled(self._facts, "dim"))
        return Content("\n").join(row.truncate(width, ellipsis=True) for row in rows)


class Split(Sturdy, Vertical):
    """The chat alone, or the two sides and a row that says what can be done."""

    def compose(self) -> ComposeResult:
        """Return the sides."""
        with Horizontal(id="sides"):
            with Vertical(id="side-a"):
                yield SideHead("A", id="head-a")
                yield ChatLog(id="chat")
            with Vertical(id="side-b"):
                yield SideHead("B", id="head-b")
                yield ChatLog(id="chat-b")
        yield Static("", id="split-note", markup=False)

    def on_mount(self) -> None:
        """Begin with the chat alone."""
        self.split(False)

    def split(self, on: bool) -> None:
        """Show the sides, or the chat alone."""
        for part in ("#head-a", "#side-b", "#split-note"):
            self.query_one(part).display = on

    @property
    def heads(self) -> list[SideHead]:
        """What stands above A and B."""
        return [self.query_one(part, SideHead) for part in ("#head-a", "#head-b")]

    @property
    def logs(self) -> list[ChatLog]:
        """A and B themselves."""
        return [self.query_one(part, ChatLog) for part in ("#chat", "#chat-b")]

    def say(self, text: str) -> None:
        """Say below the sides what can be done."""
        self.query_one("#split-note", Static).update(text)
