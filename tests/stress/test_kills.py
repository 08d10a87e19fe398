"""Killed with -9 at random moments, again and again: the vectors of an undisturbed run, and nothing torn."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
from pathlib import Path
from random import Random

import pytest
import torch

from persona_tui.vectors.axes import Axes
from persona_tui.vectors.persona import PersonaVector
from tests.cli.conftest import REPOSITORY, Result, environment
from tests.stress.conftest import Say

pytestmark = pytest.mark.slow

SHORT, LONG = 3, 30
CONFIG = (
    "extraction:\n  questions: 4\n  num_samples_per_prompt: 6\n  max_new_tokens: 6\n  batch_size: 4\n"
    "calibration:\n  questions: 2\n  max_new_tokens: 4\ngeneration:\n  max_new_tokens: 5\n"
)


def run(moment: str, workspace: Path, model: Path, *command: str) -> Result:
    arguments = [sys.executable, "-m", "tests.killing", moment, "--workspace", workspace, "--model", model]
    done = subprocess.run(
        [*map(str, arguments), *command], capture_output=True, text=True, cwd=REPOSITORY, env=environment()
    )
    return Result(done.returncode, done.stdout, done.stderr)


def moment(random: Random) -> str:
    """Mostly between two file operations, where a file could be torn."""
    if random.random() < 0.7:
        return f"files:{random.randrange(1, 90)}"
    return f"seconds:{random.uniform(0, 6):.3f}"


def vectors(workspace: Path) -> dict[str, torch.Tensor]:
    """Every tensor of every vector file. What can be read is whole."""
    found = {}
    for path in workspace.glob("vectors/*/*.safetensors"):
        axes = Axes.load(path)
        for kind in ("baseline", "safety", "assistant", "projections"):
            found |= {f"axes.{kind}.{name}": each for name, each in getattr(axes, kind).items()}
    for path in workspace.glob("vectors/*/personas/*.safetensors"):
        persona = PersonaVector.load(path)
        for kind in ("mean", "raw", "safe"):
            found |= {f"{path.stem}.{kind}.{name}": each for name, each in getattr(persona, kind).items()}
        if persona.calibration is None:  # killed between its extraction and its calibration
            continue
        found[f"{path.stem}.gain"] = torch.tensor(persona.calibration.gain)
    return found


def assert_equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        assert torch.equal(tensor, other[name]), name


def kill_again_and_again(workspace: Path, model: Path, tmp_path: Path, count: int, say: Say) -> None:
    (workspace / "config.yaml").write_text(CONFIG)
    shutil.rmtree(workspace / "vectors")
    undisturbed = Path(shutil.copytree(workspace, tmp_path / "undisturbed"))
    assert run("never", undisturbed, model, "extract-axes").status == 0
    expected = vectors(undisturbed)
    random, kills, finished = Random(count), 0, 0
    while kills < count:
        result = run(moment(random), workspace, model, "extract-axes")
        vectors(workspace)
        if result.status == -signal.SIGKILL:
            kills += 1
            continue
        assert result.status == 0, result.err
        finished += 1
        assert_equal(vectors(workspace), expected)
        assert not list(workspace.glob("vectors/*/partial"))
        shutil.rmtree(workspace / "vectors")
    result = run("never", workspace, model, "extract-axes")
    assert result.status == 0, result.err
    assert_equal(vectors(workspace), expected)
    assert not list(workspace.glob("vectors/*/partial"))
    say(f"killed with -9 {kills} times, {finished + 1} extractions finished, all equal to an undisturbed one")


@pytest.mark.timeout(400)
def test_a_few_kills(workspace: Path, tiny_model: Path, tmp_path: Path, say: Say) -> None:
    kill_again_and_again(workspace, tiny_model, tmp_path, SHORT, say)


@pytest.mark.stress
@pytest.mark.timeout(3600)
def test_many_kills(workspace: Path, tiny_model: Path, tmp_path: Path, say: Say) -> None:
    kill_again_and_again(workspace, tiny_model, tmp_path, LONG, say)
