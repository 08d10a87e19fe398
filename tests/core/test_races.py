"""Processes that change one workspace at once: every change survives."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from persona_tui.core.config import load_settings
from persona_tui.core.workspace import PACKAGED

pytestmark = pytest.mark.slow

START = "import sys; print('ready', flush=True); sys.stdin.readline()\n"
SET = (
    "from pathlib import Path; from persona_tui.core.config import set_value; "
    "set_value(Path({path!r}), {key!r}, {value!r})"
)
FIRST = (
    "from pathlib import Path; from persona_tui.core.workspace import Workspace; "
    "Workspace.find(Path({path!r}))"
)
LOAD = (
    "from pathlib import Path; from persona_tui.vectors.manager import PersonaManager; "
    "PersonaManager(Path({path!r})).load({name!r})"
)
RECENT = (
    "from pathlib import Path; from persona_tui.core.workspace import Workspace; "
    "from persona_tui.project.models import ModelChoice, RecentModels; "
    "RecentModels(Workspace(Path({path!r}))).add(ModelChoice({name!r}))"
)


def at_once(*programs: str) -> None:
    """Run programs in processes that start their work together; all must succeed."""
    running = [
        subprocess.Popen(
            [sys.executable, "-c", _imports(program) + START + program],
            text=True,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        for program in programs
    ]
    for process in running:
        assert process.stdout is not None and process.stdout.readline() == "ready\n"
    for process in running:
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()
    for process in running:
        _, err = process.communicate()
        assert (process.returncode, err) == (0, "")


def _imports(program: str) -> str:
    """What takes long happens before the start."""
    return "".join(f"{part}\n" for part in program.split("; ") if part.startswith("from "))


def test_settings(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text("# Mine.\n")
    wanted = {"generation.seed": "5", "generation.temperature": "0.5", "steering.default_strength": "0.4"}
    for _ in range(3):
        at_once(*(SET.format(path=str(path), key=key, value=value) for key, value in wanted.items()))
        found = load_settings(path)
        assert (found.generation.seed, found.generation.temperature) == (5, 0.5)
        assert found.steering.default_strength == 0.4
        path.write_text("# Mine.\n")


def test_recent_models(tmp_path: Path) -> None:
    names = ["org/a", "org/b", "org/c", "org/d"]
    at_once(*(RECENT.format(path=str(tmp_path), name=name) for name in names))
    assert sorted(each["name"] for each in json.loads((tmp_path / "models.json").read_text())) == names


def test_first_use(tmp_path: Path) -> None:
    root = tmp_path / "workspace"
    at_once(*[FIRST.format(path=str(root))] * 4)
    assert sorted(entry.name for entry in root.iterdir()) == sorted(PACKAGED)
