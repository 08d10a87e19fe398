"""A tiny random model, a workspace prepared with it, and two ways of calling the command line."""

from __future__ import annotations

import io
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from persona_tui.cli import run
from persona_tui.core.jobs import JobContext
from persona_tui.project.project import Project
from tests.model.conftest import make_model, make_tokenizer

REPOSITORY = Path(__file__).parents[2]

CONFIG = """\
# A comment that stays.
extraction:
  questions: 4
  num_samples_per_prompt: 1
  max_new_tokens: 3
calibration:
  questions: 2
  max_new_tokens: 3
generation:
  max_new_tokens: 5
  seed: 7
"""

QUESTIONS = ("Who are you?", "What matters most to you?", "Tell me a story.", "How do you rest?", "Why sing?")


@dataclass
class Result:
    """What a call came to."""

    status: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """Standard output as the one JSON document that it must be."""
        return json.loads(self.out)


Cli = Callable[..., Result]


def write_lines(path: Path, records: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{json.dumps(record)}\n" for record in records), encoding="utf-8")


def make_workspace(root: Path) -> Path:
    """A workspace with data sets that are small enough for a test."""
    root.mkdir()
    (root / "config.yaml").write_text(CONFIG)
    for kind, requests in (("safe", ("bake bread", "sew a coat")), ("unsafe", ("rob banks", "pick locks"))):
        write_lines(
            root / "datasets" / "safety" / f"{kind}_prompts.jsonl",
            [
                {"id": f"{kind}_{number}", "prompt": f"How do I {request}?", "category": "how_to"}
                for number, request in enumerate(requests)
            ],
        )
    personas = root / "datasets" / "personas"
    write_lines(
        personas / "extraction_questions.jsonl",
        [
            {"id": f"q_{number}", "question": question, "category": "values"}
            for number, question in enumerate(QUESTIONS)
        ],
    )
    for name, prompts in (
        ("sage", ("Be wise.", "You are a sage.")),
        ("fool", ("Be silly.", "You are a fool.")),
    ):
        write_lines(
            personas / "archetypes" / f"{name}.jsonl",
            [{"id": f"{name}_{number}", "system_prompt": prompt} for number, prompt in enumerate(prompts)],
        )
    return root


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a random model and a byte-level tokenizer."""
    folder = tmp_path_factory.mktemp("models") / "tiny"
    make_model("qwen2", max_position_embeddings=2048).save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def prepared(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Path:
    """A workspace with the tiny model's axes and personas. Not to be changed: take `workspace`."""
    root = make_workspace(tmp_path_factory.mktemp("workspaces") / "prepared")
    Project.open(root, model=str(tiny_model)).init(JobContext())
    return root


@pytest.fixture
def workspace(tmp_path: Path, prepared: Path) -> Path:
    """A prepared workspace of one's own."""
    return Path(shutil.copytree(prepared, tmp_path / "workspace"))


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Cli:
    """Run a command line in this process, without a terminal."""

    def call(*args: str | Path, stdin: str = "") -> Result:
        monkeypatch.setattr(sys, "stdin", io.StringIO(stdin))
        capsys.readouterr()
        status = run([str(arg) for arg in args])
        captured = capsys.readouterr()
        return Result(status, captured.out, captured.err)

    return call


@pytest.fixture
def cli(call: Cli, workspace: Path, tiny_model: Path) -> Cli:
    """Like `call`, in the prepared workspace with the tiny model."""
    return lambda *args, **options: call("--workspace", workspace, "--model", tiny_model, *args, **options)


def command(*args: str | Path) -> list[str]:
    """A command line for a process of its own."""
    return [sys.executable, "-m", "persona_tui", *map(str, args)]


def environment() -> dict[str, str]:
    """One thread is enough for a tiny model, and leaves the machine to the other tests."""
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY)}


def spawn(*args: str | Path, **options: Any) -> subprocess.Popen[str]:
    """Start a command line in a process of its own, with pipes."""
    pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    return subprocess.Popen(command(*args), text=True, env=environment(), **{**pipes, **options})


def finish(process: subprocess.Popen[str], stdin: str | None = None) -> Result:
    """Wait for a process."""
    out, err = process.communicate(stdin, timeout=100)
    return Result(process.returncode, out, err)
