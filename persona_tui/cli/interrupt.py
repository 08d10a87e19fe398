"""Ctrl-c, or a request to terminate, while a model computes.

Python notices a signal only between two of its own instructions, and one pass of a large model is a single
instruction that may take many seconds. A thread is told at once, and ends the process if need be: what
unfinished jobs have by then is written first.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import NoReturn

from persona_tui.core.processes import is_main

INTERRUPTED = 130
TERMINATED = 143
HUNG_UP = 129
GRACE = 0.5  # seconds that the main thread has to leave by itself

_SHOW_CURSOR = "\x1b[?25h"  # a progress bar may have hidden it


_ENDINGS = (signal.SIGTERM, *([signal.SIGHUP] if hasattr(signal, "SIGHUP") else []))


class Terminated(KeyboardInterrupt):
    """Somebody asked the process to end, or its terminal is gone: an interrupt with another exit status."""

    def __init__(self, status: int = TERMINATED) -> None:
        super().__init__()
        self.status = status


def _terminate(number: int, frame: FrameType | None) -> NoReturn:
    raise Terminated(128 + number)


def end_when_told() -> None:
    """Take a request to end, and the end of the terminal, like an interrupt: what is open gets closed."""
    for number in _ENDINGS:
        if signal.getsignal(number) is signal.SIG_DFL:  # `nohup` has it ignored, and means it
            signal.signal(number, _terminate)


@contextmanager
def quick_interrupt(last_words: str = "") -> Iterator[None]:
    """Within, an interrupt ends the process in half a second if the main thread is busy elsewhere, and a
    request to terminate is taken like an interrupt.

    What has to be finished, a file that is being written say, belongs outside.

    Args:
        last_words: what is said if the process is ended while no job keeps anything.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    told, tells = socket.socketpair()
    tells.setblocking(False)
    left = threading.Event()
    threading.Thread(target=_watch, args=(told, left, last_words), name="interrupt", daemon=True).start()
    before = signal.set_wakeup_fd(tells.fileno(), warn_on_full_buffer=False)
    before_endings = {
        number: signal.signal(number, _terminate)
        for number in _ENDINGS
        if signal.getsignal(number) is not signal.SIG_IGN
    }
    try:
        yield
    finally:
        left.set()
        for number, handler in before_endings.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(before)
        tells.close()  # which ends the thread


def _watch(told: socket.socket, left: threading.Event, last_words: str) -> None:
    with told:
        while numbers := told.recv(64):
            asked = {signal.SIGINT, *_ENDINGS}.intersection(numbers)
            if asked and not left.wait(GRACE):
                _save_unfinished(last_words)
                leave(128 + min(asked, key=[signal.SIGINT, *_ENDINGS].index))


def _save_unfinished(last_words: str) -> None:
    """Write what unfinished jobs have, and say what is kept."""
    partial = sys.modules.get(
        "persona_tui.extraction.checkpoints"
    )  # if it is not there, nothing is under way
    said = (partial.save_all() if partial is not None else "") or last_words
    if said and is_main():
        print(said, file=sys.stderr)


def leave(status: int = INTERRUPTED) -> NoReturn:
    """End the process, without waiting for threads or for torch to clean up."""
    for stream in (sys.stdout, sys.stderr):
        try:
            if stream is sys.stderr and stream.isatty():
                stream.write(_SHOW_CURSOR)
            stream.flush()
        except (OSError, ValueError):
            pass  # nobody reads it any more
    os._exit(status)
