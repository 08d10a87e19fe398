"""Names of files, and changing them: whole or not at all, one writer at a time, deleted ones are kept.

Deleted files lie in the workspace's trash folder, and can be put back:

    trash/20261128-090312-9f3a/vectors/builtin/personas/sage.safetensors

Nothing here empties it: it is the user's, to look through or to remove.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import secrets
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from filelock import FileLock, Timeout

from persona_tui.core.errors import WorkspaceError

_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_-]{0,63}")
# Windows opens a device instead of a file of this name, whatever its ending; workspaces travel.
_RESERVED = re.compile(r"(?i:con|prn|aux|nul|com[0-9]|lpt[0-9])")


def safe_name(name: str) -> str:
    """Return `name` if it can name a file in the workspace; raise WorkspaceError if not."""
    if _NAME.fullmatch(name) and not _RESERVED.fullmatch(name):
        return name
    if _RESERVED.fullmatch(name):
        raise WorkspaceError(
            f"{name!r} cannot be a name: Windows reserves it for a device. Choose another one."
        )
    shown = name if len(name) <= 40 else f"{name[:37]}..."
    raise WorkspaceError(
        f"{shown!r} cannot be a name: use up to 64 letters, digits, _ and -, not starting with -."
    )


def check_case(path: Path) -> None:
    """Raise if a file beside `path` has its name in other letters (`Sage` beside `sage`).

    Windows and macOS keep only one of the two.

    Raises:
        WorkspaceError: there is one; it is named.
    """
    folded = path.name.casefold()
    try:
        names = [entry.name for entry in path.parent.iterdir()]
    except OSError:
        return  # there is no such folder yet, so nothing in it either
    twin = next((name for name in names if name != path.name and name.casefold() == folded), None)
    if twin is not None and path.name not in names:
        raise WorkspaceError(
            f'"{path.stem}" and "{Path(twin).stem}" differ only in upper and lower case, and some systems '
            f"cannot store both: choose another name, or write {Path(twin).stem}."
        )


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


SHORT = 20.0  # seconds that a change of a small file waits for others to finish theirs

LOCK_NAME = ".lock"
_POLL = 0.02  # seconds between two tries
_NO_LINKS: int = getattr(os, "O_NOFOLLOW", 0)
_NO_WAITING: int = getattr(os, "O_NONBLOCK", 0)  # for the other end of a pipe
_ELSEWHERE = 1 << 30  # the byte that `lock_handle` locks on Windows; those with the content stay readable
_NO_LOCKS_HERE = (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS)  # some network drives have none


@contextmanager
def only_writer(folder: Path, what: str, wait: float = 0.0, name: str = LOCK_NAME) -> Iterator[None]:
    """Be the only process, and the only thread, that writes in a folder, as far as the others ask, too.

    The operating system holds the lock and lets go of it when the process ends, however it ends: a lock
    file that a crash left behind blocks nobody. It is not reentrant.

    Args:
        folder: made if it is missing.
        what: what is done there, for whoever is turned away.
        wait: how many seconds to wait for another holder; 0 = turn away at once.
        name: of the lock's file; another one than the usual to lock less than the whole folder.

    Raises:
        WorkspaceError: somebody else has the lock, or the folder cannot be written to.
    """
    path = folder / name
    try:
        lock = _acquired(path, wait)
    except Timeout as error:
        raise WorkspaceError(_busy(path)) from error
    except OSError as error:
        raise WorkspaceError(f"{folder} cannot be written: {error.strerror or error}.") from error
    try:
        with contextlib.suppress(OSError):  # the lock holds without a name, too
            _sign(path, what)
        yield
    finally:
        # Removed while it is still held: whoever opened it meanwhile notices, and opens a new one.
        with contextlib.suppress(OSError):
            path.unlink(missing_ok=True)
        lock.release()


def change(folder: Path, what: str) -> contextlib.AbstractContextManager[None]:
    """Hold a folder's lock while a small file in it is read, changed and written back; waits for others."""
    return only_writer(folder, what, SHORT)


def _acquired(path: Path, wait: float) -> FileLock:
    while True:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(path, thread_local=False)
        try:
            lock.acquire(timeout=wait, poll_interval=_POLL)
        except FileNotFoundError:
            continue  # somebody removed the empty folder in between
        return lock


def _sign(path: Path, what: str) -> None:
    handle = os.open(path, os.O_WRONLY | os.O_TRUNC | _NO_LINKS | _NO_WAITING)
    try:
        os.write(handle, json.dumps({"pid": os.getpid(), "what": what}).encode())
    finally:
        os.close(handle)


def lock_handle(handle: int) -> bool:
    """Lock an open file until it is closed, if nobody has locked it; return whether that was so.

    For files whose content the lock is about, such as sessions. Where a drive has no locks, everybody gets
    one.
    """
    try:
        if sys.platform == "win32":
            import msvcrt

            os.lseek(handle, _ELSEWHERE, os.SEEK_SET)
            msvcrt.locking(handle, msvcrt.LK_NBLCK, 1)
            os.lseek(handle, 0, os.SEEK_SET)
        else:
            import fcntl

            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        return False
    except OSError as error:
        if error.errno not in _NO_LOCKS_HERE:
            raise
    return True


def _busy(path: Path) -> str:
    try:
        handle = os.open(path, os.O_RDONLY | _NO_LINKS | _NO_WAITING)
        try:
            holder = json.loads(os.read(handle, 4096))
        finally:
            os.close(handle)
        name, what = f"process {int(holder['pid'])}", f" ({holder['what']})"
    except (OSError, ValueError, KeyError, TypeError):
        name, what = "another process", ""
    return f"{name} is writing in {path.parent}{what}: wait for it, stop it, or use another --workspace."


TRASH = "trash"


@dataclass(frozen=True)
class Trashed:
    """A deleted file.

    Attributes:
        path: where it was.
        kept: where it lies now.
    """

    path: Path
    kept: Path


def discard_file(root: Path, path: Path) -> Trashed:
    """Move a file into the trash of the workspace at `root`.

    Raises:
        WorkspaceError: it cannot be moved; it is where it was.
    """
    inside = path.relative_to(root) if path.is_relative_to(root) else Path(path.name)
    kept = root / TRASH / f"{datetime.now():%Y%m%d-%H%M%S}-{secrets.token_hex(2)}" / inside
    _move(path, kept, f"{path} cannot be deleted")
    return Trashed(path, kept)


def restore_file(trashed: Trashed) -> Path:
    """Put a deleted file back where it was.

    Raises:
        WorkspaceError: another file has its name by now, or it cannot be moved; it stays in the trash.
    """
    if trashed.path.exists():
        raise WorkspaceError(
            f"{trashed.path} exists again, so the deleted one was left in the trash: {trashed.kept}."
        )
    _move(trashed.kept, trashed.path, f"{trashed.path} cannot be restored")
    return trashed.path


def _move(source: Path, target: Path, problem: str) -> None:
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.move(source, target)  # the folders may be on different file systems
    except OSError as error:
        raise WorkspaceError(f"{problem}: {error.strerror or error}.") from error
