"""One writer at a time: a lock that names its holder and never outlives it."""

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

SHORT = 20.0  # seconds that a change of a small file waits for others to finish theirs

NAME = ".lock"
_POLL = 0.02  # seconds between two tries
_NO_LINKS: int = getattr(os, "O_NOFOLLOW", 0)
_NO_WAITING: int = getattr(os, "O_NONBLOCK", 0)  # for the other end of a pipe
_ELSEWHERE = 1 << 30  # the byte that `lock_handle` locks on Windows; those with the content stay readable
_NO_LOCKS_HERE = (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS)  # some network drives have none


@contextmanager
def only_writer(folder: Path, what: str, wait: float = 0.0, name: str = NAME) -> Iterator[None]:
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
