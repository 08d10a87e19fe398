"""Which colours: the settings' choice, else what suits the terminal's background."""

from collections.abc import Collection, Mapping

from persona_tui.errors import ConfigError, nearest

NAMES = {"dark": "textual-dark", "light": "textual-light"}
_LIGHT_BACKGROUNDS = {"7", "15"}


def choose_theme(wanted: str, available: Collection[str], environment: Mapping[str, str]) -> str:
    """Return the name of a Textual theme.

    Args:
        wanted: "auto", "dark", "light", or a theme's own name.
        available: the names of all themes.
        environment: where terminals say what their background is, in COLORFGBG ("15;0").

    Raises:
        ConfigError: there is no such theme.
    """
    if wanted == "auto":
        background = environment.get("COLORFGBG", "").rpartition(";")[2]
        wanted = "light" if background in _LIGHT_BACKGROUNDS else "dark"
    name = NAMES.get(wanted, wanted)
    if name not in available:
        known = ["auto", *NAMES, *available]
        raise ConfigError(f"interface.theme: there is no theme {wanted!r}.{nearest(wanted, known)}")
    return name
