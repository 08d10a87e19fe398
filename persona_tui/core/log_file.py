"""The log of a run, on the disk: the panel's lines with their times, the last of them when there are many.

What libraries have to say goes there, too: warnings and log lines are for developers. A newer release of a
library may warn about anything at any time; that must not land between a user's results, nor in the stderr of
a pipeline.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import warnings
from collections import deque
from collections.abc import Callable, Iterable
from datetime import datetime
from pathlib import Path
from typing import TextIO

from persona_tui.core.errors import PersonaTuiError, WorkspaceError
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


# Set before the libraries are imported. torch's threads then sleep while they wait, instead of starving the
# screen.
QUIET = {
    "OMP_WAIT_POLICY": "PASSIVE",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "TRANSFORMERS_VERBOSITY": "error",
    "TOKENIZERS_PARALLELISM": "false",
}
LOGGERS = ("transformers", "huggingface_hub", "torch", "accelerate", "bitsandbytes", "matplotlib", "sklearn")


def quiet_libraries() -> None:
    """Set the environment for libraries that are not imported yet; what the user has set stays."""
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)


def log_libraries(folder: Callable[[], Path], shown: Callable[[], bool] = lambda: False) -> None:
    """Send warnings and the log lines of libraries to a log file. Call it before they are imported.

    Args:
        folder: of the log files; called when there is something to write.
        shown: whether to write to stderr as well; asked for every line.
    """
    quiet_libraries()
    handler = _ToFile(folder, shown)

    def show(
        message: Warning | str,
        category: type[Warning],
        filename: str,
        lineno: int,
        file: TextIO | None = None,
        line: str | None = None,
    ) -> None:
        handler.write(f"{filename}:{lineno}: {category.__name__}: {message}")

    warnings.showwarning = show
    before = logging.getLoggerClass()
    logging.setLoggerClass(_Routed)
    try:
        for name in LOGGERS:
            logger = logging.getLogger(name)
            logger.handlers[:] = [handler]
            logger.propagate = False
    finally:
        logging.setLoggerClass(before)
    logging.lastResort = handler


class _Routed(logging.Logger):
    """A library's own logger, which takes no other handler: libraries add one for stderr on import."""

    def addHandler(self, hdlr: logging.Handler) -> None:
        """Take our handler only."""
        if isinstance(hdlr, _ToFile):
            super().addHandler(hdlr)


class _ToFile(logging.Handler):
    def __init__(self, folder: Callable[[], Path], shown: Callable[[], bool]) -> None:
        super().__init__(logging.WARNING)
        self.setFormatter(logging.Formatter("%(name)s: %(message)s"))
        self._folder = folder
        self._shown = shown
        self._file: LogFile | None = None
        self._finding = False

    def emit(self, record: logging.LogRecord) -> None:
        """Write a record."""
        self.write(self.format(record))

    def write(self, line: str) -> None:
        """Write a line. A log that cannot be written is no reason to stop."""
        if self._shown():
            with contextlib.suppress(OSError, ValueError):
                print(line, file=sys.stderr)
        if self._finding:
            return  # finding the folder had something to say
        self._finding = True
        try:
            if self._file is None:
                self._file = LogFile(self._folder())
            self._file.write(line)
        except (OSError, PersonaTuiError):
            self._folder = lambda: Path(os.devnull)  # there is no place for a log; it is given up
        finally:
            self._finding = False
