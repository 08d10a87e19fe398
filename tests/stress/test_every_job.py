"""Every kind of job, killed with -9 again and again, alone and as one of two processes: the same result."""

from __future__ import annotations

import shutil
import signal
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.cli.conftest import REPOSITORY
from tests.cli.test_processes import together
from tests.stress.conftest import Say

pytestmark = pytest.mark.slow

CONFIG = (
    "extraction:\n  questions: 4\n  num_samples_per_prompt: 8\n  max_new_tokens: 6\n  batch_size: 4\n"
    "calibration:\n  questions: 2\n  max_new_tokens: 4\ngeneration:\n  max_new_tokens: 5\n"
)
MOST_KILLS = 6


@dataclass(frozen=True)
class Job:
    """A command that is long work.

    Attributes:
        command: what is typed; {trait} and {queries} stand for files.
        pace: file operations in the folder of unfinished work between two kills.
    """

    command: tuple[str, ...]
    pace: int = 14


JOBS = {
    "axes": Job(("extract-axes",), 40),
    "persona": Job(("create", "jester", "--from-archetype", "fool"), 25),
    "description": Job(("create", "elf", "-d", "A merry elf who sings"), 25),
    "calibration": Job(("calibrate", "sage"), 25),
    "trait": Job(("trait", "extract", "{trait}")),
    "trait from prompts": Job(
        ("trait", "extract", "{trait}", "--recipe", "prompts", "--samples", "4", "--max-new-tokens", "4")
    ),
    "monitor": Job(("monitor", "fit", "--no-measure", "--file", "{queries}")),
    "data set": Job(("dataset", "generate", "archetype", "gnome", "-d", "A shy gnome"), 6),
}


@pytest.fixture
def files(tmp_path: Path) -> dict[str, str]:
    """A described trait and labelled queries."""
    shipped = REPOSITORY / "datasets"
    trait = shipped / "traits" / "boundary_maintenance.jsonl"
    return {"trait": str(trait), "queries": str(shipped / "monitors" / "training.jsonl")}


def results(workspace: Path) -> dict[str, torch.Tensor | bytes]:
    """Every tensor, and every data set."""
    found: dict[str, torch.Tensor | bytes] = {}
    for path in sorted(workspace.glob("vectors/**/*.safetensors")):
        found |= {f"{path.stem}.{name}": each for name, each in load_file(path).items()}
    for path in sorted(workspace.glob("datasets/**/*.jsonl")):
        found[path.name] = path.read_bytes()
    return found


def assert_same(one: dict[str, torch.Tensor | bytes], other: dict[str, torch.Tensor | bytes]) -> None:
    """To the last bit."""
    assert one.keys() == other.keys()
    for name, each in one.items():
        theirs = other[name]
        same = torch.equal(each, theirs) if isinstance(each, torch.Tensor) else each == theirs
        assert same, name


@pytest.mark.stress
@pytest.mark.timeout(900)
@pytest.mark.parametrize("kind", JOBS)
def test_a_job_killed_again_and_again(
    kind: str, workspace: Path, tiny_model: Path, files: dict[str, str], tmp_path: Path, say: Say
) -> None:
    job = JOBS[kind]
    command = [each.format(**files) for each in job.command]
    (workspace / "config.yaml").write_text(CONFIG)
    undisturbed = Path(shutil.copytree(workspace, tmp_path / "undisturbed"))

    def run(folder: Path, *moments: str) -> list[int]:
        given = dict(enumerate(moments))
        done = together(len(moments), given, "--workspace", folder, "--model", tiny_model, *command)
        for result in done:
            assert result.status in (0, 1, -signal.SIGKILL), result.err
            assert result.status == 0 or -signal.SIGKILL in [each.status for each in done], result.err
        return [result.status for result in done]

    assert run(undisturbed, "never") == [0]
    expected, alone, as_two = results(undisturbed), 0, 0
    while alone + as_two < MOST_KILLS:
        if (alone + as_two) % 3 == 2:  # every third time there are two, and one of them is killed
            statuses = run(workspace, "never", "files:3")
            as_two += -signal.SIGKILL in statuses
        else:
            statuses = run(workspace, f"files:{job.pace + alone}")
            alone += -signal.SIGKILL in statuses
        if set(statuses) == {0}:
            break
    else:
        assert run(workspace, "never") == [0]
    assert alone
    assert_same(results(workspace), expected)
    assert not list(workspace.glob("vectors/*/partial"))
    say(f"{kind}: killed {alone} times alone and {as_two} times as one of two, and the same in the end")
