"""Damaged files of every kind: a clear line, never a crash, a hang, executed code or a write outside."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from random import Random

import pytest

from persona_tui.core.errors import JobCancelled
from persona_tui.extraction import checkpoints
from persona_tui.extraction.checkpoints import PartialStore, Tally
from tests.cli.conftest import Cli
from tests.stress import mutants
from tests.stress.conftest import Say, check, no_hang, problem

pytestmark = pytest.mark.slow

SHORT, LONG = 120, 2000


@dataclass(frozen=True)
class Target:
    """A file, and the commands that read it."""

    path: Path
    commands: tuple[tuple[str, ...], ...]
    slow: tuple[tuple[str, ...], ...] = ()  # those that load the model: now and then


def _only(folder: Path, pattern: str) -> Path:
    (found,) = folder.glob(pattern)
    return found


@pytest.fixture
def targets(cli: Cli, workspace: Path) -> list[Target]:
    """One file of every kind that the program reads."""
    assert cli("load", "sage").status == 0
    assert cli("chat", stdin="Hello?\n/regenerate\n").status == 0
    datasets = workspace / "datasets"
    session = _only(workspace, "sessions/*.jsonl")
    speak = ("generate", "hi", "--max-new-tokens", "1", "--persona", "sage")
    return [
        Target(
            _only(workspace, "vectors/*/personas/sage.safetensors"),
            (("info", "sage", "--json"), ("list", "--json"), ("list",)),
            (speak, ("calibrate", "sage")),
        ),
        Target(_only(workspace, "vectors/*/axes.safetensors"), (("info", "sage"),), (speak, ("doctor",))),
        Target(_only(workspace, "vectors/*/loaded.json"), (("list", "--loaded", "--json"), ("load", "fool"))),
        Target(
            workspace / "config.yaml",
            (("config", "show"), ("list",), ("config", "set", "model.dtype", "auto")),
        ),
        Target(
            datasets / "personas" / "extraction_questions.jsonl",
            (("dataset", "validate"),),
            (("create", "new", "-a", "fool", "--no-calibrate"), ("delete", "new", "--yes")),
        ),
        Target(datasets / "personas" / "archetypes" / "sage.jsonl", (("dataset", "validate", "--json"),)),
        Target(datasets / "safety" / "safe_prompts.jsonl", (("dataset", "validate"),)),
        Target(
            session,
            (("sessions", "list"), ("sessions", "show", session.stem), ("sessions", "search", "Hello")),
            (("replay", session.stem),),
        ),
    ]


def damaged(
    targets: list[Target], count: int, random: Random, sentinel: Path
) -> Iterator[tuple[str, Target, bytes]]:
    """The name of a kind of damage, whose it is, and what the file then holds."""
    sound = {target.path: target.path.read_bytes() for target in targets}
    scratch = sentinel.with_name("scratch")
    for number in range(count):
        target = targets[number % len(targets)]
        data = sound[target.path]
        kinds = mutants.BYTES + (mutants.VECTORS * 2 if target.path.suffix == ".safetensors" else ())
        if number % 40 < len(targets):
            yield "pickle", target, mutants.pickled(sentinel)
        elif number % 40 < 2 * len(targets):
            yield "torch pickle", target, mutants.torch_pickled(sentinel, scratch)
        else:
            kind = random.choice(kinds)
            yield kind.__name__, target, kind(data, random)


def try_them(cli: Cli, workspace: Path, targets: list[Target], tmp_path: Path, count: int, say: Say) -> None:
    sentinel = tmp_path / "executed"
    sound = Path(shutil.copytree(workspace, tmp_path / "sound"))
    counts, statuses = Counter[str](), Counter[int]()
    problems: list[str] = []
    for number, (kind, target, data) in enumerate(damaged(targets, count, Random(count), sentinel)):
        target.path.write_bytes(data)
        slow = target.slow if number // len(targets) % 12 == 0 else ()
        for command in (*target.commands, *slow):
            what = (number, kind, target.path.name, command)
            with no_hang(what):
                result = cli(*command)
            assert not sentinel.exists(), what
            problems += [told] if (told := problem(result, what)) else []
            statuses[result.status] += 1
        counts[kind] += 1
        shutil.rmtree(workspace)
        shutil.copytree(sound, workspace)
    say(
        f"{sum(counts.values())} damaged files of {len(counts)} kinds, {statuses.total()} commands: "
        f"{statuses[0]} succeeded, {statuses[1] + statuses[2]} clear errors, {len(problems)} crashes"
    )
    assert not problems, "\n\n".join(problems[:20])


def test_some_damaged_files(
    cli: Cli, workspace: Path, targets: list[Target], tmp_path: Path, outside: Path, say: Say
) -> None:
    try_them(cli, workspace, targets, tmp_path, SHORT, say)


@pytest.mark.stress
@pytest.mark.timeout(3600)
def test_many_damaged_files(
    cli: Cli, workspace: Path, targets: list[Target], tmp_path: Path, outside: Path, say: Say
) -> None:
    try_them(cli, workspace, targets, tmp_path, LONG, say)


@pytest.mark.timeout(600)
def test_what_is_no_ordinary_file(
    cli: Cli, workspace: Path, targets: list[Target], tmp_path: Path, outside: Path, say: Say
) -> None:
    """Links out of the workspace and in circles, folders, files without end."""
    tried = 0
    for target in targets:
        sound = target.path.read_bytes()
        for place in mutants.PLACES:
            target.path.unlink()
            place(target.path, outside)
            for command in target.commands:
                what = (place.__name__, target.path.name, command)
                with no_hang(what):
                    check(cli(*command), what)
                tried += 1
            if target.path.is_dir() and not target.path.is_symlink():
                shutil.rmtree(target.path)
            target.path.unlink(missing_ok=True)
            target.path.write_bytes(sound)
    say(f"{tried} commands about links, folders, pipes, devices and files without end: no crash, no hang")


def test_damaged_partial_results_are_done_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, say: Say
) -> None:
    """Whatever happens to the files of an unfinished job, no wrong sum comes of it."""
    import torch

    monkeypatch.setattr(checkpoints, "SAVE_SECONDS", 0.0)
    monkeypatch.setattr(checkpoints, "MOST_TIME_SAVING", float("inf"))
    lines: list[str] = []
    store = PartialStore(tmp_path / "vectors", tmp_path, lines.append)
    tally = Tally(frozenset([1]), {"x": torch.tensor([1, 2])}, {"n": 3}, {1: "text"}, {1: torch.ones(2)})

    def begin() -> None:
        with pytest.raises(JobCancelled), store.job("job", {"a": "b"}):
            store.stage(["stage"]).add(tally)
            raise JobCancelled("cancelled")

    begin()
    (path,) = store.folder.glob("job.*.safetensors")
    sound, random, kinds = path.read_bytes(), Random(0), (*mutants.BYTES, *mutants.VECTORS)
    used = 0
    for number in range(300):
        path.write_bytes(kinds[number % len(kinds)](sound, random))
        with store.job("job", {"a": "b"}):
            stage = store.stage(["stage"])
            assert stage.done in (frozenset(), frozenset([1]))
            used += bool(stage.done)
            if stage.done:
                assert stage.tally.values == {1: "text"} and stage.tally.sums["x"].tolist() == [1, 2]
        begin()
        path = next(store.folder.glob("job.*.safetensors"))
    assert any("done again" in line for line in lines)
    say(f"300 damaged files of an unfinished job: {300 - used} done again, {used} as good as before")
