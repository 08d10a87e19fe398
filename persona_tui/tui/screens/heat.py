"""A reply as layers by tokens: where a direction is in it, as spoken and as the unsteered model reads it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

from textual.binding import BindingType
from textual.content import Content
from textual.widget import Widget
from textual.widgets import Static

from persona_tui.chat.reread import Spoken, spoken
from persona_tui.core.documents import printable
from persona_tui.core.errors import PersonaTuiError
from persona_tui.core.jobs import JobContext
from persona_tui.tui.screens.drift import directions
from persona_tui.tui.screens.picture import PictureScreen
from persona_tui.tui.views import keys
from persona_tui.tui.views.drift import weak_in_words
from persona_tui.tui.views.heat import HeatView, ShiftsView
from persona_tui.tui.views.view import View

if TYPE_CHECKING:
    from persona_tui.pictures.heat import HeatMap
    from persona_tui.pictures.tokens import TokenShift
    from persona_tui.project.project import Project

_SILENT = "There is no reply yet: where a direction is in it, layer by layer, is shown here."
_Found = tuple["HeatMap", "list[TokenShift]"]


class HeatScreen(PictureScreen):
    """One reply and one direction at a time."""

    TITLE = "layers"
    BINDINGS: ClassVar[list[BindingType]] = [*keys.HEAT]

    def __init__(self, node: int | None, direction: str = "") -> None:
        """
        Args:
            node: the reply; None = there is none.
            direction: what to begin with; by default the first one there is.
        """
        super().__init__()
        self._node, self._direction = node, direction
        self._cursor = 0
        self._found: HeatMap | None = None

    def head(self) -> Sequence[Widget]:
        """Return what stands above the views."""
        return (Static("", id="heat-head", markup=False),)

    def columns(self) -> Sequence[Sequence[View]]:
        """Return the views."""
        both = (
            HeatView("as spoken", id="heat-spoken"),
            HeatView("as the unsteered model reads it", id="heat-plain"),
        )
        return (both, (ShiftsView(id="heat-shifts"),))

    def on_mount(self) -> None:
        """Begin with the first direction."""
        self.place_views()
        known = directions(self.owner)
        if self._direction not in known:
            self._direction = known[0] if known else ""
        self.action_again()

    def action_again(self) -> None:
        """Read the reply."""
        project, name = self.owner.project, self._direction
        if self._node is None:
            self.empty(_SILENT)
        elif not name:
            self.nothing(PersonaTuiError("This model has no axes and nobody to compare with."))
        else:
            said = spoken(self.owner.chat.conversation, self._node)
            self.empty("Reading the reply twice …")
            self.compute("heat map", lambda context: _read(project, said, name, context), self._show)
        self._show_head()

    def _show_head(self) -> None:
        which = f"   reply #{self._node}" if self._node is not None else ""
        head = Content.assemble(
            "along ", (printable(self._direction) or "–", "bold $text-accent"), (which, "dim")
        )
        weak = weak_in_words(self._found.weak) if self._found is not None else None
        self.query_one("#heat-head", Static).update(Content.assemble(head, "   ", weak) if weak else head)

    def _show(self, found: _Found) -> None:
        self._found = found[0]
        self._show_head()
        self._cursor = min(self._cursor, len(found[0].tokens) - 1)
        self.query_one(ShiftsView).show(found[1])
        self._redraw()

    def _redraw(self) -> None:
        if self._found is not None:
            self.query_one("#heat-spoken", HeatView).show(self._found, self._found.spoken, self._cursor)
            self.query_one("#heat-plain", HeatView).show(self._found, self._found.plain, self._cursor)

    def empty(self, why: str) -> None:
        """Draw a sentence instead."""
        self._found = None
        for view in self.query(HeatView):
            view.empty(why)
        self.query_one(ShiftsView).empty("")

    # --- keys

    def action_step(self, step: int) -> None:
        """Point at another token."""
        if self._found is not None:
            self._cursor = max(0, min(self._cursor + step, len(self._found.tokens) - 1))
            self._redraw()

    def action_direction(self, step: int) -> None:
        """Read along another direction."""
        known = directions(self.owner)
        if self._direction in known:
            self._direction = known[(known.index(self._direction) + step) % len(known)]
            self.action_again()


def _read(project: Project, said: Spoken, name: str, context: JobContext) -> _Found:
    from persona_tui.pictures.heat import heat_map
    from persona_tui.pictures.tokens import token_shifts

    engine = project.engine
    with engine.model.rendered_as(said.rendering):
        found = heat_map(engine, said.messages, said.reply, name, said.mixes)
    context.checkpoint()
    return found, token_shifts(project.model, project.personas, name)
