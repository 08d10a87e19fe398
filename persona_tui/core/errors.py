"""Every error that a user can cause.

The text of each is one line that says what is wrong and, where it can, what to do. Front ends show
`Error: <text>`; a traceback is for mistakes in this program only.
"""

from collections.abc import Iterable
from difflib import get_close_matches


class PersonaTuiError(Exception):
    """Base of every error below; `str()` of it is the one line that is shown."""

    def __str__(self) -> str:
        # What it quotes, a name or a library's own words, may have several.
        return " ".join(line.strip() for line in super().__str__().splitlines())


class ConfigError(PersonaTuiError):
    """config.yaml, or a setting given elsewhere, is not usable."""


class WorkspaceError(PersonaTuiError):
    """A folder or name that the workspace needs is missing, unsafe or not writable."""


class DatasetError(PersonaTuiError):
    """A data set is missing or has a bad line."""


class VectorFileError(PersonaTuiError):
    """A vector file is missing, damaged, or belongs to another model."""


class LayerNotFoundError(VectorFileError):
    """A direction has no vector at a layer where it was asked for."""


class PersonaNotFoundError(PersonaTuiError):
    """No persona has this name."""


class ModelLoadError(PersonaTuiError):
    """A model could not be loaded."""


class GenerationError(PersonaTuiError):
    """A model could not produce what was asked for."""


class EndpointError(PersonaTuiError):
    """A model behind an HTTP endpoint gave no usable answer."""


class SessionError(PersonaTuiError):
    """A saved conversation is missing, damaged, in use elsewhere, or cannot do what was asked of it."""


class MemoryShortage(GenerationError):
    """Memory ran out; fewer responses at a time may fit."""


class MonitorError(PersonaTuiError):
    """A monitor is missing, or cannot be used like that."""


class JobCancelled(PersonaTuiError):
    """Somebody asked a job to stop, and it did."""


def nearest(word: str, known: Iterable[str]) -> str:
    """Return ` Did you mean "x"?` for the known word most like `word`, or "" when none is like it."""
    by_folded = {name.casefold(): name for name in known}
    matches = get_close_matches(word.casefold(), by_folded, n=1)
    return f' Did you mean "{by_folded[matches[0]]}"?' if matches else ""
