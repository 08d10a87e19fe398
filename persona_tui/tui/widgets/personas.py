"""The personas of this model: which are loaded, which speaks."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Vertical
from textual.content import Content
from textual.message import Message
from textual.widgets import OptionList, Static
from textual.widgets.option_list import Option

from persona_tui.tui.widgets.row_list import RowList

_ON_DISK, _LOADED, _SPEAKING = "○", "◐", "●"
_LEGEND = f"{_SPEAKING} speaking  {_LOADED} loaded  {_ON_DISK} on disk"


@dataclass(frozen=True)
class PersonaRow:
    """One persona as the list shows it; its weight is 0 unless it speaks."""

    name: str
    loaded: bool
    weight: float = 0.0

    def content(self) -> Content:
        """Return the row's text."""
        if self.weight:
            return Content.assemble(
                (f"{_SPEAKING} ", "$text-accent"), (self.name, "bold"), (f" {self.weight:+.2f}", "dim")
            )
        if self.loaded:
            return Content.assemble((f"{_LOADED} ", "$text-primary"), self.name)
        return Content.assemble((f"{_ON_DISK} ", "dim"), (self.name, "dim"))


class PersonaList(RowList):
    """The list itself. Its messages say what the user wants; the app does it."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("space", "ask('load')", "load/unload", id="personas_load"),
        Binding("enter", "ask('speak')", "speak as", id="personas_speak"),
        Binding("n", "app.create_persona", "new", id="personas_new"),
        Binding("i", "ask('info')", "details", id="personas_info"),
        Binding("d,delete", "ask('delete')", "delete", id="personas_delete"),
    ]

    @dataclass
    class Asked(Message):
        """The user wants something done with a persona: load, speak, info or delete."""

        what: str
        name: str

    def action_ask(self, what: str) -> None:
        """Say what is wanted of the marked persona."""
        option = self.highlighted_option
        if option is not None and option.id is not None:
            self.post_message(self.Asked(what, option.id))

    def on_option_list_option_selected(self, event: OptionList.OptionSelected) -> None:
        """A click on a row: speak as that persona."""
        event.stop()
        if event.option_id is not None:
            self.post_message(self.Asked("speak", event.option_id))

    def show_rows(self, rows: Sequence[PersonaRow]) -> None:
        """Show these personas, and leave the mark where it was."""
        if [row.name for row in rows] == [option.id for option in self.options]:
            for row in rows:
                self.replace_option_prompt(row.name, row.content())
            return
        marked = self.highlighted_option.id if self.highlighted_option else None
        self.set_options([Option(row.content(), id=row.name) for row in rows])
        names = [row.name for row in rows]
        if names:
            self.highlighted = names.index(marked) if marked in names else 0


class PersonasPanel(Vertical):
    """The list, and a line on what its signs mean."""

    BORDER_TITLE = "personas"

    def compose(self) -> ComposeResult:
        """Return the panel's parts."""
        yield PersonaList(id="persona-list", compact=True)
        yield Static("", id="persona-note")

    def on_mount(self) -> None:
        """Say that nothing is known yet."""
        self.say("The model is loading.")

    def say(self, text: str) -> None:
        """Show a line below the list."""
        self.query_one("#persona-note", Static).update(Content(text))

    def show_rows(self, rows: Sequence[PersonaRow]) -> None:
        """Show these personas."""
        self.query_one(PersonaList).show_rows(rows)
        self.say(_LEGEND if rows else "No personas yet. Press n to make one.")
