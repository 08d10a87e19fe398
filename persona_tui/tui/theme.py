"""Which colours: the settings' choice, else what suits the terminal's background and number of colours."""

from collections.abc import Collection, Mapping

from persona_tui.core.errors import ConfigError, nearest

NAMES = {"dark": "textual-dark", "light": "textual-light"}
SIXTEEN = {"dark": "ansi-dark", "light": "ansi-light"}
_LIGHT_BACKGROUNDS = {"7", "15"}


def choose_theme(
    wanted: str, available: Collection[str], environment: Mapping[str, str], colours: str | None = None
) -> str:
    """Return the name of a Textual theme.

    Args:
        wanted: "auto", "dark", "light", or a theme's own name.
        available: the names of all themes.
        environment: where terminals say what their background is, in COLORFGBG ("15;0").
        colours: what the terminal can show, as rich calls it. On one with 16 ("standard"), "auto" leaves the
            colours to the terminal; shades of grey would all become black there.

    Raises:
        ConfigError: there is no such theme.
    """
    names = NAMES
    if wanted == "auto":
        # Without colours, Textual makes greys of them, which a theme with a background of its own needs.
        names = SIXTEEN if colours == "standard" and "NO_COLOR" not in environment else NAMES
        background = environment.get("COLORFGBG", "").rpartition(";")[2]
        wanted = "light" if background in _LIGHT_BACKGROUNDS else "dark"
    name = names.get(wanted, wanted)
    if name not in available:
        known = ["auto", *NAMES, *available]
        raise ConfigError(f"interface.theme: there is no theme {wanted!r}.{nearest(wanted, known)}")
    return name


def other_theme(name: str, dark: bool) -> str:
    """Return the light theme for a dark one, and the other way round, with as many colours."""
    names = SIXTEEN if name in SIXTEEN.values() else NAMES
    return names["light" if dark else "dark"]
