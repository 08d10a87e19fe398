"""What libraries have to say goes to the log file: warnings and log lines are for developers.

A newer release of a library may warn about anything at any time; that must not land between a user's
results, nor in the stderr of a pipeline.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TextIO

from persona_tui.core.errors import PersonaTuiError
from persona_tui.core.log_file import LogFile

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
