"""Asking a program or a service something, within a time and a size: neither is ours, or trusted."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress

from persona_tui.core.errors import MonitorError

MOST = 1 << 20  # bytes of an answer
_SHOWN = 200  # characters of what went wrong
_GRACE = 1.0  # seconds in which what is printed already has to be read


def ask_program(command: str, asked: bytes, seconds: float) -> bytes:
    """Run a command with something on its stdin, and return what it prints.

    What it started and left running is ended with it.

    Args:
        command: with its arguments; no shell.
        asked: for its stdin.
        seconds: until it has failed.

    Raises:
        MonitorError: it cannot be run, fails, takes too long or prints more than `MOST` bytes.
    """
    words, pipe = shlex.split(command), subprocess.PIPE
    try:
        process = subprocess.Popen(words, stdin=pipe, stdout=pipe, stderr=pipe, start_new_session=True)
    except OSError as error:
        raise MonitorError(f"{words[0]} cannot be run: {error.strerror or error}") from error
    said, late = _heard(process, asked, seconds)
    if late:
        raise MonitorError(f"it took more than {seconds:g} seconds")
    if any(len(each) > MOST for each in said.values()):
        raise MonitorError(f"it printed more than {MOST:,} bytes")
    if process.returncode:
        last = said["stderr"].decode(errors="replace").strip()[-_SHOWN:]
        raise MonitorError(f"it ended with status {process.returncode}{f': {last}' if last else ''}")
    return said["stdout"]


def _heard(process: subprocess.Popen[bytes], asked: bytes, seconds: float) -> tuple[dict[str, bytes], bool]:
    """Return what a process has printed, by stream, and whether it took too long; it is over then."""
    said = {"stdout": b"", "stderr": b""}

    def feed() -> None:
        assert process.stdin is not None
        with suppress(OSError), process.stdin:  # it need not read all of it
            process.stdin.write(asked)

    def listen(name: str) -> None:
        with getattr(process, name) as stream:
            said[name] = stream.read(MOST + 1)
        if len(said[name]) > MOST:
            _end(process)

    threads = [threading.Thread(target=feed, daemon=True)]
    threads += [threading.Thread(target=listen, args=[name], daemon=True) for name in said]
    for thread in threads:
        thread.start()
    late = False
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        late = True
    until = time.monotonic() + _GRACE
    for _ in range(2):  # what it has left running holds its output open until it is ended, too
        for thread in threads:
            thread.join(max(0.0, until - time.monotonic()))
        _end(process)
        until += _GRACE
    return said, late


def _end(process: subprocess.Popen[bytes]) -> None:
    """End a process, and what it has started and left running."""
    with suppress(OSError):  # nobody is left
        if hasattr(os, "killpg"):
            os.killpg(process.pid, signal.SIGKILL)
        else:
            process.kill()
    process.wait()


def ask_service(address: str, asked: bytes, headers: Mapping[str, str], seconds: float) -> bytes:
    """Post something to an address, and return the answer.

    Raises:
        MonitorError: it fails, takes too long or answers with more than `MOST` bytes.
    """
    from http.client import HTTPException  # with the next one a fortieth of a second that few need
    from urllib.request import Request, urlopen

    def post() -> bytes:
        try:
            with urlopen(Request(address, asked, dict(headers)), timeout=seconds) as answer:
                return bytes(answer.read(MOST + 1))
        except HTTPException as error:
            raise ValueError(f"it does not speak HTTP: {error}") from error

    said = _within(seconds, post)
    if len(said) > MOST:
        raise MonitorError(f"it answered with more than {MOST:,} bytes")
    return said


def _within(seconds: float, work: Callable[[], bytes]) -> bytes:
    """Return what work gives; a server that sends a byte now and then never runs into a socket's timeout."""
    done = list[bytes]()
    problem = list[str]()

    def run() -> None:
        try:
            done.append(work())
        except (OSError, ValueError) as error:
            if not isinstance(getattr(error, "reason", error), TimeoutError):  # the socket's may be first
                problem.append(" ".join(str(error).split()) or type(error).__name__)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(seconds)
    if done:
        return done[0]
    raise MonitorError(problem[0] if problem else f"it took more than {seconds:g} seconds")
