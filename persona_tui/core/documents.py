"""What other people or programs wrote, read within limits and shown safely; `yaml_documents` reads YAML.

A few hundred bytes of JSON can ask for a tree a thousand levels deep: whoever walks through that runs out of
stack. A device never ends, and opening a pipe waits for a writer that may never come. A name or a reply may
hold an escape sequence. Each is refused, or replaced, where it is read.
"""

from __future__ import annotations

import errno
import json
import os
import re
import stat
from collections.abc import Iterator
from io import BufferedReader
from pathlib import Path
from typing import Any, NoReturn

DEEPEST = 100  # levels
TOO_DEEP = f"more than {DEEPEST} levels deep"
TOO_LONG = "a whole number of thousands of digits"
HALF = "half a character in a text (a lone surrogate, for example half an emoji)"
_ESCAPED_HALF = re.compile(r"\\u[dD][89a-fA-F]")
_HALF = re.compile("[\ud800-\udfff]")


def json_value(text: str | bytes, constants: bool = True, halves: bool = False) -> Any:
    """Return the value that JSON stands for.

    Args:
        text: one document.
        constants: whether NaN and Infinity are taken, which JSON does not have.
        halves: whether texts may have one of two surrogates alone, which no encoding writes.

    Raises:
        ValueError: it is not JSON, more than `DEEPEST` levels deep, or has half a character.
    """
    try:
        value = json.loads(text) if constants else json.loads(text, parse_constant=_no_constant)
    except RecursionError:
        raise ValueError(TOO_DEEP) from None
    except ValueError as error:
        if is_too_long(error):
            raise ValueError(TOO_LONG) from None
        raise
    if _may_be_deep(text) and _deeper_than(value, DEEPEST):
        raise ValueError(TOO_DEEP)
    if not halves and _may_have_half(text) and _HALF.search(json.dumps(value, ensure_ascii=False)):
        raise ValueError(HALF)
    return value


def is_too_long(error: ValueError) -> bool:
    """Return whether it is Python's refusal to read a whole number, which advises a change of the program."""
    return "set_int_max_str_digits" in str(error)


def _may_have_half(text: str | bytes) -> bool:
    found = _ESCAPED_HALF.search(text if isinstance(text, str) else text.decode("latin-1"))
    return found is not None or (isinstance(text, str) and _HALF.search(text) is not None)


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


def _may_be_deep(text: str | bytes) -> bool:
    if isinstance(text, str):
        return text.count("[") + text.count("{") > DEEPEST
    return text.count(b"[") + text.count(b"{") > DEEPEST


def _deeper_than(value: Any, levels: int) -> bool:
    """Return whether containers lie in each other deeper than that; level by level, without recursion."""
    level = [value]
    for _ in range(levels):
        level = [
            inner
            for each in level
            if isinstance(each, (list, dict))
            for inner in (each.values() if isinstance(each, dict) else each)
        ]
    return any(isinstance(each, (list, dict)) for each in level)


MOST_BYTES = 1 << 28  # of a file that is read whole
LONGEST_LINE = 1 << 24


def open_plain(path: Path) -> BufferedReader:
    """Open a regular file to read it; links are followed.

    Raises:
        OSError: it cannot be opened, or is a folder, a device or a pipe.
    """
    # Without waiting: not for the writer of a pipe.
    handle = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise OSError(errno.EINVAL, "it is not a regular file", str(path))
    return os.fdopen(handle, "rb")


def read_plain(path: Path, most_bytes: int = MOST_BYTES) -> bytes:
    """Return the bytes of a regular file.

    Raises:
        OSError: it cannot be read, is not a regular file, or is longer than `most_bytes`.
    """
    with open_plain(path) as file:
        size = os.fstat(file.fileno()).st_size
        if size > most_bytes:
            raise OSError(errno.EFBIG, f"it is too large ({size:,} bytes)", str(path))
        return file.read(most_bytes)


def lines_of(path: Path) -> Iterator[bytes]:
    """Yield the lines of a regular file, one at a time, each with its end.

    Raises:
        OSError: it cannot be read, is not a regular file, or has a line longer than 16 MiB.
    """
    with open_plain(path) as file:
        while line := file.readline(LONGEST_LINE):
            if len(line) == LONGEST_LINE:
                raise OSError(errno.EFBIG, "it has a line that is too long", str(path))
            yield line


_KEPT = "\n\t"
_CONTROLS = [*range(0x20), 0x7F, *range(0x80, 0xA0)]
_TABLE = {code: "�" for code in _CONTROLS if chr(code) not in _KEPT}


def printable(text: str) -> str:
    """Return text with every control character but line ends and tabs replaced.

    Without the first character of an escape sequence (ESC, or one of C1) the rest of it is plain text.
    """
    return text.translate(_TABLE)
