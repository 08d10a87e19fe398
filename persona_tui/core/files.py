"""Writes that either happen whole or not at all."""

import contextlib
import os
import secrets
from pathlib import Path

from persona_tui.core.errors import WorkspaceError


def atomic_write_text(path: Path, text: str, *, inside: Path | None = None) -> None:
    """Write `text` as UTF-8; see `atomic_write_bytes`."""
    atomic_write_bytes(path, text.encode("utf-8"), inside=inside)


def atomic_write_bytes(path: Path, data: bytes, *, inside: Path | None = None) -> None:
    """Replace the file at `path` by `data`: a reader sees the old bytes or the new ones, never a part.

    The bytes go to a temporary file in the same folder, are flushed to the disk, and take the name in one
    step. Missing folders are made. Links are followed, but not out of `inside`, by default the file's folder.

    Raises:
        WorkspaceError: the file lies outside `inside` once links are followed, or cannot be written.
    """
    target = _resolved_inside(path, inside or path.parent)
    temporary = target.with_name(f".{target.name}.{secrets.token_hex(4)}.tmp")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        _write_and_flush(temporary, data)
        os.replace(temporary, target)
        _flush_folder(target.parent)
    except OSError as error:
        raise WorkspaceError(f"{path} cannot be written: {error.strerror or error}.") from error
    finally:
        # After the rename there is nothing left of that name.
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def check_free(*paths: Path | None, advice: str = "") -> None:
    """Refuse to write over what is there; call it before anything takes long.

    Args:
        paths: of the files that will be written; None = not this one.
        advice: how the user allows it.

    Raises:
        WorkspaceError: names the first that exists.
    """
    taken = next((path for path in paths if path is not None and path.exists()), None)
    if taken is not None:
        raise WorkspaceError(f"{taken} exists: choose another name{advice}.")


def _resolved_inside(path: Path, folder: Path) -> Path:
    try:
        target, home = path.resolve(), folder.resolve()
    except (OSError, RuntimeError) as error:
        raise WorkspaceError(f"{path} cannot be written: it is a broken link.") from error
    if not target.is_relative_to(home):
        raise WorkspaceError(f"{path} is a link out of {folder}; nothing was written.")
    return target


def _write_and_flush(path: Path, data: bytes) -> None:
    with path.open("xb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _flush_folder(folder: Path) -> None:
    """Make a rename outlive a power cut. Windows has no such call and needs none."""
    if os.name != "posix":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
