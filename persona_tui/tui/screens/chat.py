"""The main screen: chat in the middle, panels around it or, on a narrow terminal, over it."""

from typing import Literal

from textual import events
from textual.app import ComposeResult
from textual.containers import Horizontal, Vertical
from textual.screen import Screen
from textual.widget import Widget
from textual.widgets import Static

from persona_tui.tui.sturdy import Sturdy
from persona_tui.tui.widgets.chat_log import ChatLog
from persona_tui.tui.widgets.completions import Completions
from persona_tui.tui.widgets.hints import HintBar
from persona_tui.tui.widgets.inspector import Inspector
from persona_tui.tui.widgets.jobs_panel import JobsPanel
from persona_tui.tui.widgets.mixer import MixerPanel
from persona_tui.tui.widgets.personas import PersonasPanel
from persona_tui.tui.widgets.prompt import Completer, Prompt
from persona_tui.tui.widgets.slider import FloatSlider
from persona_tui.tui.widgets.split import Split
from persona_tui.tui.widgets.status import StatusLine
from persona_tui.tui.widgets.trace import TraceView

Panel = Literal["personas", "mixer", "jobs"]
PANELS: tuple[Panel, ...] = ("personas", "mixer", "jobs")
WIDE = 120
ROOMY = 160  # columns from which on there is room for two chats beside the personas

_ON_MESSAGES = ("y", "c", "e", "t")  # what is done with a marked message by a letter

# Where the keys go when a panel opens.
_FOCUS: dict[Panel, str] = {"personas": "#persona-list", "mixer": "#master", "jobs": "#job-list"}


