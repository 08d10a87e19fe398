"""Ctrl-c while a model computes.

Python notices an interrupt only between two of its own instructions, and one pass of a large model is a
single instruction that may take many seconds. A thread is told at once, and ends the process if need be.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NoReturn

INTERRUPTED = 130
GRACE = 0.5  # seconds that the main thread has to leave by itself

_SHOW_CURSOR = "\x1b[?25h"  # a progress bar may have hidden it


@contextmanager
def quick_interrupt() -> Iterator[None]:
    """Within, an interrupt ends the process in half a second if the main thread is busy elsewhere.

    What has to be finished, a file that is being written say, belongs outside.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    told, tells = socket.socketpair()
    tells.setblocking(False)
    left = threading.Event()
    threading.Thread(target=_watch, args=(told, left), name="interrupt", daemon=True).start()
    before = signal.set_wakeup_fd(tells.fileno(), warn_on_full_buffer=False)
    try:
        yield
    finally:
        left.set()
        signal.set_wakeup_fd(before)
        tells.close()  # which ends the thread


def _watch(told: socket.socket, left: threading.Event) -> None:
    with told:
        while numbers := told.recv(64):
            if signal.SIGINT in numbers and not left.wait(GRACE):
                leave()


def leave() -> NoReturn:
    """End the process as interrupted, without waiting for threads or for torch to clean up."""
    for stream in (sys.stdout, sys.stderr):
        try:
            if stream is sys.stderr and stream.isatty():
                stream.write(_SHOW_CURSOR)
            stream.flush()
        except (OSError, ValueError):
            pass  # nobody reads it any more
    os._exit(INTERRUPTED)
