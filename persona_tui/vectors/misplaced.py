"""Files of a model that lie where nobody looks for them."""

from __future__ import annotations

from pathlib import Path

from persona_tui.core.errors import VectorFileError
from persona_tui.vectors.files import PLACES, SUFFIX, read_metadata

_IMPORTED = (".pt", ".pth", ".bin", ".gguf", ".svec")


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
    """Return what to do about one file; "" if it is where it belongs."""
    if path.suffix in _IMPORTED:
        return f"it is not read from here; to import it: persona-tui import {path}"
    if path.suffix != SUFFIX or path.name.startswith("."):
        return ""
    try:
        kind = str(read_metadata(path).get("kind"))
    except VectorFileError:
        return ""
    if kind not in PLACES or (place := model_dir / PLACES[kind]) in (path, path.parent):
        return ""
    what = f"it holds {kind}" if place.suffix else f"it is a {kind}"
    return f"{what}: move it to {place}"
