"""What the monitor and trait screens share: views side by side, or one at a time where there is no room."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar, cast

from textual import events, on
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal, Vertical
from textual.content import Content
from textual.widget import Widget
from textual.widgets import Static

from persona_tui.core.errors import PersonaTuiError
from persona_tui.core.jobs import Job
from persona_tui.tui.keys import key_of
from persona_tui.tui.screens.dialog import Dialog
from persona_tui.tui.views.view import Tabs, View

if TYPE_CHECKING:
    from typing import Any

    from persona_tui.tui.stage import AppStage

MEDIUM, WIDE = 120, 180
_TICK = 0.3  # seconds between two looks at a job's progress, while one is under way


class ResultsScreen(Dialog[None]):
    """A screen of numbered views in columns.

    On a narrow terminal one view is shown; on a medium one the first column and one other view; on a wide one
    all of them. Subclasses give the views, what stands above them, and what the bottom row says.
    """

    HORIZONTAL_BREAKPOINTS = [(0, "-narrow"), (MEDIUM, "-medium"), (WIDE, "-wide")]  # noqa: RUF012
    BINDINGS: ClassVar[list[BindingType]] = [
        *(
            # Digits alone are typed on the slider.
            Binding(f"alt+{place}", f"view({place - 1})", f"view {place}", show=False, id=f"lab_view_{place}")
            for place in range(1, 7)
        ),
        Binding("alt+right", "turn(1)", "next view", id="lab_next"),
        Binding("alt+left", "turn(-1)", "view before", id="lab_before"),
        Binding("delete", "app.cancel_job", "cancel the job", show=False, id="lab_cancel"),
    ]
    TITLE = ""
    DEFAULT_CSS = """
    ResultsScreen { align: left top; background: $background; }
    ResultsScreen .lab { width: 100%; height: 100%; background: $background; }
    ResultsScreen #lab-head { height: auto; padding: 0 1; background: $panel; }
    ResultsScreen #lab-tabs { padding: 0 1; }
    ResultsScreen #lab-body { height: 1fr; }
    ResultsScreen .lab-column { width: 1fr; height: 1fr; }
    ResultsScreen View { height: 1fr; padding: 0 1; }
    ResultsScreen View { border: round $foreground 25%; border-title-color: $text-muted; }
    ResultsScreen View:ansi { border: round ansi_bright_black; }
    ResultsScreen View:focus-within { border: round $border; border-title-color: $text-primary; }
    ResultsScreen #check { max-height: 14; }
    ResultsScreen.-narrow #check { max-height: 100%; }
    ResultsScreen #lab-note { height: auto; max-height: 3; padding: 0 1; color: $text-muted; }
    ResultsScreen #lab-note.-error { color: $text-error; }
    ResultsScreen #lab-hints { height: 1; padding: 0 1; background: $panel; color: $text-muted; }
    """

    def __init__(self) -> None:
        super().__init__()
        self._current = 0
        self._said = ""
        self._job: Job[Any] | None = None

    # --- what subclasses give

    def columns(self) -> Sequence[Sequence[View]]:
        """Return the views, by column."""
        raise NotImplementedError

    def head(self) -> Sequence[Widget]:
        """Return what stands above the views."""
        return ()

    # --- parts

    @property
    def owner(self) -> AppStage:
        """The app, as what it is."""
        return cast("AppStage", self.app)

    def compose(self) -> ComposeResult:
        """Return the screen."""
        columns = self.columns()
        self._views = [view for column in columns for view in column]
        self._columns = columns
        for place, view in enumerate(self._views):
            view.number(place + 1)
        with Vertical(classes="lab"):
            with Horizontal(id="lab-head"):
                yield from self.head()
            yield Tabs([view.TITLE for view in self._views], self._turning_keys(), id="lab-tabs")
            with Horizontal(id="lab-body"):
                for place, column in enumerate(columns):
                    with Vertical(classes="lab-column", id=f"lab-column-{place}"):
                        yield from column
            yield Static("", id="lab-note", markup=False)
            yield Static(self._hints(), id="lab-hints", markup=False)

    def _hints(self) -> str:
        """Return the screen's own keys, as they are mapped now."""
        own = [each for each in type(self).__dict__.get("BINDINGS", ()) if isinstance(each, Binding)]
        shown = [
            f"{key_of(self.owner, each)} {each.description.partition(':')[0]}" for each in own if each.show
        ]
        return " · ".join([*shown, "esc back"])

    def _turning_keys(self) -> str:
        """Return the keys that go from view to view."""
        turning = [
            each for each in ResultsScreen.BINDINGS if isinstance(each, Binding) and "turn" in each.action
        ]
        before, after = (key_of(self.owner, each) for each in reversed(turning))
        shared, plus, last = after.rpartition("+")  # alt+←→ for alt+← and alt+→
        return before + last if plus and before.startswith(f"{shared}+") else f"{before} {after}"

    def on_mount(self) -> None:
        """Show the first view."""
        self.place_views()

    def on_resize(self, _: events.Resize) -> None:
        """Show as many views as have their place."""
        self.place_views()

    # --- which views are shown

    @property
    def _fixed(self) -> int:
        """How many views, from the first one, are always shown."""
        width = self.app.size.width
        return len(self._views) if width >= WIDE else len(self._columns[0]) if width >= MEDIUM else 0

    def place_views(self) -> None:
        """Show what has its place at this width."""
        fixed = self._fixed
        beside = self._current if self._current >= fixed else self._beside(fixed)
        for place, view in enumerate(self._views):
            view.display = place < fixed or place == beside
        for place, column in enumerate(self._columns):
            self.query_one(f"#lab-column-{place}").display = any(view.display for view in column)
        tabs = self.query_one(Tabs)
        tabs.display = len(self._views) > max(fixed, 1)
        tabs.show(beside, frozenset(range(fixed)))

    def _beside(self, fixed: int) -> int:
        """Return the view that stays beside those that are always shown."""
        last = getattr(self, "_last_beside", fixed)
        return last if fixed <= last < len(self._views) else fixed

    def action_view(self, place: int) -> None:
        """Show a view, and go there."""
        if place >= len(self._views):
            return
        self._current = place
        if place >= self._fixed:
            self._last_beside = place
        self.place_views()
        field = self._views[place].first_field()
        if field is not None:
            self.set_focus(field)

    def action_turn(self, step: int) -> None:
        """Show the next view, or the one before."""
        self.action_view((self._current + step) % len(self._views))

    @on(Tabs.Chosen)
    def _tab_chosen(self, message: Tabs.Chosen) -> None:
        self.action_view(message.place)

    # --- saying

    def say(self, text: str, error: bool = False) -> None:
        """Show a line below the views."""
        text = self.owner.own_words(text)
        self._said = text
        note = self.query_one("#lab-note", Static)
        note.update(Content(text))
        note.set_class(error, "-error")

    def fail(self, error: Exception) -> None:
        """Show an error in one line."""
        kind = "" if isinstance(error, PersonaTuiError) else f"{type(error).__name__}: "
        self.say(f"Error: {kind}{' '.join(str(error).split())}", error=True)

    # --- jobs

    def follow(self, job: Job[Any]) -> None:
        """Show a job's progress until it has ended."""
        self._job = job
        self._tick()

    def _tick(self) -> None:
        job = self._job
        if job is None or not self.is_attached:
            return
        if job.ended:
            self._job = None
            return
        progress = job.progress
        done = f" {progress.done}/{progress.total}" if progress.total else ""
        self.say(f"{job.name}: {progress.note or job.state}{done} · you can keep chatting; del cancels it")
        self.set_timer(_TICK, self._tick)
