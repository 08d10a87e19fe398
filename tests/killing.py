"""The command line, killed with -9 at a chosen moment. A helper for tests, run as a program:

    python -m tests.killing files:17 create sage --from-archetype sage

The moment is `files:N`, just before the N-th file operation in the folder of unfinished work; `seconds:S`
after the work has begun; or `never`. What is finished is written after every batch here.
"""

from __future__ import annotations

import os
import signal
import sys
import threading

from persona_tui.extraction import checkpoints

_FILE_EVENTS = ("open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate")


def kill() -> None:
    """End this process as the kernel would when memory runs out."""
    os.kill(os.getpid(), signal.SIGKILL)


def arm(moment: str) -> None:
    """Have this process killed at a moment."""
    kind, _, value = moment.partition(":")
    if kind == "files":
        _arm_files(int(value))
    elif kind == "seconds":
        _arm_seconds(float(value))


def _arm_files(wanted: int) -> None:
    count = 0

    def watch(event: str, arguments: tuple[object, ...]) -> None:
        nonlocal count
        if event in _FILE_EVENTS and f"{os.sep}{checkpoints.FOLDER}" in str(arguments[0]):
            count += 1
            if count == wanted:
                kill()

    sys.addaudithook(watch)


def _arm_seconds(seconds: float) -> None:
    begin = checkpoints.PartialStore._begin

    def begin_and_count_down(store: checkpoints.PartialStore, *arguments: object) -> None:
        timer = threading.Timer(seconds, kill)
        timer.daemon = True
        timer.start()
        begin(store, *arguments)  # type: ignore[arg-type]

    checkpoints.PartialStore._begin = begin_and_count_down  # type: ignore[method-assign, assignment]


def run(moment: str, arguments: list[str]) -> None:
    """Run a command line, to be killed at a moment."""
    import torch

    from persona_tui.cli import main

    torch.set_num_threads(1)
    checkpoints.SAVE_SECONDS, checkpoints.MOST_TIME_SAVING = 0.0, float("inf")
    arm(moment)
    main(arguments)


if __name__ == "__main__":
    run(sys.argv[1], sys.argv[2:])
