"""Monitors and traits, which only read: stopped and begun again, they read nothing twice and end the same."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from persona_tui.core.errors import JobCancelled
from persona_tui.core.jobs import JobContext, JobProgress
from persona_tui.extraction import checkpoints
from persona_tui.model import ModelWrapper
from persona_tui.project.project import Project
from persona_tui.traits import extract as traits
from persona_tui.traits import readings
from persona_tui.traits.definition import find_definition
from tests.cli.conftest import REPOSITORY, make_workspace, tiny_model

__all__ = ["tiny_model"]

TRAIT = REPOSITORY / "datasets" / "traits" / "boundary_maintenance.jsonl"
QUERIES = REPOSITORY / "datasets" / "monitors" / "training.jsonl"
Work = Callable[[Project, JobContext], object]


@pytest.fixture(autouse=True)
def save_after_every_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoints, "SAVE_SECONDS", 0.0)
    monkeypatch.setattr(checkpoints, "MOST_TIME_SAVING", float("inf"))


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many texts were read at a time."""
    counts: list[int] = []

    def count(owner: object, name: str, place: int) -> None:
        function = getattr(owner, name)

        def counted(*arguments: object) -> object:
            texts = arguments[place]
            assert isinstance(texts, Sequence)
            counts.append(len(texts))
            return function(*arguments)

        monkeypatch.setattr(owner, name, counted)

    count(ModelWrapper, "read", 1)
    count(ModelWrapper, "read_messages", 1)
    count(traits, "read_replies", 1)
    count(readings, "read_replies", 1)
    return counts


def fit(project: Project, context: JobContext) -> object:
    return project.fit_monitor("mine", context, file=QUERIES)


def extract(project: Project, context: JobContext) -> object:
    return project.extract_traits([find_definition(project.workspace, str(TRAIT))], context)


class StopAfter(JobContext):
    """Cancels at the n-th checkpoint."""

    def __init__(self, count: int, log: Callable[[str], None]) -> None:
        super().__init__(on_log=log)
        self._left = count

    def checkpoint(self) -> None:
        self._left -= 1
        if self._left < 0:
            raise JobCancelled("cancelled")

    def progress(self, done: int, total: int, note: str = "") -> None:
        assert JobProgress(done, total, note).fraction <= 1


@pytest.mark.slow
@pytest.mark.parametrize("work", [fit, extract])
def test_reading_goes_on(work: Work, tiny_model: Path, tmp_path: Path, read: list[int]) -> None:
    def made(root: Path) -> dict[str, torch.Tensor]:
        (path,) = root.glob("vectors/*/*/*.safetensors")
        return load_file(path)

    whole, stopped = (make_workspace(tmp_path / name) for name in ("whole", "stopped"))
    work(Project.open(whole, model=str(tiny_model)), JobContext())
    undisturbed = sum(read)
    read.clear()
    lines: list[str] = []
    project = Project.open(stopped, model=str(tiny_model))
    stops = 0
    while True:
        try:
            work(project, StopAfter(1, lines.append))
            break
        except JobCancelled:
            stops += 1
    assert stops >= 2 and sum(read) == undisturbed > 50
    assert lines.count("Resuming where it was interrupted.") == stops
    expected, found = made(whole), made(stopped)
    assert expected.keys() == found.keys()
    assert all(torch.equal(each, found[name]) for name, each in expected.items())
    assert not list(stopped.glob("vectors/*/partial"))
