"""Every action of the app: its key, where the key can be remapped, and what the palette and the help say.

An action's id is its name in `interface.keys` of config.yaml.
"""

from dataclasses import dataclass
from typing import Protocol

from textual.binding import Binding


@dataclass(frozen=True)
class Action:
    """One thing the user can do.

    Attributes:
        id: what it is called in the settings.
        keys: the default keys, separated by commas; "" = palette only.
        action: what Textual runs.
        title: its name in the palette.
        help: what it does, in one line.
        hint: a word for the bottom row; "" = not shown there.
        palette: whether the palette offers it.
    """

    id: str
    keys: str
    action: str
    title: str
    help: str
    hint: str = ""
    palette: bool = True

    def binding(self) -> Binding:
        """Return it as Textual wants it."""
        return Binding(
            self.keys or f"unbound_{self.id}",  # no terminal sends this; a key can be given in the settings
            self.action,
            self.hint or self.title,
            show=bool(self.hint),
            priority=self.id in _PRIORITY,
            id=self.id,
        )


# Done by the app as soon as they come, so that keys typed right after them go where the focus is then. Others
# wait until the focused widget has seen what was typed before them.
_PRIORITY = {"quit", "mark_before", "mark_after", "personas", "mixer", "jobs"}

_NAMES = {
    "escape": "esc",
    "left": "←",
    "right": "→",
    "up": "↑",
    "down": "↓",
    "minus": "-",
    "delete": "del",
    "pageup": "pgup",
    "pagedown": "pgdn",
    "right_square_bracket": "]",
    "backslash": "\\",
    "circumflex_accent": "^",
}

