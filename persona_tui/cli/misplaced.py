"""What a list says of files in the wrong place, beside what it is about."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from persona_tui.project.project import Project


def with_misplaced(
    project: Project, entries: Sequence[dict[str, Any]], folder: Path, **fields: Any
) -> list[dict[str, Any]]:
    """Return a folder's entries, and one for each file of the model's that lies in the wrong place.

    Args:
        project: the model.
        entries: what there is, each with its `name`. One that a file of another kind has made is left out.
        folder: where they are from.
        fields: what else an entry has.
    """
    from persona_tui.vectors.files import SUFFIX
    from persona_tui.vectors.misplaced import misplaced

    astray = misplaced(project.workspace.model_dir(project.slug))
    names = {path.stem for path, _ in astray if path.parent == folder and path.suffix == SUFFIX}
    kept = [entry for entry in entries if entry["name"] not in names or entry.get("extracted") is False]
    return [*kept, *({"name": path.name, **fields, "error": advice} for path, advice in astray)]
