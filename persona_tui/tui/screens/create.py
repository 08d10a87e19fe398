"""Making a persona, step by step: who it is, its system prompts, and how long it will take."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from textual import on
from textual.app import ComposeResult
from textual.containers import Horizontal, Vertical
from textual.suggester import SuggestFromList
from textual.timer import Timer
from textual.widgets import Button, Input, Label, Static

from persona_tui.core.errors import PersonaTuiError, WorkspaceError
from persona_tui.core.files import safe_name
from persona_tui.datasets.records import read_prompt_file
from persona_tui.tui.screens.dialog import Dialog
from persona_tui.tui.screens.write import WriteScreen
from persona_tui.tui.widgets.chooser import Chooser

if TYPE_CHECKING:
    from persona_tui.core.jobs import Job

DESCRIPTION, ARCHETYPE, FILE = "a description", "an archetype", "a prompts file"
_LABELS = {
    DESCRIPTION: "Who is it, how does it speak, what does it care about?",
    ARCHETYPE: "Which archetype?",
    FILE: "Which file? Text with empty lines between prompts, or .jsonl:",
}
_EXAMPLES = {
    DESCRIPTION: "a grumpy but kind old wizard",
    ARCHETYPE: "sage",
    FILE: "~/prompts.txt",
}
_PROMPTS_DRAFTED = 5
_POLL = 0.2  # seconds between two looks at how far the drafting is
_SLUG_WORDS = 3
_SMALL_WORDS = {"a", "an", "the", "who", "that", "but", "and", "of", "in", "very", "with"}


@dataclass(frozen=True)
class NewPersona:
    """What the user wants made: from an archetype's file, or from system prompts."""

    name: str
    archetype: str | None = None
    description: str | None = None
    prompts: tuple[str, ...] = ()


@dataclass(frozen=True)
class Making:
    """What the screen needs from the app.

    Attributes:
        archetypes: names of the archetype files there are, each with its number of prompts.
        taken: names of personas that exist already.
        draft: has the model write system prompts for a description, as a job.
        estimate: says how long it takes with a number of prompts; "" = not known.
    """

    archetypes: dict[str, int]
    taken: Collection[str]
    draft: Callable[[str], Job[list[str]]]
    estimate: Callable[[int], str]


