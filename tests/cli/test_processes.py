"""Several processes make one vector: the same as one process does, also when their number changes midway."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from persona_tui.vectors.persona import PersonaVector

from .conftest import REPOSITORY, Result, environment

pytestmark = pytest.mark.slow

MORE = (
    "extraction:\n  questions: 4\n  num_samples_per_prompt: 12\n  max_new_tokens: 6\n  batch_size: 4\n"
    "calibration:\n  questions: 2\n  max_new_tokens: 3\ngeneration:\n  max_new_tokens: 5\n"
)
CREATE = ("create", "jester", "--from-archetype", "fool")


@pytest.fixture
def busy(workspace: Path) -> Path:
    """A workspace in which a persona takes several batches."""
    (workspace / "config.yaml").write_text(MORE)
    return workspace


def persona(workspace: Path) -> PersonaVector:
    (path,) = workspace.glob("vectors/*/personas/jester.safetensors")
    return PersonaVector.load(path)


def assert_same(one: PersonaVector, other: PersonaVector) -> None:
    for kind in ("mean", "raw", "safe"):
        for recipe, tensor in getattr(one, kind).items():
            torch.testing.assert_close(tensor, getattr(other, kind)[recipe], atol=1e-5, rtol=1e-5)
    assert one.metadata["counts"] == other.metadata["counts"]
    assert one.calibration is not None and other.calibration is not None
    assert (one.calibration.recipe, one.calibration.layers) == (
        other.calibration.recipe,
        other.calibration.layers,
    )
    assert one.calibration.gain == pytest.approx(other.calibration.gain, rel=1e-3)


def start(count: int, moments: dict[int, str], *arguments: str | Path) -> list[subprocess.Popen[str]]:
    """Processes of one launch, each to be killed at its own moment."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    processes = []
    for place in range(count):
        launch = {"WORLD_SIZE": str(count), "RANK": str(place), "LOCAL_RANK": str(place)}
        own = {**launch, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port} if count > 1 else {}
        moment = moments.get(place, "never")
        processes.append(
            subprocess.Popen(
                [sys.executable, "-m", "tests.killing", moment, *map(str, arguments)],
                text=True,
                cwd=REPOSITORY,
                env={**environment(), **own},
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
            )
        )
    return processes


def together(count: int, moments: dict[int, str], *arguments: str | Path) -> list[Result]:
    done = [
        Result(process.returncode, out, err)
        for process in start(count, moments, *arguments)
        for out, err in [process.communicate(timeout=250)]
    ]
    return done


