"""One prompt at five strengths, with what each says and costs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

from textual.binding import BindingType
from textual.widget import Widget
from textual.widgets import Static

from persona_tui.core.documents import printable
from persona_tui.tui.screens.results import ResultsScreen
from persona_tui.tui.views import keys
from persona_tui.tui.views.sweep import SweepView
from persona_tui.tui.views.view import View

if TYPE_CHECKING:
    from persona_tui.tui.sweeps import Sweeps


class SweepScreen(ResultsScreen):
    """Shows the last sweep, or how far it is. It goes on when the screen is left."""

    TITLE = "sweep"
    BINDINGS: ClassVar[list[BindingType]] = [*keys.SWEEP]

    def __init__(self, sweeps: Sweeps) -> None:
        super().__init__()
        self._sweeps = sweeps
        self._there = False  # whether its parts are

    def head(self) -> Sequence[Widget]:
        """Return what stands above the replies."""
        return (Static("", id="sweep-head", markup=False),)

    def columns(self) -> Sequence[Sequence[View]]:
        """Return the view."""
        return ((SweepView(id="strengths"),),)

    def on_mount(self) -> None:
        """Show what there is."""
        self._there = True
        self.place_views()
        self.refresh_sweep()
        self.action_view(0)

    def refresh_sweep(self) -> None:
        """Draw the sweep as it is now."""
        latest = self._sweeps.latest
        if latest is None or not self._there:
            return
        view = self.query_one(SweepView)
        self.query_one("#sweep-head", Static).update(f"{latest.voice}: {printable(latest.prompt)}")
        if latest.rows:
            view.show(latest.rows, self.owner.chat.mix.strength)
            self.say("")
        elif latest.error is not None:
            view.empty("")
            self.fail(latest.error)
        elif latest.job is not None and not latest.job.ended:
            view.empty("The replies are being written, all strengths in one batch.")
            self.follow(latest.job)
        else:
            view.empty("Cancelled. f5 begins again.")

    def action_again(self) -> None:
        """Answer the same prompt again, with the voice of now."""
        self.owner.attempt(self._sweeps.again)
        self.refresh_sweep()

    def action_use(self, place: int) -> None:
        """Go on with the strength of one of the replies."""
        latest = self._sweeps.latest
        if latest is not None and place < len(latest.rows):
            strength = latest.rows[place].strength
            self.owner.attempt(lambda: self.owner.chat.change_mix(strength=strength))
            self.refresh_sweep()
            self.say(f"Strength {strength:.2f} from now on.")
