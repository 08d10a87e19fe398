"""What was deleted lies in the workspace's trash folder, and can be put back.

    trash/20261128-090312-9f3a/vectors/builtin/personas/sage.safetensors

Nothing here empties it: it is the user's, to look through or to remove.
"""

from __future__ import annotations

import secrets
import shutil
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from persona_tui.core.errors import WorkspaceError

FOLDER = "trash"


@dataclass(frozen=True)
class Trashed:
    """A deleted file.

    Attributes:
        path: where it was.
        kept: where it lies now.
    """

    path: Path
    kept: Path


def discard(root: Path, path: Path) -> Trashed:
    """Move a file into the trash of the workspace at `root`.

    Raises:
        WorkspaceError: it cannot be moved; it is where it was.
    """
    inside = path.relative_to(root) if path.is_relative_to(root) else Path(path.name)
    kept = root / FOLDER / f"{datetime.now():%Y%m%d-%H%M%S}-{secrets.token_hex(2)}" / inside
    _move(path, kept, f"{path} cannot be deleted")
    return Trashed(path, kept)


def restore(trashed: Trashed) -> Path:
    """Put a deleted file back where it was.

    Raises:
        WorkspaceError: another file has its name by now, or it cannot be moved; it stays in the trash.
    """
    if trashed.path.exists():
        raise WorkspaceError(
            f"{trashed.path} exists again, so the deleted one was left where it lies: {trashed.kept}."
        )
    _move(trashed.kept, trashed.path, f"{trashed.path} cannot be restored")
    return trashed.path


def _move(source: Path, target: Path, problem: str) -> None:
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.move(source, target)  # the folders may be on different file systems
    except OSError as error:
        raise WorkspaceError(f"{problem}: {error.strerror or error}.") from error
