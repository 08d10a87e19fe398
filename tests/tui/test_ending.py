"""The real app in a pseudo-terminal: told to end, given bytes that are no text, crashing."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from benchmarks.terminal import Terminal, talkative_model
from persona_tui.core.workspace import model_slug

from .test_end_to_end import CTRL_Q, ENTER, LIMIT, SETTINGS, events, has_terminals, say, see

pytestmark = [
    pytest.mark.skipif(not has_terminals(), reason="needs pseudo-terminals"),
    pytest.mark.timeout(900),
    pytest.mark.slow,
]

REPOSITORY = str(Path(__file__).parents[2])
ENTERED, LEFT = "\x1b[?1049h", "\x1b[?1049l"  # the alternate screen
MOUSE_OFF, CURSOR = "\x1b[?1000l", "\x1b[?25h"
X10_BEYOND_COLUMN_95 = b"\x1b[M" + bytes([32, 32 + 1 + 150, 32 + 1 + 5])

CRASHING = """
import sys
from pathlib import Path
from persona_tui.project.project import Project
from persona_tui.tui.app import PersonaApp, run_app
PersonaApp.on_event = lambda self, event: 1 / 0
run_app(Project.open(Path(sys.argv[1])))
"""


@contextmanager
def started(workspace: Path, *command: str) -> Iterator[Terminal]:
    """The app, once it is there."""
    wanted = command or ("-m", "persona_tui", "--workspace", str(workspace))
    with Terminal([sys.executable, *wanted], cwd=REPOSITORY) as terminal:
        yield terminal


def restored(output: str) -> bool:
    """Whether the terminal is as it was before the app."""
    after = output[output.rindex(LEFT) :] if LEFT in output else ""
    return bool(after) and ENTERED not in after and MOUSE_OFF in output and output.rindex(CURSOR) > 0


@pytest.mark.parametrize(
    ("tell", "status"), [(signal.SIGTERM, 143), (signal.SIGHUP, 129)], ids=["terminate", "hang up"]
)
def test_told_to_end_in_a_reply_it_saves_and_restores_the_terminal(
    tell: signal.Signals, status: int, workspace: Path
) -> None:
    model = talkative_model(workspace / "model")
    (workspace / "vectors" / "builtin").rename(workspace / "vectors" / model_slug(str(model)))
    settings = {"model": {"name": str(model)}, **SETTINGS}
    (workspace / "config.yaml").write_text(json.dumps(settings), encoding="utf-8")
    with started(workspace) as terminal:
        see(terminal, "Type a message")
        terminal.wait_for(lambda text: "loading" not in text, LIMIT)
        say(terminal, "Tell me a story.")
        terminal.wait_for(lambda text: "tokens" in _kinds(workspace), LIMIT)
        os.kill(terminal.process.pid, tell)
        assert terminal.wait(LIMIT) == status
        assert restored(terminal.output)
    assert _kinds(workspace)[-1] in ("end", "stop", "tokens")


def _kinds(workspace: Path) -> list[str]:
    """What the session, if there is one, says that happened."""
    return [event["kind"] for event in events(workspace)] if list(workspace.glob("sessions/*.jsonl")) else []


def test_bytes_that_are_no_text_are_replaced(workspace: Path) -> None:
    with started(workspace) as terminal:
        see(terminal, "Type a message")
        terminal.send(X10_BEYOND_COLUMN_95)
        terminal.send(b"caf\xe9 ")
        terminal.send(b"\xff\xfe")
        see(terminal, "caf\N{REPLACEMENT CHARACTER}")
        terminal.send(ENTER)
        see(terminal, "(?s)you.*caf\N{REPLACEMENT CHARACTER}")
        terminal.send(CTRL_Q)
        assert terminal.wait(LIMIT) == 0
        assert restored(terminal.output)


def test_a_crash_restores_the_terminal_and_never_ends_with_0(workspace: Path) -> None:
    with started(workspace, "-c", CRASHING, str(workspace)) as terminal:
        assert terminal.wait(LIMIT) == 1
        assert restored(terminal.output)
