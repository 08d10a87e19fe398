"""One writer at a time.

`only_writer` is for long work: it turns others away, and names who holds it. `changing` is for files that are
read, changed and written in one moment: others wait their turn, so that no change is lost. Neither lock
outlives the process that holds it.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from persona_tui.core.errors import WorkspaceError

CHANGING = ".changing.lock"

_PATIENCE = 30.0  # seconds; a change takes milliseconds
_ELSEWHERE = 1 << 30  # the byte that is locked; those with the holder's name stay readable
_NO_LINKS: int = getattr(os, "O_NOFOLLOW", 0)
_NO_LOCKS_HERE = (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS)  # some network drives have none


@contextmanager
def changing(folder: Path) -> Iterator[None]:
    """Within, no other process changes the small files of a folder: read, change and write them here.

    Args:
        folder: made if it is missing.

    Raises:
        WorkspaceError: another process has kept the lock for half a minute, or nothing can be written there.
    """
    lock = FileLock(folder / CHANGING)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=_PATIENCE)
    except Timeout as error:
        raise WorkspaceError(
            f"another process keeps {folder / CHANGING} locked: end it and try again."
        ) from error
    except NotImplementedError:  # some network drives have no locks; nobody is turned away there
        pass
    except OSError as error:
        raise WorkspaceError(f"{folder} cannot be written: {error.strerror or error}.") from error
    try:
        yield
    finally:
        lock.release()


@contextmanager
def only_writer(folder: Path, what: str) -> Iterator[None]:
    """Within, this process is the only one that writes in a folder, as far as others ask, too.

    The operating system holds the lock and lets go of it when the process ends, however it ends: a lock
    file that a crash left behind blocks nobody.

    Args:
        folder: made if it is missing.
        what: what is done there, for whoever is turned away.

    Raises:
        WorkspaceError: another process has the lock, or the folder cannot be written to.
    """
    path = folder / ".lock"
    try:
        handle = _acquired(path)
    except OSError as error:
        raise WorkspaceError(f"{folder} cannot be written: {error.strerror or error}.") from error
    try:
        with contextlib.suppress(OSError):  # the lock holds without a name, too
            os.write(handle, json.dumps({"pid": os.getpid(), "what": what}).encode())
        yield
    finally:
        # Removed while it is still held: whoever opened it meanwhile notices, and opens a new one.
        with contextlib.suppress(OSError):
            path.unlink(missing_ok=True)
        os.close(handle)


def _acquired(path: Path) -> int:
    """A locked handle of the file that has this name; not of one that was removed in the meantime."""
    while True:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            handle = os.open(path, os.O_RDWR | os.O_CREAT | _NO_LINKS, 0o644)
        except FileNotFoundError:
            continue  # somebody removed the empty folder in between
        try:
            if not lock_handle(handle):
                raise WorkspaceError(_busy(handle, path.parent))
            if _same_file(handle, path):
                os.truncate(handle, 0)
                return handle
        except BaseException:
            os.close(handle)
            raise
        os.close(handle)


def lock_handle(handle: int) -> bool:
    """Lock an open file until it is closed, if nobody has locked it; whether that was so.

    Where a drive has no locks, everybody gets one.
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


def _same_file(handle: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(handle), path.stat())
    except FileNotFoundError:
        return False


def _busy(handle: int, folder: Path) -> str:
    try:
        os.lseek(handle, 0, os.SEEK_SET)
        holder = json.loads(os.read(handle, 4096))
        name, what = f"process {int(holder['pid'])}", f" ({holder['what']})"
    except (OSError, ValueError, KeyError, TypeError):
        name, what = "another process", ""
    return f"{name} is writing in {folder}{what}: wait for it, end it, or use another --workspace."
