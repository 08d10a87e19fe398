"""The keys of the app's own widgets and screens, which can be remapped like those of actions."""

from __future__ import annotations

from textual.binding import Binding

from persona_tui.tui.keys import ACTIONS

RETIRED = ("confirm_yes", "jobs_forget")  # once had keys; settings that name them are no mistake


def widget_bindings() -> list[Binding]:
    """Return the keys of the app's own widgets and screens, which can be remapped too."""
    from persona_tui.tui.screens.compare import SettingScreen
    from persona_tui.tui.screens.confirm import ConfirmScreen
    from persona_tui.tui.screens.create import CreateScreen
    from persona_tui.tui.screens.dialog import Dialog
    from persona_tui.tui.screens.inspector import InspectorScreen
    from persona_tui.tui.screens.model import ModelList
    from persona_tui.tui.screens.page import PageScreen
    from persona_tui.tui.screens.picture import PictureScreen
    from persona_tui.tui.screens.results import ResultsScreen
    from persona_tui.tui.screens.sessions import SessionList
    from persona_tui.tui.screens.traces import TraceList
    from persona_tui.tui.screens.write import WriteScreen
    from persona_tui.tui.views import keys as labs
    from persona_tui.tui.views.threshold import ThresholdSlider
    from persona_tui.tui.widgets.chat_log import ChatLog
    from persona_tui.tui.widgets.chooser import Chooser, FieldRow
    from persona_tui.tui.widgets.inspector import Inspector
    from persona_tui.tui.widgets.jobs_panel import JobList
    from persona_tui.tui.widgets.mixer import CappingSwitch
    from persona_tui.tui.widgets.personas import PersonaList
    from persona_tui.tui.widgets.prompt import Prompt
    from persona_tui.tui.widgets.slider import FloatSlider
    from persona_tui.tui.widgets.token_view import TokenView

    widgets = (Prompt, ChatLog, PersonaList, FloatSlider, ThresholdSlider, CappingSwitch, Chooser)
    rows = (FieldRow, JobList, TokenView, Inspector, InspectorScreen)
    forms = (Dialog, ConfirmScreen, CreateScreen, PageScreen, SettingScreen, WriteScreen)
    lists = (ModelList, SessionList, TraceList)
    found = [
        binding
        for owner in (*widgets, *rows, *forms, *lists, ResultsScreen, PictureScreen)
        for binding in owner.__dict__.get("BINDINGS", ())
        if isinstance(binding, Binding)
    ]
    return [*found, *labs.MONITORS, *labs.TRAITS, *labs.PICTURES]


def known_ids() -> list[str]:
    """Return every id that `interface.keys` may use."""
    own = [binding.id for binding in widget_bindings() if binding.id]
    return [*(action.id for action in ACTIONS), *own, *RETIRED]
