"""Where the personas lie: the map, with the present mix and the conversation on it, and their cosines."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

from textual.binding import BindingType

from persona_tui.chat.reread import turns_of
from persona_tui.core.jobs import JobContext
from persona_tui.tui.screens.picture import PictureScreen
from persona_tui.tui.views import keys
from persona_tui.tui.views.map import CosineView, MapView
from persona_tui.tui.views.view import View

if TYPE_CHECKING:
    from persona_tui.pictures.cosines import CosineGrid
    from persona_tui.pictures.space import PersonaMap


class MapScreen(PictureScreen):
    """The plane in which the model's personas differ most."""

    TITLE = "map"
    BINDINGS: ClassVar[list[BindingType]] = [*keys.MAP]

    def columns(self) -> Sequence[Sequence[View]]:
        """Return the views."""
        return ((MapView(id="map-view"),), (CosineView(id="cosine-view"),))

    def on_mount(self) -> None:
        """Draw it as soon as the model has time."""
        self.place_views()
        self.action_again()

    def action_again(self) -> None:
        """Work it out, with the voice and the conversation of now."""
        project, chat = self.owner.project, self.owner.chat
        turns = turns_of(chat.conversation) if project.personas.axes is not None else []
        mix = chat.mix

        def work(context: JobContext) -> tuple[PersonaMap, CosineGrid | None]:
            from persona_tui.pictures.cosines import cosine_grid
            from persona_tui.pictures.space import persona_map

            found = persona_map(project.engine, mix, turns)
            context.checkpoint()
            few = len(project.personas.usable()) < 2
            return found, None if few else cosine_grid(project.personas)

        self.empty("Reading the conversation …" if turns else "…")
        self.compute("map", work, self._show)

    def _show(self, found: tuple[PersonaMap, CosineGrid | None]) -> None:
        self.query_one(MapView).show(found[0], next(iter(self.owner.chat.mix.speaking), ""))
        if found[1] is not None:
            self.query_one(CosineView).show(found[1])
        else:
            self.query_one(CosineView).empty("A grid needs two personas.")

    def action_step(self, by: int) -> None:
        """Mark another persona on the map."""
        self.query_one(MapView).step(by)

    def empty(self, why: str) -> None:
        """Draw a sentence instead."""
        self.query_one(MapView).empty(why)
        self.query_one(CosineView).empty("")