class ChatScreen(Sturdy, Screen[None]):
    """Everything that is there all the time, and which panels are open.

    The focus is set at once, and not by `Widget.focus`, which takes effect later: keys that were typed in
    quick succession would still go to where it was.
    """

    def __init__(self, completer: Completer) -> None:
        super().__init__()
        self._completer = completer
        self._open: dict[bool, set[Panel]] = {
            True: {"personas", "mixer"},
            False: set(),
        }  # by whether it is wide
        self._entered: Panel | None = None  # the panel that was entered by its key
        self._made_room = False  # whether the personas were closed for the second chat

    def compose(self) -> ComposeResult:
        """Return the screen's parts, top to bottom."""
        completions = Completions(id="completions")
        yield StatusLine(id="status")
        with Horizontal(id="body"):
            yield PersonasPanel(id="personas")
            with Vertical(id="centre"):
                yield Split(id="talk")
                yield TraceView(id="trace")
                yield MixerPanel(id="mixer")
                yield completions
                yield Static("", id="prompt-note", markup=False)
                yield Prompt(completions, self._completer, id="prompt")
                yield JobsPanel(id="jobs")
            yield Inspector(id="inspector")
        yield HintBar(id="hints")

    def on_mount(self) -> None:
        """Begin with the prompt."""
        self.show_editing(False)
        self.inspector.display = False
        self.apply_panels()
        self.set_focus(self.prompt)

    # --- parts

    @property
    def chat(self) -> ChatLog:
        """The conversation."""
        return self.query_one("#chat", ChatLog)

    @property
    def split(self) -> Split:
        """The conversation, and what may stand beside it."""
        return self.query_one(Split)

    @property
    def prompt(self) -> Prompt:
        """Where the user writes."""
        return self.query_one(Prompt)

    @property
    def inspector(self) -> Inspector:
        """A message token by token, on a terminal with room for that."""
        return self.query_one(Inspector)

    @property
    def trace(self) -> TraceView:
        """The projections of the latest reply."""
        return self.query_one(TraceView)

    @property
    def personas(self) -> PersonasPanel:
        """The list of personas."""
        return self.query_one(PersonasPanel)

    @property
    def mixer(self) -> MixerPanel:
        """Strength and blend."""
        return self.query_one(MixerPanel)

    @property
    def jobs(self) -> JobsPanel:
        """Jobs and log."""
        return self.query_one(JobsPanel)

    @property
    def status(self) -> StatusLine:
        """The first row."""
        return self.query_one(StatusLine)

    def show_editing(self, on: bool) -> None:
        """Say above the prompt that an old message is being edited."""
        note = self.query_one("#prompt-note", Static)
        note.display = on
        note.update("editing an old message: enter sends it as a new branch, esc cancels" if on else "")

    # --- panels

    @property
    def is_wide(self) -> bool:
        """Whether panels stand beside the chat."""
        return self.app.size.width >= WIDE

    def on_resize(self, _: events.Resize) -> None:
        """Show the panels that belong to the new width."""
        self.apply_panels()

    def apply_panels(self) -> None:
        """Show what is open at this width; a focus that would be hidden goes to the prompt."""
        for panel in PANELS:
            self.query_one(f"#{panel}").display = panel in self._open[self.is_wide]
        if self.focused is None or not self._shows(self.focused.id):
            self.set_focus(self.prompt)

    def _shows(self, _: str | None) -> bool:
        return self.focused is not None and all(node.display for node in self.focused.ancestors_with_self)

    # --- where keys go

    def set_focus(
        self, widget: Widget | None, scroll_visible: bool = True, from_app_focus: bool = False
    ) -> None:
        """Give the keys to a widget."""
        if isinstance(widget, Prompt):
            self._entered = None
        super().set_focus(widget, scroll_visible, from_app_focus)

    def aim(self, event: events.Key | events.Paste) -> None:
        """Have a text that is typed or pasted beside the chat go to the prompt: nothing there takes any."""
        printable = isinstance(event, events.Paste) or event.is_printable
        if printable and self.focused is not self.prompt and not self._takes(event):
            self.go_to_prompt()

    def _takes(self, event: events.Key | events.Paste) -> bool:
        """Return whether what has the focus does something with a key that could be text."""
        if isinstance(event, events.Paste):
            return False
        if isinstance(self.focused, FloatSlider) and self.focused.takes_digits:
            return event.character is not None and event.character in "0123456789.-"
        if isinstance(self.focused, ChatLog):
            return (
                self.chat.marked is not None
                and event.character is not None
                and event.character in _ON_MESSAGES
            )
        entered = self._entered
        return event.key == "space" and entered is not None and self.query_one(f"#{entered}").has_focus_within

    def go_to_prompt(self) -> None:
        """Give the keys to the prompt; a list that lies over the chat is closed."""
        if not self.is_wide:
            self._open[False] &= {"mixer"}
            self.apply_panels()
        self.set_focus(self.prompt)

    def on_mouse_up(self) -> None:
        """Give the keys back to the prompt after a click, wherever that was."""
        self.set_focus(self.prompt)

    # --- panels, opened and closed

    def toggle_panel(self, panel: Panel) -> None:
        """Open a panel and go there; if the focus is there already, close it."""
        if panel in self._open[self.is_wide] and self.query_one(f"#{panel}").has_focus_within:
            self.close_panel(panel)
        else:
            self.open_panel(panel)
            self.set_focus(self.query_one(_FOCUS[panel]))
            self._entered = panel

    def show_split(self, on: bool) -> None:
        """Split the chat or join it. Where two chats are crowded, the personas make room."""
        if on and self.app.size.width < ROOMY and "personas" in self._open[True]:
            self._open[True].discard("personas")
            self._made_room = True
        elif not on and self._made_room:
            self._open[True].add("personas")
            self._made_room = False
        self.split.split(on)
        self.apply_panels()

    def open_panel(self, panel: Panel) -> None:
        """Open a panel; on a narrow screen, in place of any other."""
        if not self.is_wide:
            self._open[False].clear()
        self._open[self.is_wide].add(panel)
        self.apply_panels()

    def close_panel(self, panel: Panel) -> None:
        """Close a panel and go back to the prompt."""
        self._open[self.is_wide].discard(panel)
        self.apply_panels()
        self.set_focus(self.prompt)

    def leave_panels(self) -> bool:
        """Go back to the prompt and close what lies over the chat; whether there was anything to do."""
        was_elsewhere = self.focused is not self.prompt or bool(self._open[False] and not self.is_wide)
        self._open[False].clear()
        self.apply_panels()
        self.set_focus(self.prompt)
        return was_elsewhere
