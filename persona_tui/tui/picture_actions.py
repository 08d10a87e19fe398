"""What opens the pictures: actions of the app. Their screens are imported when they open."""

from __future__ import annotations

from persona_tui.tui.stage import AppStage
from persona_tui.tui.sweeps import Sweeps


class PictureActions(AppStage):
    """The actions that show what steering does."""

    def __init__(self) -> None:
        super().__init__()
        self.sweeps = Sweeps(self)

    def action_map(self) -> None:
        """Show where the personas lie."""
        self.attempt(self._show_map)

    def _show_map(self) -> None:
        self.check_model()
        from persona_tui.tui.screens.map import MapScreen

        if not isinstance(self.screen, MapScreen):
            self.push_screen(MapScreen())

    def action_sweep(self) -> None:
        """Show the last sweep, or answer the last message at five strengths."""
        self.attempt(self.sweeps.open)

    def sweep(self, prompt: str) -> None:
        """Answer a prompt at five strengths."""
        self.sweeps.open(prompt)
