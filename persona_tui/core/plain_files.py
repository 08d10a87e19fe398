"""Reading files that people or other programs put there: only ordinary ones, and only so much.

A device never ends, and opening a pipe waits for a writer that may never come; a program that reads what lies
in a folder must not hang on either, nor fill the memory with a file of many gigabytes.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from io import BufferedReader
from pathlib import Path

MOST_BYTES = 1 << 28  # of a file that is read whole
LONGEST_LINE = 1 << 24


def open_plain(path: Path) -> BufferedReader:
    """Open an ordinary file to read it; links are followed.

    Raises:
        OSError: it cannot be opened, or is a folder, a device or a pipe.
    """
    # Without waiting: not for the writer of a pipe.
    handle = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise OSError(errno.EINVAL, "it is not an ordinary file", str(path))
    return os.fdopen(handle, "rb")


def read_plain(path: Path, most_bytes: int = MOST_BYTES) -> bytes:
    """The bytes of an ordinary file.

    Raises:
        OSError: it cannot be read, is not an ordinary file, or is longer than `most_bytes`.
    """
    with open_plain(path) as file:
        size = os.fstat(file.fileno()).st_size
        if size > most_bytes:
            raise OSError(errno.EFBIG, f"it is too large ({size:,} bytes)", str(path))
        return file.read(most_bytes)


def lines_of(path: Path) -> Iterator[bytes]:
    """The lines of an ordinary file, one at a time, each with its end.

    Raises:
        OSError: it cannot be read, is not an ordinary file, or has a line longer than 16 MiB.
    """
    with open_plain(path) as file:
        while line := file.readline(LONGEST_LINE):
            if len(line) == LONGEST_LINE:
                raise OSError(errno.EFBIG, "it has a line that is too long", str(path))
            yield line