ACTIONS = (
    Action("help", "f1", "show_help", "Help", "All keys and commands", "help"),
    Action("personas", "f2", "toggle_panel('personas')", "Personas", "Load, choose who speaks", "personas"),
    Action(
        "mixer", "f3", "toggle_panel('mixer')", "Strength and blend", "Strength, and who speaks", "strength"
    ),
    Action("jobs", "f4", "toggle_panel('jobs')", "Jobs", "Running jobs and the log", "jobs"),
    Action("regenerate", "f5", "regenerate", "Again", "Write the last reply again", "again"),
    Action("compare", "f6", "compare", "A/B", "Answer with two settings; once more changes B", "A/B"),
    Action("keep_a", "alt+left", "keep(0)", "Keep A", "Of two answers; the other one stays beside it"),
    Action("keep_b", "alt+right", "keep(1)", "Keep B", "Of two answers; the other one stays beside it"),
    Action(
        "inspector",
        "f7",
        "inspector",
        "Inspector",
        "A message token by token: projections, the floor",
        "tokens",
    ),
    Action("sessions", "f8", "sessions", "Sessions", "Saved conversations: find, resume, rename", "sessions"),
    Action("sampling", "f9", "sampling", "Sampling", "Temperature, top-p, length, seed", "sampling"),
    Action(
        "model",
        "f10,ctrl+o",
        "model",
        "Model",
        "Talk to another one: starter, tiny, recent, a folder, the hub",
        "model",
    ),
    Action(
        "monitors",
        "f11,ctrl+n",
        "monitors",
        "Monitors",
        "Layers, scores, thresholds: what guards the chat",
        "monitors",
    ),
    Action(
        "trait_lab",
        "f12",
        "traits",
        "Traits",
        "What they measure: this conversation, thresholds, limits",
        "traits",
    ),
    Action("back", "escape", "leave", "Back", "Close what is open, else stop the reply", "back/stop", False),
    Action(
        "louder",
        "ctrl+up,ctrl+right_square_bracket",
        "strength(0.05)",
        "Louder",
        "Strength up by 0.05, even mid-reply",
    ),
    Action(
        "quieter",
        "ctrl+down,ctrl+backslash",
        "strength(-0.05)",
        "Quieter",
        "Strength down by 0.05, even mid-reply",
    ),
    Action(
        "mark_before", "alt+up", "mark(-1)", "Messages", "Go to a message: copy it, edit it, walk versions"
    ),
    Action(
        "mark_after", "alt+down", "mark(1)", "Next message", "Of those that can be selected", palette=False
    ),
    Action("system", "ctrl+s", "system", "System prompt", "Write it on a full screen"),
    Action("editor", "ctrl+g", "editor", "Own editor", "Continue writing in $EDITOR"),
    Action("palette", "ctrl+p", "command_palette", "Palette", "Find any action by name", palette=False),
    Action("quit", "ctrl+q", "quit", "Quit", "Quit, whatever is running"),
    Action("redraw", "ctrl+l", "redraw", "Redraw", "Whatever has written over the screen"),
    Action("chat_end", "ctrl+end", "chat_end", "Last line", "Of the chat; end does it from an empty prompt"),
    Action("undelete", "ctrl+t,ctrl+z", "undelete", "Bring back", "What was deleted last in this run"),
    Action("stop", "", "stop", "Stop the reply", "What was said so far is kept"),
    Action("continue", "", "continue", "Go on", "Continue the last reply where it ended"),
    Action("new_chat", "", "new_chat", "New conversation", "The current one stays in the sessions"),
    Action("copy", "", "copy_reply", "Copy the reply", "The last one, as it was written"),
    Action("copy_code", "", "copy_reply(True)", "Copy code", "The last code block of the last reply"),
    Action("nobody", "", "nobody", "Stop speaking as a persona", "No persona: the plain model"),
    Action("capping", "", "toggle_capping", "Capping on or off", "The floor under the projections"),
    Action("guard", "", "guard", "Guard", "Judge messages and replies: off, warn, refuse"),
    Action("policy", "", "policy", "Policy", "Limits on the trait scores of replies"),
    Action("layers", "", "layers", "Steering layers", "Where personas are added"),
    Action("traces", "", "traces", "Trace", "Choose which projections are drawn under the chat"),
    Action(
        "map", "", "map", "Persona map", "Personas, roles, traits, axes, and this conversation among them"
    ),
    Action("drift", "", "drift", "Drift", "This conversation along an axis or a trait, reply by reply"),
    Action(
        "cap", "alt+c,ctrl+circumflex_accent", "cap", "Cap from here on", "Hold activations above the floor"
    ),
    Action("heat", "", "heat", "Layers by tokens", "A reply as a heat map, as spoken and as read unsteered"),
    Action(
        "tint", "alt+t", "tint", "Tint replies", "Token by token: surprise, what steering changed, direction"
    ),
    Action("sweep", "", "sweep", "Strength sweep", "The last message at five strengths, side by side"),
    Action("create", "", "create_persona", "New persona", "From an archetype, a description or prompts"),
    Action("prepare", "ctrl+r", "prepare", "Prepare this model", "Make its axes and a few personas"),
    Action("dataset", "", "dataset", "Write a data set", "Have the model write prompts and questions"),
    Action("cancel_job", "", "cancel_job", "Cancel the job", "The one that runs"),
    Action("resume_job", "", "resume_job", "Resume the job", "A job that an earlier run did not finish"),
    Action("theme", "", "toggle_theme", "Dark or light", "Change the colours"),
)


def key_name(key: str) -> str:
    """Return a key of Textual's as people write it: `ctrl+↑` for "ctrl+up"."""
    *modifiers, last = key.split("+")
    return "+".join([*modifiers, _NAMES.get(last, last)])


class KeyOwner(Protocol):
    """What knows how keys are mapped and shown."""

    def keys_of(self, action: str | None) -> str:
        """Return the keys that the user has given an action; "" where the default holds."""
        ...

    def get_key_display(self, binding: Binding) -> str:
        """Return a key as people write it."""
        ...


def key_of(owner: KeyOwner, binding: Binding) -> str:
    """Return the keys of a binding as the user has mapped them; "" if it has none."""
    keys = owner.keys_of(binding.id) or binding.key
    shown = [owner.get_key_display(binding.with_key(key)) for key in keys.split(",")]
    return " ".join(key for key in shown if "unbound" not in key)