class CreateScreen(Dialog[NewPersona]):
    """Who it is and its name; then its system prompts, to be read and changed before they are used."""

    def __init__(self, making: Making, name: str = "", who: str = "") -> None:
        """
        Args:
            making: what the app can do.
            name: a name to begin with.
            who: a description or archetype to begin with.
        """
        super().__init__()
        self._making = making
        self._first_name, self._first_who = name, who
        self._named_by_user = bool(name)
        self._job: Job[list[str]] | None = None
        self._timer: Timer | None = None

    def compose(self) -> ComposeResult:
        """Return the form."""
        with Vertical(classes="dialog form") as form:
            form.border_title = "new persona"
            form.border_subtitle = "enter continues · esc cancels"
            yield Chooser("from", [DESCRIPTION, ARCHETYPE, FILE], id="from")
            yield Label("", id="who-label")
            yield Input(
                self._first_who,
                suggester=SuggestFromList(list(self._making.archetypes), case_sensitive=False),
                id="who",
                compact=True,
            )
            yield Label("Name:")
            yield Input(self._first_name, placeholder="grumpy_wizard", id="name", compact=True)
            yield Static("", id="advice", markup=False)
            with Horizontal(classes="buttons"):
                yield Button("Go on", id="create", variant="primary", compact=True)
                yield Button("Cancel", id="cancel", compact=True)

    def on_mount(self) -> None:
        """Begin with the first field."""
        self.query_one("#who").focus()
        self._choose(DESCRIPTION)

    # --- what was typed

    @on(Chooser.Changed, "#from")
    def _source_chosen(self, event: Chooser.Changed) -> None:
        self._choose(event.value)

    def _choose(self, source: str) -> None:
        self.query_one("#from", Chooser).value = source
        self.query_one("#who-label", Label).update(_LABELS[source])
        self.query_one("#who", Input).placeholder = _EXAMPLES[source]
        self.advise()

    @property
    def _source(self) -> str:
        return self.query_one("#from", Chooser).value

    @property
    def _who(self) -> str:
        return self.query_one("#who", Input).value.strip()

    @property
    def _new_name(self) -> str:
        return self.query_one("#name", Input).value.strip()

    @on(Input.Changed, "#who")
    def _who_typed(self) -> None:
        if not self._named_by_user:
            with self.prevent(Input.Changed):
                self.query_one("#name", Input).value = name_for(
                    Path(self._who).stem if self._is_file else self._who
                )
        if self._source == DESCRIPTION and self._archetype is not None:
            self._choose(ARCHETYPE)
        elif self._source == ARCHETYPE and " " in self._who:
            self._choose(DESCRIPTION)
        self.advise()

    @property
    def _is_file(self) -> bool:
        return self._source == FILE

    @property
    def _archetype(self) -> str | None:
        """The archetype that was typed, if it is one."""
        typed = self._who.casefold()
        return next((name for name in self._making.archetypes if name.casefold() == typed), None)

    @on(Input.Changed, "#name")
    def _name_typed(self, event: Input.Changed) -> None:
        self._named_by_user = bool(event.value)
        self.advise()

    def advise(self) -> None:
        """Say what happens next, and how long it will take."""
        if self._job is None:
            prompts = self._making.archetypes.get(self._archetype or "", _PROMPTS_DRAFTED)
            self._say("\n".join(part for part in (self._plan(), self._making.estimate(prompts)) if part))

    def _plan(self) -> str:
        """Say what happens next."""
        if self._source == ARCHETYPE:
            there = (
                ", ".join(self._making.archetypes) or "none: write datasets/personas/archetypes/NAME.jsonl"
            )
            return f"There are {there}."
        if self._is_file:
            return "You will see the prompts, and can change them before they are used."
        return "The model drafts system prompts from this. You will see them, and can change them."

    def _problem(self) -> str | None:
        """Say what keeps it from being made."""
        if not self._who:
            return {DESCRIPTION: "Describe it.", FILE: "Name the file."}.get(self._source, "Which one?")
        if self._source == ARCHETYPE and self._archetype is None:
            return f"There is no archetype {self._who!r}. {self._plan()}"
        if self._new_name in self._making.taken:
            return f'There is a persona "{self._new_name}" already: choose another name.'
        try:
            safe_name(self._new_name)
        except WorkspaceError as error:
            return str(error) if self._new_name else "Give it a name."
        return None

    def _say(self, text: str, *, error: bool = False) -> None:
        advice = self.query_one("#advice", Static)
        advice.update(text)
        advice.set_class(error, "-error")

    # --- going on

    @on(Input.Submitted, "#who")
    def _to_name(self) -> None:
        self.query_one("#name").focus()

    @on(Input.Submitted, "#name")
    @on(Button.Pressed, "#create")
    def _go_on(self) -> None:
        if self._job is not None:
            return
        problem = self._problem()
        if problem is not None:
            self._say(problem, error=True)
        elif self._source == ARCHETYPE:
            self.dismiss(NewPersona(self._new_name, archetype=self._archetype))
        elif self._is_file:
            self._read_file()
        else:
            self._draft()

    def _read_file(self) -> None:
        try:
            self._show_prompts(read_prompt_file(Path(self._who).expanduser()))
        except PersonaTuiError as error:
            self._say(str(error), error=True)

    # --- the model's draft

    def _draft(self) -> None:
        self._job = self._making.draft(self._who)
        self._timer = self.set_interval(_POLL, self._look)
        self._look()

    def _look(self) -> None:
        """See how far the model is with the prompts."""
        job = self._job
        if job is None:
            return
        if not job.ended:
            waiting = "waiting for the model" if job.state == "queued" else "the model drafts system prompts"
            progress = f": {job.progress.done} of {job.progress.total}" if job.progress.total else ""
            self._say(f"{waiting}{progress} … (esc stops it)")
            return
        self._end_draft()
        if job.state == "done" and job.result:
            self._show_prompts(job.result)
        else:
            self._say(str(job.error or "No prompts were written."), error=job.state == "failed")

    def _end_draft(self) -> None:
        self._job = None
        if self._timer is not None:
            self._timer.stop()

    def _show_prompts(self, drafted: Sequence[str]) -> None:
        """Show the system prompts; leaving them comes back here."""

        def answered(text: str | None) -> None:
            if text is None:
                self.advise()
                return
            description = None if self._is_file else self._who
            prompts = tuple(split_prompts(text))
            self.dismiss(NewPersona(self._new_name, description=description, prompts=prompts))

        self.app.push_screen(
            WriteScreen(
                f"system prompts of {self._new_name}",
                "Each paragraph is one system prompt. The model answers questions with each of them; what "
                "these answers have in common becomes the persona.",
                "\n\n".join(" ".join(prompt.split()) for prompt in drafted),
                use="Create",
                comment=self._comment,
            ),
            answered,
        )

    def _comment(self, text: str) -> tuple[str, bool]:
        count = len(split_prompts(text))
        if not count:
            return "There is no prompt.", False
        said = f"{count} system prompt{'s' if count > 1 else ''}."
        return f"{said} {self._making.estimate(count)}".strip(), True

    # --- leaving

    @on(Button.Pressed, "#cancel")
    def action_leave(self, *_: Any) -> None:
        """Stop the drafting if there is any, else leave without making one."""
        if self._job is None:
            self.dismiss(None)
            return
        self._job.cancel()
        self._end_draft()
        self._say("Stopped.")


def split_prompts(text: str) -> list[str]:
    """Return the paragraphs of a text."""
    return [" ".join(part.split()) for part in re.split(r"\n\s*\n", text) if part.strip()]


def name_for(who: str) -> str:
    """Return a name made of the first words of a description."""
    words = [word for word in re.findall(r"[a-z0-9]+", who.casefold()) if word not in _SMALL_WORDS]
    return "_".join(words[:_SLUG_WORDS])[:64]
