"""Keeps the terminal to the app: what libraries write to stdout and stderr goes elsewhere.

Native code writes to the file descriptors 1 and 2 themselves, so replacing `sys.stdout` and `sys.stderr` is
not enough; and Textual draws on `sys.__stderr__` and measures `sys.__stdout__`, so those have to go on
pointing at the terminal.
"""

from __future__ import annotations

import asyncio
import codecs
import os
import re
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console

_CONTROLS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f]")


def forgive_input() -> None:
    """Have Textual replace bytes that are not UTF-8, where its input thread would end the app.

    Such bytes do come: a mouse report of the old kind beyond column 95, after a terminal was attached again,
    or text that was pasted from a Latin-1 program.
    """
    if sys.platform == "win32":
        return
    from textual.drivers import linux_driver

    def decoder(encoding: str) -> Callable[[], codecs.IncrementalDecoder]:
        return lambda: codecs.getincrementaldecoder(encoding)(errors="replace")

    linux_driver.getincrementaldecoder = decoder  # type: ignore[assignment, attr-defined]


def clean_output() -> None:
    """Have Textual leave out control characters of what it draws, wherever a text came from.

    It writes its own control sequences beside the texts. A text that brings one is a stranger's: a name in a
    file, a title, a reply.
    """
    from rich.segment import Segment
    from textual.strip import Strip

    draw = Strip.render
    if getattr(draw, "cleans", False):
        return

    def render(strip: Strip, console: Console) -> str:
        if any(_CONTROLS.search(segment.text) for segment in strip):
            clean = [Segment(_CONTROLS.sub("", each.text), each.style, each.control) for each in strip]
            return draw(Strip(clean), console)
        return draw(strip, console)

    render.cleans = True  # type: ignore[attr-defined]
    Strip.render = render  # type: ignore[method-assign, assignment]


def on_ending(leave: Callable[[int], None]) -> None:
    """Call `leave` with an exit status when the system asks the app to end, or the terminal goes away.

    For the thread of a running asyncio loop.
    """
    if sys.platform == "win32":
        return
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGHUP):
        loop.add_signal_handler(number, leave, 128 + number)


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
