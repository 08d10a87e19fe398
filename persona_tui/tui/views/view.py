"""A frame with a number and a title, and the row of tabs where only one of them has its place."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from textual import events
from textual.containers import Vertical
from textual.content import Content
from textual.message import Message
from textual.widget import Widget

from persona_tui.tui.sturdy import Sturdy


class View(Sturdy, Vertical):
    """One part of a lab screen. Subclasses say what it is called and draw what the screen hands them."""

    TITLE = ""

    def first_field(self) -> Widget | None:
        """Return what the keys go to when the view is chosen: its first part that takes keys."""
        fields = (node for node in self.walk_children(Widget) if node.can_focus and node.display)
        return next(fields, None)

    def number(self, place: int) -> None:
        """Put the view's number and title on its frame."""
        self.border_title = f"{place} {self.TITLE}"


class Tabs(Sturdy, Widget):
    """`1 scores  2 layers  3 methods`: the one that is shown stands out."""

    DEFAULT_CSS = "Tabs { height: 1; width: 1fr; }"

    @dataclass
    class Chosen(Message):
        """The user clicked a tab."""

        place: int

    def __init__(self, titles: Sequence[str], keys: str = "", *, id: str | None = None) -> None:
        """
        Args:
            titles: of the tabs.
            keys: what goes from one to the next.
            id: of the widget.
        """
        super().__init__(id=id)
        self._titles, self._keys = titles, keys
        self._hidden: frozenset[int] = frozenset()
        self._current = 0

    def show(self, current: int, hidden: frozenset[int] = frozenset()) -> None:
        """Mark one; those that have their place anyway are left out."""
        self._current, self._hidden = current, hidden
        self.refresh()

    def render(self) -> Content:
        """Return the row."""
        tabs = [
            Content.styled(
                f"[{place + 1} {title}]" if place == self._current else f" {place + 1} {title} ",
                "bold $text-accent" if place == self._current else "",
            )
            for place, title in enumerate(self._titles)
            if place not in self._hidden
        ]
        return Content("  ").join([*tabs, Content.styled(self._keys, "dim")])

    def on_click(self, event: events.Click) -> None:
        """Choose the tab that was clicked."""
        start = 0
        for place, title in enumerate(self._titles):
            if place in self._hidden:
                continue
            stop = start + len(title) + 6
            if start <= event.x < stop:
                self.post_message(self.Chosen(place))
                return
            start = stop
