"""The command palette."""

from contextlib import suppress

from textual.command import CommandPalette

from persona_tui.tui.sturdy import Sturdy


class Palette(Sturdy, CommandPalette):
    """Textual's palette, in which (8.2) page up and page down raise while no row has been laid out."""

    def _action_command_list(self, action: str) -> None:
        with suppress(KeyError):
            super()._action_command_list(action)
