"""The personas of this model: which are loaded, which speaks."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from textual import on
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Vertical
from textual.content import Content
from textual.geometry import Size
from textual.message import Message
from textual.widgets import Button, OptionList, Static
from textual.widgets.option_list import Option

from persona_tui.chat.voice import share_in_words
from persona_tui.core.mix import TRAIT_PREFIX
from persona_tui.tui.sturdy import RowList, Sturdy

_ON_DISK, _LOADED, _SPEAKING, _TRACED = "○", "◐", "●", "~"
_LEGEND = f"{_SPEAKING} speaking  {_LOADED} loaded\n{_ON_DISK} on disk   {_TRACED} traced"


@dataclass(frozen=True)
class PersonaRow:
    """One persona as the list shows it.

    Attributes:
        name: its name.
        loaded: whether it has a fader.
        share: of the blend; 0 unless it speaks, 1 if it speaks alone.
        kind: what it was made from, in a word.
        about: what to know about it, in a line or two.
        traced: whether its projection is drawn.
    """

    name: str
    loaded: bool
    share: float = 0.0
    kind: str = ""
    about: str = ""
    traced: bool = False

    @property
    def is_trait(self) -> bool:
        """Whether it is a trait, to steer and to measure with."""
        return self.name.startswith(TRAIT_PREFIX)

    def content(self, width: int) -> Content:
        """Return the row's text: sign, name, and on the right its share of the blend or its kind.

        The kind is left out where it would cut the name: it is told below the list, too.
        """
        blended = share_in_words(self.share) if abs(self.share) < 1 or self.share < 0 else "speaks"
        right = blended if self.share else "" if self.kind == "trait" else self.kind
        label = self.name.removeprefix(TRAIT_PREFIX)
        if not self.share and len(label) + len(right) + 3 > width:
            right = ""
        right = f"{_TRACED} {right}".rstrip() if self.traced else right
        sign, style, name_style = self._signs
        right = f" {right}" if right else ""
        room = max(width - 2 - len(right), 4)
        name = Content.styled(label, name_style).truncate(room, ellipsis=True)
        return Content.assemble((f"{sign} ", style), name.pad_right(room - name.cell_length), (right, "dim"))

    @property
    def _signs(self) -> tuple[str, str, str]:
        if self.share:
            return _SPEAKING, "$text-accent", "bold"
        if self.loaded:
            return _LOADED, "$text-primary", ""
        return _ON_DISK, "dim", "dim"


class PersonaList(RowList):
    """The list itself. Its messages say what the user wants; the app does it."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("space", "ask('load')", "load/unload", id="personas_load"),
        Binding("enter", "ask('speak')", "speak as", id="personas_speak"),
        Binding("insert,ctrl+n", "app.create_persona", "new", id="personas_new"),
        Binding("right", "ask('info')", "details", id="personas_info"),
        Binding("delete", "ask('delete')", "delete", id="personas_delete"),
        Binding("ctrl+k", "ask('calibrate')", "calibrate", show=False, id="personas_calibrate"),
        Binding("ctrl+o", "ask('trace')", "trace", show=False, id="personas_trace"),
    ]

    rows: Mapping[str, PersonaRow] = {}

    @dataclass
    class Asked(Message):
        """The user wants something done with a persona: load, speak, info, delete, calibrate or trace."""

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
        self.rows = {row.name: row for row in rows}
        options = self._under_titles(rows)
        if [option.id for option in options] == [option.id for option in self.options]:
            for row in rows:
                self.replace_option_prompt(row.name, row.content(self._room))
            return
        marked = self.highlighted_option.id if self.highlighted_option else None
        self.set_options(options)
        names = [option.id for option in options]
        if rows:
            self.highlighted = names.index(marked if marked in self.rows else rows[0].name)

    def _under_titles(self, rows: Sequence[PersonaRow]) -> list[Option]:
        """Return the rows, those of traits under a title that cannot be marked."""
        options = [Option(row.content(self._room), id=row.name) for row in rows]
        first = next((place for place, row in enumerate(rows) if row.is_trait), None)
        if first is not None:
            title = Content.styled("traits" if first == 0 else "\ntraits", "$text-muted")
            options.insert(first, Option(title, disabled=True))
        return options

    @property
    def _room(self) -> int:
        return max(self.scrollable_content_region.width, 12)

    def get_content_height(self, container: Size, viewport: Size, width: int) -> int:
        """Return how many rows it has, as far as what stands below it leaves room."""
        below = [each for each in self.siblings if each.display]
        taken = sum(
            each.get_content_height(container, viewport, container.width) + each.styles.margin.height
            for each in below
        )
        return min(super().get_content_height(container, viewport, width), max(container.height - taken, 1))

    def on_resize(self) -> None:
        """Set the rows for the new width, and keep the marked one in sight: what is said of it makes the list
        shorter.
        """
        self.show_rows(list(self.rows.values()))
        self.call_after_refresh(self.scroll_to_highlight)


class PersonasPanel(Sturdy, Vertical):
    """The list, and a line on what its signs mean."""

    BORDER_TITLE = "personas"

    def compose(self) -> ComposeResult:
        """Return the panel's parts."""
        yield PersonaList(id="persona-list", compact=True)
        yield Static("", id="persona-about", markup=False)
        yield Button("", id="prepare", variant="primary", compact=True)
        yield Static("", id="persona-note", markup=False)

    @on(Button.Pressed, "#prepare")
    async def _prepare(self) -> None:
        await self.app.run_action("prepare")

    def offer(self, text: str) -> None:
        """Offer to prepare the model, in these words; "" = it is prepared."""
        button = self.query_one("#prepare", Button)
        button.display = bool(text)
        button.label = text
        if text:
            self.say("No personas yet.")

    def on_mount(self) -> None:
        """Say that nothing is known yet."""
        self.offer("")
        self.say("The model is loading.")

    def say(self, text: str) -> None:
        """Show a line at the bottom."""
        self.query_one("#persona-note", Static).update(Content(text))

    def show_rows(self, rows: Sequence[PersonaRow]) -> None:
        """Show these personas."""
        self.query_one(PersonaList).show_rows(rows)
        self.say(_LEGEND if rows else "No personas yet.")
        self._tell_about_marked()

    @on(OptionList.OptionHighlighted)
    def _tell_about_marked(self) -> None:
        """Say about the marked persona what has no room in its row."""
        personas = self.query_one(PersonaList)
        marked = personas.highlighted_option
        row = personas.rows.get(marked.id or "") if marked is not None else None
        self.query_one("#persona-about", Static).update(Content(row.about if row is not None else ""))
