"""The last row: at most six keys that do something where the focus is."""

from textual.app import ComposeResult
from textual.binding import Binding
from textual.content import Content
from textual.screen import Screen
from textual.widget import Widget

from persona_tui.tui.sturdy import Sturdy

MOST = 6


class HintBar(Sturdy, Widget):
    """Keys and what they do, the focused widget's first. Follows remapped keys by itself."""

    DEFAULT_CSS = """
    HintBar { height: 1; width: 1fr; }
    """

    def compose(self) -> ComposeResult:
        """Nothing is mounted: the row is drawn."""
        yield from ()

    def on_mount(self) -> None:
        """Draw again when the focus, or what its keys do, changes."""
        self.screen.bindings_updated_signal.subscribe(self, self._updated)

    def _updated(self, _: Screen[object]) -> None:
        self.refresh()

    def render(self) -> Content:
        """Return the hints that fit."""
        parts: list[Content] = []
        used = 0
        for binding in self._shown():
            hint = Content.assemble(
                (self.app.get_key_display(binding), "bold $text-accent"), " ", (binding.description, "")
            )
            used += hint.cell_length + 3
            if used > self.size.width + 2:
                break
            parts.append(hint)
        return Content("   ").join(parts)

    def _shown(self) -> list[Binding]:
        active = self.screen.active_bindings.values()
        shown: dict[str, Binding] = {}
        for each in active:
            if each.binding.show and each.enabled:
                shown.setdefault(each.binding.action, each.binding)  # the first of several keys
        return list(shown.values())[:MOST]
