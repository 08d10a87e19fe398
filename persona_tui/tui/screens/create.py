"""Asks for a new persona: who it is, and what to call it."""

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import ClassVar

from textual import on
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal, Vertical
from textual.screen import ModalScreen
from textual.suggester import SuggestFromList
from textual.widgets import Button, Input, Label, Static

from persona_tui.errors import WorkspaceError
from persona_tui.workspace import safe_name

_SLUG_WORDS = 3
_SMALL_WORDS = {"a", "an", "the", "who", "that", "but", "and", "of", "in", "very", "with"}


@dataclass(frozen=True)
class NewPersona:
    """What the user wants made: from an archetype's file, or from a description."""

    name: str
    archetype: str | None = None
    description: str | None = None


class CreateScreen(ModalScreen[NewPersona | None]):
    """Two fields. What is typed in the first is an archetype's name, or else a description."""

    BINDINGS: ClassVar[list[BindingType]] = [Binding("escape", "cancel", "cancel", id="create_cancel")]

    def __init__(
        self, archetypes: Sequence[str], taken: Collection[str], name: str = "", who: str = ""
    ) -> None:
        """
        Args:
            archetypes: names of the archetype files there are.
            taken: names of personas that exist already.
            name: a name to begin with.
            who: a description or archetype to begin with.
        """
        super().__init__()
        self._archetypes, self._taken = archetypes, taken
        self._first_name, self._first_who = name, who
        self._named_by_user = bool(name)

    def compose(self) -> ComposeResult:
        """Return the form."""
        known = ", ".join(self._archetypes)
        with Vertical(classes="dialog form") as form:
            form.border_title = "new persona"
            yield Label("Who is it? A description, or the name of an archetype:")
            yield Static(known or "(there are no archetype files)", id="archetypes", markup=False)
            yield Input(
                self._first_who,
                placeholder="a grumpy but kind old wizard",
                suggester=SuggestFromList(self._archetypes, case_sensitive=False),
                id="who",
                compact=True,
            )
            yield Label("Name:")
            yield Input(self._first_name, placeholder="grumpy_wizard", id="name", compact=True)
            yield Static("", id="advice", markup=False)
            with Horizontal(classes="buttons"):
                yield Button("Create", id="create", variant="primary", compact=True)
                yield Button("Cancel", id="cancel", compact=True)

    def on_mount(self) -> None:
        """Begin with the first field."""
        self.query_one("#who").focus()
        self._advise()

    # --- what was typed

    @property
    def _typed(self) -> NewPersona:
        who = self.query_one("#who", Input).value.strip()
        name = self.query_one("#name", Input).value.strip()
        if who.casefold() in {archetype.casefold() for archetype in self._archetypes}:
            return NewPersona(
                name, archetype=next(a for a in self._archetypes if a.casefold() == who.casefold())
            )
        return NewPersona(name, description=who)

    def _problem(self, wanted: NewPersona) -> str | None:
        """Say what keeps it from being made."""
        if not (wanted.archetype or wanted.description):
            return "Say who it is."
        if wanted.name in self._taken:
            return f'There is a persona "{wanted.name}" already: choose another name.'
        try:
            safe_name(wanted.name)
        except WorkspaceError as error:
            return str(error) if wanted.name else "Give it a name."
        return None

    def _advise(self) -> None:
        wanted = self._typed
        if wanted.archetype:
            advice = f"From the system prompts in the archetype file {wanted.archetype}.jsonl."
        else:
            advice = (
                "The model writes five system prompts from the description, then answers questions with each."
            )
        self.query_one("#advice", Static).update(advice)

    @on(Input.Changed, "#who")
    def _suggest_name(self) -> None:
        if not self._named_by_user:
            with self.prevent(Input.Changed):
                self.query_one("#name", Input).value = name_for(self.query_one("#who", Input).value)
        self._advise()

    @on(Input.Changed, "#name")
    def _name_typed(self, event: Input.Changed) -> None:
        self._named_by_user = bool(event.value)

    # --- leaving

    @on(Input.Submitted, "#who")
    def _to_name(self) -> None:
        self.query_one("#name").focus()

    @on(Input.Submitted, "#name")
    @on(Button.Pressed, "#create")
    def _create(self) -> None:
        wanted = self._typed
        problem = self._problem(wanted)
        if problem is None:
            self.dismiss(wanted)
            return
        advice = self.query_one("#advice", Static)
        advice.update(problem)
        advice.add_class("-error")

    @on(Button.Pressed, "#cancel")
    def action_cancel(self) -> None:
        """Leave without making one."""
        self.dismiss(None)


def name_for(who: str) -> str:
    """Return a name made of the first words of a description."""
    words = [word for word in re.findall(r"[a-z0-9]+", who.casefold()) if word not in _SMALL_WORDS]
    return "_".join(words[:_SLUG_WORDS])[:64]
