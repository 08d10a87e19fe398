"""The real command in a pseudo-terminal: from starting it to status 0, as somebody who sits there does it."""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from benchmarks.terminal import Terminal, talkative_model
from persona_tui.core.workspace import model_slug

pytestmark = pytest.mark.slow

LIMIT = 100  # seconds to wait for anything, on a machine that has much else to do
ENTER, ESCAPE, CTRL_Q, CTRL_UP, RIGHT = "\r", "\x1b", "\x11", "\x1b[1;5A", "\x1b[C"
SETTINGS = {"generation": {"max_new_tokens": 3000, "seed": 1}}
QUICK = {
    "extraction": {"num_samples_per_prompt": 1, "questions": 8, "max_new_tokens": 8},
    "calibration": {"questions": 2, "max_new_tokens": 4},
}


def has_terminals() -> bool:
    """Whether pseudo-terminals can be made here; some sandboxes have none."""
    try:
        for end in os.openpty():
            os.close(end)
    except OSError:
        return False
    return True


@pytest.fixture
def talkative(workspace: Path) -> Path:
    """A workspace whose model goes on until it is stopped: there is time to do something meanwhile."""
    model = talkative_model(workspace / "model")
    (workspace / "vectors" / "builtin").rename(workspace / "vectors" / model_slug(str(model)))
    settings = {"model": {"name": str(model)}, **SETTINGS, **QUICK}
    (workspace / "config.yaml").write_text(json.dumps(settings), encoding="utf-8")  # which is YAML, too
    return workspace


@pytest.fixture
def terminal(talkative: Path) -> Iterator[Terminal]:
    """The app, started as a user would."""
    command = [sys.executable, "-m", "persona_tui", "--workspace", str(talkative)]
    with Terminal(command, cwd=str(Path(__file__).parents[2])) as terminal:
        yield terminal


def see(terminal: Terminal, what: str) -> None:
    """Wait until the screen shows what a pattern describes."""
    terminal.wait_for(lambda text: re.search(what, text), LIMIT)


def say(terminal: Terminal, text: str) -> None:
    """Type a line, look at it, and send it."""
    terminal.send(text)
    terminal.wait_for(text, LIMIT)
    terminal.send(ENTER)


def events(workspace: Path) -> list[dict[str, Any]]:
    """What the only session has in its file."""
    (path,) = workspace.glob("sessions/*.jsonl")
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.mark.skipif(not has_terminals(), reason="needs pseudo-terminals")
@pytest.mark.timeout(1800)
def test_a_first_evening(terminal: Terminal, talkative: Path) -> None:
    see(terminal, "Type a message; tab writes one of these")
    terminal.wait_for(lambda text: "loading" not in text, LIMIT)

    say(terminal, "/persona sage")
    see(terminal, r"Speaking as sage 0\.30")
    say(terminal, "Tell me a story.")
    see(terminal, r"sage 0\.30.*…[^│]*│[^│]*│\n[^\n]*▌ \w")  # the first words, below who says them

    terminal.send(CTRL_UP)
    see(terminal, r"strength 0\.30 → 0\.35")
    terminal.resize(80, 24)
    see(terminal, r"sage 0\.35")
    terminal.send(ESCAPE)
    see(terminal, "stopped")
    terminal.resize(120, 40)
    see(terminal, "strength and blend")

    say(terminal, "/create wizard a grumpy old wizard")
    see(terminal, r"create wizard +\d+%")
    see(terminal, "✓ create wizard")
    say(terminal, "/delete wizard")
    see(terminal, "brings it back")
    assert list(talkative.glob("vectors/*/personas/wizard.*"))
    terminal.send(RIGHT + "\r")
    see(terminal, "wizard is deleted")
    assert not list(talkative.glob("vectors/*/personas/wizard.*"))
    assert list(talkative.glob("trash/*/vectors/*/personas/wizard.*"))

    terminal.send(CTRL_Q)
    assert terminal.wait(LIMIT) == 0
    check_story(events(talkative))


def check_story(story: list[dict[str, Any]]) -> None:
    """The session says what happened: a reply, another strength in its middle, its stop."""
    kinds = [event["kind"] for event in story]
    changed = next(event for event in story if event["kind"] == "mix" and event["node"] is not None)
    assert changed["mix"]["strength"] == pytest.approx(0.35) and changed["index"] > 0
    assert kinds.index("reply") < kinds.index("tokens") < kinds.index("stop") < kinds.index("end")
    assert story[kinds.index("end")]["finish"] == "cancelled"
    after = [event for event in story[kinds.index("stop") :] if event["kind"] == "tokens"]
    assert sum(len(event["ids"]) for event in after) <= 1
    assert story[kinds.index("settings")]["settings"]["mix"]["weights"] == {"sage": 1.0}
    changes = [(event["action"], event["name"]) for event in story if event["kind"] == "persona"]
    assert changes == [("deleted", "wizard")]
