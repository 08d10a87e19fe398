"""What a slash command could become, above the prompt."""

from collections.abc import Sequence

from textual.content import Content
from textual.widget import Widget

from persona_tui.tui.sturdy import Sturdy

SHOWN = 6


class Completions(Sturdy, Widget):
    """A short list with one marked row; hidden while it is empty."""

    DEFAULT_CSS = """
    Completions { height: auto; width: 1fr; display: none; }
    Completions.-open { display: block; }
    """

    def __init__(self, *, id: str | None = None) -> None:
        super().__init__(id=id)
        self._items: Sequence[tuple[str, str]] = ()
        self._marked = 0

    @property
    def is_open(self) -> bool:
        """Whether there is anything to choose from."""
        return bool(self._items)

    @property
    def chosen(self) -> str:
        """The text of the marked row; "" when there is none."""
        return self._items[self._marked][0] if self._items else ""

    def offer(self, items: Sequence[tuple[str, str]]) -> None:
        """Show items, each a text and what it does."""
        self._items = items
        self._marked = 0
        self.set_class(bool(items), "-open")
        self.refresh(layout=True)

    def move(self, by: int) -> None:
        """Mark another row, round and round."""
        self._marked = (self._marked + by) % max(len(self._items), 1)
        self.refresh()

    def render(self) -> Content:
        """Return the rows around the marked one."""
        start = min(max(self._marked - SHOWN + 1, 0), max(len(self._items) - SHOWN, 0))
        shown = self._items[start : start + SHOWN]
        width = max((len(text) for text, _ in shown), default=0)
        return Content("\n").join(
            self._row(text.ljust(width), what, start + number == self._marked)
            for number, (text, what) in enumerate(shown)
        )

    def _row(self, text: str, what: str, marked: bool) -> Content:
        row = Content.assemble(("› " if marked else "  "), (text, "bold"), "  ", (what, "dim"))
        row = row.truncate(max(self.content_size.width, 1), ellipsis=True)
        return row.stylize("$text-accent") if marked else row
