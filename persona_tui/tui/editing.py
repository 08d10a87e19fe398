"""Handing the terminal to the user's own editor for a while."""

from __future__ import annotations

from textual.app import App, SuspendNotSupported

from persona_tui.core.errors import PersonaTuiError
from persona_tui.tui.editor import edit, editor_command


def edit_in_own_editor(app: App[None], text: str) -> str:
    """Have a text changed in the user's own editor; the app waits meanwhile, the model's thread does not.

    Raises:
        PersonaTuiError: there is no editor, it failed, or this terminal cannot be handed over.
    """
    command = editor_command()
    try:
        with app.suspend():
            return edit(text, command)
    except SuspendNotSupported as error:
        raise PersonaTuiError("this terminal cannot be handed to an editor") from error
