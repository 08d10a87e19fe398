"""Several processes change one workspace at once: no change is lost, and everybody can be first."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from persona_tui.core.config import load_settings
from persona_tui.core.workspace import Workspace, packaged_root

from .conftest import environment

# Each waits at a gate, so that all of them begin together.
GATE = """
import sys, time, pathlib
from persona_tui.cli import main
import persona_tui.vectors.manager, persona_tui.cli.personas, persona_tui.cli.config
pathlib.Path(sys.argv[1], sys.argv[2]).touch()
while not pathlib.Path(sys.argv[1], "open").exists(): time.sleep(0.001)
sys.argv[1:] = sys.argv[3:]
main()
"""


def at_once(tmp_path: Path, *commands: tuple[str, ...]) -> list[tuple[int, str]]:
    """Run commands that begin at the same moment; status and errors of each."""
    gate = tmp_path / "gate"
    gate.mkdir()
    running = [
        subprocess.Popen(
            [sys.executable, "-c", GATE, str(gate), f"ready{place}", *command],
            env=environment(),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        for place, command in enumerate(commands)
    ]
    while len(list(gate.iterdir())) < len(commands) and all(each.poll() is None for each in running):
        pass
    (gate / "open").touch()
    return [(each.wait(), err) for each in running for err in [each.communicate()[1]]]


def test_settings_set_at_once_are_all_kept(tmp_path: Path) -> None:
    root = tmp_path / "workspace"
    Workspace.find(root)
    values = {"generation.seed": "11", "generation.temperature": "0.4", "steering.default_strength": "0.2"}
    commands = [("--workspace", str(root), "config", "set", key, value) for key, value in values.items()]
    assert [status for status, _ in at_once(tmp_path, *commands)] == [0, 0, 0]
    settings = load_settings(root / "config.yaml")
    assert (settings.generation.seed, settings.generation.temperature) == (11, 0.4)
    assert settings.steering.default_strength == 0.2


def test_personas_loaded_at_once_are_all_loaded(tmp_path: Path) -> None:
    root = tmp_path / "workspace"
    Workspace.find(root)
    names = ["sage", "trickster", "guardian", "explorer", "creator"]
    base = ("--workspace", str(root), "--model", "tiny", "load")
    assert [status for status, _ in at_once(tmp_path, *((*base, name) for name in names))] == [0] * 5
    state = json.loads((root / "vectors" / "builtin" / "loaded.json").read_text())
    assert sorted(state["loaded"]) == sorted(names)


def test_everybody_may_be_the_first_to_use_a_workspace(tmp_path: Path) -> None:
    root = tmp_path / "workspace"
    results = at_once(tmp_path, *[("--workspace", str(root), "--model", "tiny", "list")] * 4)
    assert [status for status, _ in results] == [0] * 4, results
    here = {str(path.relative_to(root)) for path in root.rglob("*") if not path.name.startswith(".")}
    source = packaged_root()
    for name in ("datasets", "vectors"):
        wanted = {str(path.relative_to(source)) for path in (source / name).rglob("*.jsonl")}
        assert wanted <= here
