"""Vector files that lie where nobody looks for them, and what to do about each."""

from __future__ import annotations

from pathlib import Path

from persona_tui.core.errors import VectorFileError
from persona_tui.vectors.files import SUFFIX, read_metadata

PLACES = {"persona": "personas", "trait": "traits", "monitor": "monitors"}


def misplaced(model_dir: Path) -> list[tuple[Path, str]]:
    """Return the files that a model's commands pass over, each with what to do, sorted.

    Looked at are the model's folder, the folders in it, and the folder above it. A file that cannot be read
    is left to whoever looks for it there.

    Args:
        model_dir: the folder of the model's vectors, `vectors/<model>`; it need not exist.
    """
    found = {}
    for path in sorted({*model_dir.parent.glob("*"), *model_dir.glob("*"), *model_dir.glob("*/*")}):
        if path.is_file() and (advice := _advice(path, model_dir)):
            found[path] = advice
    return sorted(found.items())


def _advice(path: Path, model_dir: Path) -> str:
    """What to do about one file; "" if it is where it belongs."""
    if path.suffix != SUFFIX or path.name.startswith("."):
        return ""
    try:
        kind = str(read_metadata(path).get("kind"))
    except VectorFileError:
        return ""
    place = PLACES.get(kind)
    if place is None or path.parent == model_dir / place:
        return ""
    return f"it is a {kind}: move it to {model_dir / place}"
