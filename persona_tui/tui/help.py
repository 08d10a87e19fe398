"""What the help page and the empty chat say, with the keys as they are mapped now."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from textual.binding import Binding
from textual.content import Content

from persona_tui.tui.keys import ACTIONS, Action, widget_bindings

if TYPE_CHECKING:
    from persona_tui.tui.app import PersonaApp

_KEY_WIDTH = 19

_LIST = ("personas_load", "personas_speak", "personas_new", "personas_info", "personas_delete")
_FADER = ("slider_less", "slider_much_less", "slider_zero", "slider_negate", "slider_solo")
_SECTIONS = (
    ("in the prompt", ("prompt_send", "prompt_newline", "prompt_complete", "prompt_up", "prompt_down")),
    ("in the chat", ("chat_page_up", "chat_page_down")),
    ("in the list of personas", _LIST),
    ("on a fader (or type a number)", _FADER),
    ("in the list of jobs", ("jobs_cancel", "jobs_resume", "jobs_forget", "jobs_info")),
)

_FIRST_STEPS = (
    ("personas", "choose who speaks"),
    ("mixer", "how loud, also while it speaks"),
    ("help", "all keys and commands"),
    ("quit", "leave"),
)


def key_of(app: PersonaApp, binding: Binding) -> str:
    """Return the keys of a binding as the user has mapped them; "" if it has none."""
    keys = app.keys_of(binding.id) or binding.key
    shown = [app.get_key_display(binding.with_key(key)) for key in keys.split(",")]
    return " ".join(key for key in shown if "unbound" not in key)


def welcome(app: PersonaApp) -> Content:
    """Return what an empty chat says."""
    by_id = {action.id: action.binding() for action in ACTIONS}
    lines = [
        Content.styled("Say something, and press enter.", "bold"),
        Content(
            "A persona is a direction in the model's activations: turn it up and down and hear what it does."
        ),
        Content(""),
        *(_row(key_of(app, by_id[name]), what, 8) for name, what in _FIRST_STEPS),
        _row("/", "commands", 8),
    ]
    return Content("\n").join(lines)


def help_text(app: PersonaApp) -> Content:
    """Return the help page."""
    lines = _section("anywhere", ((key_of(app, action.binding()), _sentence(action)) for action in ACTIONS))
    by_id = {binding.id: binding for binding in widget_bindings()}
    for title, ids in _SECTIONS:
        lines += _section(
            title, ((key_of(app, by_id[name]), by_id[name].description) for name in ids if name in by_id)
        )
    lines += _section("commands", app.slash.all())
    return Content("\n").join(lines)


def _sentence(action: Action) -> str:
    return f"{action.title}: {action.help[:1].lower()}{action.help[1:]}"


def _section(title: str, rows: Iterable[tuple[str, str]]) -> list[Content]:
    return [
        Content.styled(title, "bold $text-primary"),
        *(_row(key, what) for key, what in rows if key),
        Content(""),
    ]


def _row(key: str, what: str, width: int = _KEY_WIDTH) -> Content:
    return Content.assemble((f"  {key:<{width}}", "$text-accent"), what)
