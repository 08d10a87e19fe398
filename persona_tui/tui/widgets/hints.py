"""The last row: the keys that do something where the focus is, as many as fit; they can be clicked."""

from textual import events
from textual.app import ComposeResult
from textual.binding import Binding
from textual.content import Content
from textual.dom import DOMNode
from textual.screen import Screen
from textual.widget import Widget

from persona_tui.tui.sturdy import Sturdy

_GAP = 2  # cells between two


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
        return Content(" " * _GAP).join(hint for hint, _, _ in self._placed())

    async def on_click(self, event: events.Click) -> None:
        """Do what the hint that was clicked says."""
        at = 0
        for hint, binding, node in self._placed():
            if at <= event.x - self.styles.padding.left < at + hint.cell_length:
                await self.app.run_action(binding.action, node)
                return
            at += hint.cell_length + _GAP

    def _placed(self) -> list[tuple[Content, Binding, DOMNode]]:
        """Return the hints that fit, each with its binding and whose that is."""
        found: list[tuple[Content, Binding, DOMNode]] = []
        used = 0
        for binding, node in self._shown():
            key = self.app.get_key_display(binding)
            hint = Content.assemble((key, "bold $text-accent"), " ", (binding.description, ""))
            used += hint.cell_length + _GAP
            if used > self.content_size.width + _GAP:
                break
            found.append((hint, binding, node))
        return found

    def _shown(self) -> list[tuple[Binding, DOMNode]]:
        shown: dict[str, tuple[Binding, DOMNode]] = {}
        for each in self.screen.active_bindings.values():
            if each.binding.show and each.enabled:
                shown.setdefault(each.binding.action, (each.binding, each.node))  # the first of several keys
        return list(shown.values())
