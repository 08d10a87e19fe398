"""The trait screen."""

from persona_tui.tui.screens.lab import LabScreen


class TraitsScreen(LabScreen):
    """Everything about the traits of the model in use."""

    TITLE = "traits"