@pytest.fixture(scope="module")
def alone(prepared: Path, tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> PersonaVector:
    """What one undisturbed process makes."""
    copy = Path(shutil.copytree(prepared, tmp_path_factory.mktemp("alone") / "workspace"))
    (copy / "config.yaml").write_text(MORE)
    (result,) = together(1, {}, "--workspace", copy, "--model", tiny_model, *CREATE)
    assert result.status == 0, result.err
    return persona(copy)


@pytest.mark.timeout(300)
def test_accelerate_launch_makes_the_same_persona(busy: Path, tiny_model: Path, alone: PersonaVector) -> None:
    # Without a GPU, too, it is this option that starts several processes: with --cpu it is one.
    launcher = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"]
    launcher += ["--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no"]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        launcher += ["--main_process_port", str(free.getsockname()[1]), "-m", "persona_tui"]
    command = [*launcher, "--workspace", str(busy), "--model", str(tiny_model), *CREATE]
    done = subprocess.run(command, capture_output=True, text=True, env=environment(), timeout=250)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("Created jester.") == 1
    assert done.stderr.count("2 processes share the work.") == 1
    assert_same(persona(busy), alone)
    assert not list(busy.glob("vectors/*/partial"))


@pytest.mark.timeout(300)
def test_killed_as_two_processes_it_goes_on_as_one(
    busy: Path, tiny_model: Path, alone: PersonaVector
) -> None:
    arguments = ("--workspace", busy, "--model", tiny_model, *CREATE)
    first, second = together(2, {1: "files:8"}, *arguments)
    assert second.status == -signal.SIGKILL
    assert first.status == 1 and first.out == ""
    assert "another process of this launch has ended" in first.err.splitlines()[-1]
    parts = list(busy.glob("vectors/*/partial/*.safetensors"))
    assert len({path.name.split(".")[2] for path in parts}) >= 2  # of both processes
    (result,) = together(1, {}, *arguments)
    assert result.status == 0, result.err
    assert "Resuming where it was interrupted." in result.err
    assert_same(persona(busy), alone)
    assert not list(busy.glob("vectors/*/partial"))


@pytest.mark.timeout(300)
def test_killed_as_one_process_it_goes_on_as_three(
    busy: Path, tiny_model: Path, alone: PersonaVector
) -> None:
    arguments = ("--workspace", busy, "--model", tiny_model, *CREATE)
    assert together(1, {0: "files:14"}, *arguments)[0].status == -signal.SIGKILL
    results = together(3, {}, *arguments)
    assert [result.status for result in results] == [0, 0, 0], [result.err for result in results]
    assert [bool(result.out) for result in results] == [True, False, False]
    assert [bool(result.err) for result in results[1:]] == [False, False]
    assert_same(persona(busy), alone)


@pytest.mark.timeout(300)
def test_axes_and_prompts_of_two_processes(busy: Path, tiny_model: Path) -> None:
    base = ("--workspace", busy, "--model", tiny_model)
    results = together(2, {}, *base, "extract-axes", "--no-calibrate")
    assert [result.status for result in results] == [0, 0], [result.err for result in results]
    assert results[0].out.startswith("Axes of") and not results[1].out
    written = busy / "datasets" / "personas" / "archetypes"
    gnome = ("dataset", "generate", "archetype", "gnome", "-d", "A shy gnome", "--replace")
    for arguments in (("create", "elf", "-d", "A merry elf", "--no-calibrate"), gnome):
        results = together(2, {}, *base, *arguments)
        assert [result.status for result in results] == [0, 0], [result.err for result in results]
    as_two = (written / "gnome.jsonl").read_bytes()
    assert (written / "elf.jsonl").is_file()
    (result,) = together(1, {}, *base, *gnome)
    assert result.status == 0 and (written / "gnome.jsonl").read_bytes() == as_two


@pytest.mark.timeout(300)
def test_a_calibration_of_two_processes(busy: Path, tiny_model: Path) -> None:
    def calibrated(count: int) -> dict[str, object]:
        results = together(
            count, {}, "--workspace", busy, "--model", tiny_model, "calibrate", "sage", "--json"
        )
        assert [result.status for result in results] == [0] * count, [result.err for result in results]
        found: dict[str, object] = results[0].json
        return found

    assert calibrated(1) == calibrated(2)


@pytest.mark.timeout(300)
def test_traits_and_monitors_of_two_processes(busy: Path, tiny_model: Path) -> None:
    trait = REPOSITORY / "datasets" / "traits" / "boundary_maintenance.jsonl"
    queries = REPOSITORY / "datasets" / "monitors" / "training.jsonl"
    base = ("--workspace", busy, "--model", tiny_model)
    found = []
    for count in (1, 2):
        for arguments in (("trait", "extract", trait), ("monitor", "fit", "--no-measure", "--file", queries)):
            results = together(count, {}, *base, *arguments)
            assert [result.status for result in results] == [0] * count, [result.err for result in results]
            assert [bool(result.out) for result in results] == [True, False][:count]
        files = sorted(
            [*busy.glob("vectors/*/traits/*.safetensors"), *busy.glob("vectors/*/monitors/*.safetensors")]
        )
        found.append({path.name: load_file(path) for path in files})
    alone, shared = found
    assert len(alone) == 2 and alone.keys() == shared.keys()
    for name, tensors in alone.items():
        for key, tensor in tensors.items():
            torch.testing.assert_close(tensor, shared[name][key], atol=1e-4, rtol=1e-4)


@pytest.mark.timeout(300)
def test_what_all_processes_meet_is_told_once(busy: Path, tiny_model: Path) -> None:
    base = ("--workspace", busy, "--model", tiny_model)
    results = together(2, {}, *base, "create", "sage", "--from-archetype", "sage")
    assert [result.status for result in results] == [1, 1]
    assert results[0].err.startswith("Error: ") and results[1].err == ""


def test_processes_that_are_not_launched_load_nothing() -> None:
    code = (
        "import persona_tui.core.processes as p; assert not p.launched() and p.is_main() and p.may_speak();"
    )
    code += "assert p.processes().count == 1; import sys; assert 'torch' not in sys.modules"
    subprocess.run(
        [sys.executable, "-c", code], check=True, env={**os.environ, "PYTHONPATH": str(REPOSITORY)}
    )
