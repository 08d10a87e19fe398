"""Keeps the terminal to the app: what libraries write to stdout and stderr goes elsewhere.

Native code writes to the file descriptors 1 and 2 themselves, so replacing `sys.stdout` and `sys.stderr` is
not enough; and Textual draws on `sys.__stderr__` and measures `sys.__stdout__`, so those have to go on
pointing at the terminal.
"""

import os
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

# Set before torch is imported: its threads then sleep while they wait, instead of starving the screen.
QUIET = {
    "OMP_WAIT_POLICY": "PASSIVE",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "TRANSFORMERS_VERBOSITY": "error",
    "TOKENIZERS_PARALLELISM": "false",
}


def quiet_libraries() -> None:
    """Set the environment for libraries that are not imported yet; what the user has set stays."""
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)


@contextmanager
def written_lines(take: Callable[[str], bool]) -> Iterator[None]:
    """Call `take`, on a thread of its own, with every line written to the file descriptors 1 and 2.

    What it does not take (it returns False) is written to stderr at the end: the traceback of a crash, say.
    """
    saved_streams, saved_fds = (sys.__stdout__, sys.__stderr__), {fd: os.dup(fd) for fd in (1, 2)}
    screen_fd = os.dup(2 if os.isatty(2) else 1)
    reading, writing = os.pipe()
    left: list[str] = []
    drawn = open(screen_fd, "w", encoding="utf-8", errors="backslashreplace")  # noqa: SIM115
    sys.__stdout__ = sys.__stderr__ = drawn  # type: ignore[misc]
    for fd in saved_fds:
        os.dup2(writing, fd)
    os.close(writing)
    reader = threading.Thread(target=_read, args=(reading, take, left), name="written", daemon=True)
    reader.start()
    try:
        yield
    finally:
        for fd, saved in saved_fds.items():  # closes the pipe's writing ends, so the reader comes to its end
            os.dup2(saved, fd)
            os.close(saved)
        reader.join(timeout=0.2)
        sys.__stdout__, sys.__stderr__ = saved_streams  # type: ignore[misc]
        drawn.close()
        if left:
            print(*left, sep="\n", file=sys.stderr, flush=True)


def _read(fd: int, take: Callable[[str], bool], left: list[str]) -> None:
    with open(fd, encoding="utf-8", errors="replace") as lines:
        for line in lines:
            if (text := line.rstrip()) and not take(text):
                left.append(text)
