"""The log of a run, on the disk: the panel's lines with their times, the last of them when there are many."""

from __future__ import annotations

import contextlib
import os
from collections import deque
from collections.abc import Iterable
from datetime import datetime
from pathlib import Path
from typing import TextIO

from persona_tui.core.errors import WorkspaceError
from persona_tui.core.files import atomic_write_text
from persona_tui.core.jobs import LOG_LINES

KEPT_FILES = 20  # of earlier runs


class LogFile:
    """`<folder>/<time>-<process>.log`, made with its first line. Twice too long, it is cut to its end."""

    def __init__(self, folder: Path, lines: int = LOG_LINES) -> None:
        """
        Args:
            folder: of all logs.
            lines: how many of the last ones are kept at least.
        """
        self.path = folder / f"{datetime.now():%Y%m%d-%H%M%S}-{os.getpid()}.log"
        self._last: deque[str] = deque(maxlen=lines)
        self._count = 0
        self._file: TextIO | None = None
        self._broken = False

    def write(self, text: str) -> None:
        """Add a line, or several. A log that cannot be written is given up: it is no reason to stop."""
        if self._broken:
            return
        try:
            self._write([f"{datetime.now():%H:%M:%S} {line}\n" for line in text.splitlines()])
        except (OSError, WorkspaceError):
            self._broken = True

    def _write(self, lines: Iterable[str]) -> None:
        if self._file is None:
            self._begin()
        assert self._file is not None
        for line in lines:
            self._file.write(line)
            self._last.append(line)
            self._count += 1
        self._file.flush()
        if self._last.maxlen is not None and self._count >= 2 * self._last.maxlen:
            self._cut()

    def _begin(self) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        old = sorted(self.path.parent.glob("*.log"))
        for path in old[: -KEPT_FILES or None]:
            with contextlib.suppress(OSError):
                path.unlink()
        self._file = self.path.open("a", encoding="utf-8", errors="replace")

    def _cut(self) -> None:
        self.close()
        atomic_write_text(self.path, "".join(self._last))
        self._file = self.path.open("a", encoding="utf-8", errors="replace")
        self._count = len(self._last)

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()
            self._file = None
