"""Where the conversation drifts: along an axis, a persona or a trait, reply by reply."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean
from typing import TYPE_CHECKING, ClassVar

from textual.binding import BindingType
from textual.widget import Widget

from persona_tui.chat.reread import replies_of, turns_of
from persona_tui.core.errors import PersonaTuiError
from persona_tui.core.jobs import JobContext
from persona_tui.tui.screens.picture import PictureScreen
from persona_tui.tui.views import keys
from persona_tui.tui.views.drift import DriftView, RepliesView
from persona_tui.tui.views.view import View
from persona_tui.tui.widgets.chooser import Chooser
from persona_tui.tui.widgets.token_view import unit_of

if TYPE_CHECKING:
    from persona_tui.chat import Node
    from persona_tui.model import Message
    from persona_tui.pictures.drift import Drift
    from persona_tui.project.project import Project
    from persona_tui.tui.stage import AppStage

_SILENT = "Nothing has been said yet: how this conversation drifts is shown here."


class DriftScreen(PictureScreen):
    """One direction at a time; the first one is the assistant axis."""

    TITLE = "drift"
    BINDINGS: ClassVar[list[BindingType]] = [*keys.DRIFT]

    def head(self) -> Sequence[Widget]:
        """Return what is chosen above the views."""
        return (Chooser("along", id="drift-along"),)

    def columns(self) -> Sequence[Sequence[View]]:
        """Return the views."""
        return ((DriftView(id="drift-view"),), (RepliesView(id="drift-replies"),))

    def on_mount(self) -> None:
        """Begin with the assistant axis."""
        self.place_views()
        chooser = self.query_one(Chooser)
        chooser.values = directions(self.owner)
        chooser.value = chooser.values[0] if chooser.values else ""
        self.set_focus(chooser)
        self.action_again()

    def on_chooser_changed(self, message: Chooser.Changed) -> None:
        """Read along another direction."""
        message.chooser.value = message.value
        self.action_again()

    def action_again(self) -> None:
        """Read the conversation of now."""
        project, name = self.owner.project, self.query_one(Chooser).value
        turns = turns_of(self.owner.chat.conversation)
        if not name:
            self.nothing(PersonaTuiError("This model has no axes and nobody to compare with."))
        elif not turns:
            self.empty(_SILENT)
        else:
            self.empty("Reading the conversation …")
            self.compute("drift", lambda context: _drift(project, turns, name, context), self._show)

    def _show(self, found: Drift) -> None:
        texts = [text for _, text in turns_of(self.owner.chat.conversation)][: len(found.readings)]
        unit = unit_of(found.name)
        spoken = [self._spoken(node, found.name) for node in replies_of(self.owner.chat.conversation)]
        self.query_one(DriftView).show(found, unit, spoken[: len(texts)])
        self.query_one(RepliesView).show(found, unit, texts, spoken[: len(texts)])

    def _spoken(self, node: Node, name: str) -> float | None:
        """Return where a reply was as it was spoken, if that was measured for each of its tokens."""
        known = [each.projections.get(name) for each in self.owner.readings(node.id)]
        values = [each for each in known if each is not None]
        return fmean(values) if values and len(values) == len(node.token_ids) else None

    def empty(self, why: str) -> None:
        """Draw a sentence instead."""
        self.query_one(DriftView).empty(why)


def _drift(
    project: Project, turns: Sequence[tuple[list[Message], str]], name: str, context: JobContext
) -> Drift:
    from persona_tui.pictures.drift import drift

    return drift(project.engine, turns, name, context)


def directions(app: AppStage) -> list[str]:
    """Return what can be read along: the axes, personas and traits."""
    personas = app.project.personas
    axes = personas.axes
    return [*(axes.names if axes is not None else ()), *personas.list_available(), *personas.list_traits()]
