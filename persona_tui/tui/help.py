"""What the help page and the empty chat say, with the keys as they are mapped now."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from textual.binding import Binding
from textual.content import Content

from persona_tui.tui.bindings import widget_bindings
from persona_tui.tui.keys import ACTIONS, Action, key_of

if TYPE_CHECKING:
    from persona_tui.tui.stage import AppStage

_KEY_WIDTH = 19

_SECTIONS = (
    (
        "in the prompt",
        ("prompt_send", "prompt_newline", "prompt_complete", "prompt_up", "prompt_down", "prompt_quit"),
    ),
    (
        "on a message",
        (
            "chat_previous",
            "chat_next",
            "chat_copy",
            "chat_code",
            "chat_edit",
            "chat_tint",
            "chat_before",
            "chat_after",
            "chat_again",
            "chat_continue",
        ),
    ),
    ("in the chat", ("chat_page_up", "chat_page_down")),
    (
        "in the inspector",
        (
            "inspect_direction",
            "inspect_direction_back",
            "inspect_left",
            "inspect_right",
            "inspect_up",
            "inspect_down",
            "inspect_lowest",
            "inspect_highest",
            "inspect_capped",
            "inspect_fork",
            "inspect_message_before",
            "inspect_message_after",
        ),
    ),
    (
        "in the list of personas",
        (
            "personas_load",
            "personas_speak",
            "personas_new",
            "personas_info",
            "personas_trace",
            "personas_calibrate",
            "personas_delete",
        ),
    ),
    (
        "on a fader",
        (
            "slider_less",
            "slider_more",
            "slider_much_less",
            "slider_much_more",
            "slider_type",
            "slider_zero",
            "slider_negate",
            "slider_solo",
        ),
    ),
    ("on a setting", ("capping_switch", "chooser_before", "chooser_after", "field_edit")),
    (
        "on a threshold (or type a number)",
        ("threshold_less", "threshold_more", "threshold_much_less", "threshold_much_more"),
    ),
    (
        "in the monitor screen",
        (
            "lab_before",
            "lab_next",
            "monitors_evaluate",
            "monitors_fit",
            "monitors_save",
            "monitors_reset",
            "monitors_write",
        ),
    ),
    (
        "in the trait screen",
        (
            "traits_extract",
            "traits_calibrate",
            "traits_save",
            "traits_reset",
            "traits_policy",
            "traits_write",
        ),
    ),
    ("on the persona map", ("map_before", "map_after", "map_again")),
    ("in the drift screen", ("drift_again", "drift_cap")),
    (
        "on layers by tokens",
        ("heat_before", "heat_after", "heat_first", "heat_last", "heat_direction", "heat_direction_back"),
    ),
    ("in a strength sweep", ("sweep_again", "sweep_use_1")),
    ("in the list of jobs", ("jobs_cancel", "jobs_resume", "jobs_info")),
    ("in the list of models", ("models_use", "models_type")),
    (
        "in the list of sessions",
        (
            "sessions_resume",
            "sessions_search",
            "sessions_rename",
            "sessions_export",
            "sessions_delete",
            "sessions_all",
        ),
    ),
    ("in the list of traces", ("traces_tick", "traces_use")),
    ("in a dialog", ("dialog_leave", "dialog_help", "setting_use", "write_use", "write_editor")),
    ("where a question is asked", ("confirm_choose", "confirm_no")),
)

_LEGEND = (
    (
        "strength",
        "how loud the voice is: 0 = the plain model, about 0.3 = in character, 1 = far too much",
    ),
    ("share", "of a blend: who gives how much of the direction; −38% is turned round"),
    ("σ", "the spread of ordinary replies along an axis: 0 = their mean, −2σ is rare among them"),
    ("of its own", "along a persona's direction: 0 = ordinary replies, 1 = its own replies"),
    ("trait", "−1 = like its low examples, +1 = like its high ones"),
    ("assistant axis", "from the personas' replies to ordinary ones: low = far from the default assistant"),
    ("safety axis", "from refusals to ordinary help: a floor on it talks a model out of refusing"),
    ("weak", "a direction that is made of too little, or hardly tells its sides apart"),
    ("floor", "the lowest projection allowed: a percentile of ordinary replies"),
    ("capping", "raising what lies below the floor back to it, at every token"),
    ("▴", "a token that the floor has lifted"),
    (
        "guide",
        "what the plain model gives less than this share of its likeliest token is not said",
    ),
    ("from plain", "nats a token: how much more probable steering made what was said; 0 = the plain model"),
    ("size", "how long the added vector is, as a share of the model's own activations there"),
    ("fluency", "whether it still is language: repetition, uncertainty above this model's own, loudness"),
    (
        "guard",
        "safe 0.31 > 0.12: the score, and the threshold that it has to be above",
    ),
    ("tint", "amber = a surprising token; green, red = steering made it likelier, less likely"),
    ("● ◐ ○ ~", "speaking, loaded (can be blended), on disk, traced"),
)


def legend(width: int) -> Content:
    """Return what the words and signs on the screen mean.

    Args:
        width: of the page, in cells.
    """
    rows = [line for word, what in _LEGEND for line in _wrapped(word, what, width)]
    return Content("\n").join(rows)


def help_text(
    app: AppStage, width: int, here: Sequence[tuple[str, str]], commands: Sequence[tuple[str, str]]
) -> Content:
    """Return the help page: first the keys of what has the focus, then all others.

    Args:
        app: whose keys they are.
        width: of the page, in cells.
        here: what `help_here` has found.
        commands: every slash command, and what it does.
    """
    by_id = {binding.id: binding for binding in widget_bindings()}
    sections = [
        ("here", here),
        ("anywhere", [(key_of(app, action.binding()), _sentence(action)) for action in ACTIONS]),
        (f"in the palette ({app.key_label('palette')}), which has all of the above, too", _by_name(app)),
        *((title, _keys(app, [by_id[name] for name in ids if name in by_id])) for title, ids in _SECTIONS),
        ("commands", commands),
    ]
    return Content("\n").join(line for title, rows in sections for line in _section(title, rows, width))


def _by_name(app: AppStage) -> list[tuple[str, str]]:
    """Return what has no key: it is found by its name."""
    return [(action.title, action.help) for action in ACTIONS if not key_of(app, action.binding())]


def help_here(app: AppStage) -> list[tuple[str, str]]:
    """Return the keys that do something just here: in what has the focus, or in its dialog."""
    screen = app.screen
    whole = {binding.id: binding for binding in widget_bindings()}
    own = {
        active.binding.id: whole.get(active.binding.id, active.binding)
        for active in screen.active_bindings.values()
        if active.enabled and active.binding.id and active.node in (screen.focused, screen)
    }
    return _keys(app, own.values())


def _keys(app: AppStage, bindings: Iterable[Binding]) -> list[tuple[str, str]]:
    return [(key_of(app, binding), binding.description) for binding in bindings]


def _sentence(action: Action) -> str:
    return f"{action.title}: {action.help[:1].lower()}{action.help[1:]}"


def _section(title: str, rows: Iterable[tuple[str, str]], width: int) -> list[Content]:
    shown = [line for key, what in rows if key for line in _wrapped(key, what, width)]
    return [Content.styled(title, "bold $text-primary"), *shown, Content("")] if shown else []


def _wrapped(key: str, what: str, width: int) -> list[Content]:
    """Return a key and what it does; what does not fit into one line, or beside the key, goes on below."""
    lines = textwrap.wrap(what, max(width - _KEY_WIDTH - 2, 20))
    if len(key) >= _KEY_WIDTH:
        lines.insert(0, "")
    first, *rest = lines or [""]
    row = Content.assemble((f"  {key:<{_KEY_WIDTH}}", "$text-accent"), first)
    return [row, *(Content(" " * (_KEY_WIDTH + 2) + line) for line in rest)]
