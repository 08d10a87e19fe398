"""What is shown where a terminal has no room for the app."""

from __future__ import annotations

from typing import Any

from textual.app import App
from textual.content import Content
from textual.geometry import Size
from textual.widget import Widget

from persona_tui.tui.sturdy import Sturdy

LEAST = Size(30, 8)  # below that, a chat has no room beside the prompt
SHORT = 14  # rows; below that, the chat is worth more than a trace


class TooSmall(Sturdy, Widget):
    """Lies over a whole screen and asks for more room, as long as there is too little.

    What lies below keeps the focus and all that it holds.
    """

    DEFAULT_CSS = """
    TooSmall { layer: too-small; width: 100%; height: 100%; background: $background; }
    """

    def render(self) -> Content:
        """Return the request for more room, as short as it has to be."""
        size = f"{LEAST.width}×{LEAST.height}"
        said = (f"Make the terminal {size} or larger.", f"Make it {size}.", size)
        fitting = (text for text in said if len(text) <= self.size.width)
        return Content(next(fitting, size))


def cover_screens(app: App[Any]) -> None:
    """Ask for more room on every screen if there is too little; else take that away again."""
    for screen in app.screen_stack:
        screen.query(TooSmall).remove()
        if app.size.width < LEAST.width or app.size.height < LEAST.height:
            screen.mount(TooSmall())
