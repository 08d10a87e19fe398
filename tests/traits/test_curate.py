"""Curation: bytes kept, crashes survived, memory flat."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from persona_tui.core.errors import DatasetError, JobCancelled, WorkspaceError
from persona_tui.traits import curate
from persona_tui.traits.curate import Curated, Curation
from persona_tui.traits.policy import Policy
from persona_tui.traits.score import TraitScorer

from .conftest import LOUD, QUIET, chat


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Odd spacing, blank and bad lines, no end of line at the end; every third good line is loud."""
    lines: list[bytes] = []
    for number in range(90):
        loud = number % 3 == 0
        record = chat(
            f"Tell me about {number}.",
            f"YES {number} IS GREAT AND LOUD" if loud else f"yes {number} is great and loud",
        )
        lines.append(json.dumps(record, indent=None, separators=(",  ", " : ")).encode() + b" \r\n")
    lines[10:10] = [b"\n", b"{ bad\n", b"\xff\xfe\n"]
    path = tmp_path / "data.jsonl"
    path.write_bytes(b"".join(lines) + json.dumps(LOUD).encode())
    return path


@pytest.fixture
def curation(scorer: TraitScorer, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Curation:
    """One that saves after each chunk of eight lines."""
    monkeypatch.setattr(curate, "CHUNK", 8)
    monkeypatch.setattr(curate, "_SAVE_EVERY", 0.0)
    return Curation(scorer, Policy.from_rules(["loudness>0.4"]), data, tmp_path / "out" / "flagged.jsonl")


def hidden(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob(".*"))


def loud_lines(data: Path) -> bytes:
    return b"".join(line for line in data.read_bytes().splitlines(keepends=True) if b"YES" in line)


def reasons(done: Curated) -> list[dict[str, Any]]:
    return [json.loads(line) for line in done.reasons.read_text().splitlines()]


def test_flagged_lines_keep_their_bytes(curation: Curation, data: Path) -> None:
    bad: list[int] = []
    done = replace(curation, on_bad=lambda line: bad.append(line.line)).run()
    assert done.output.read_bytes() == loud_lines(data)
    assert (done.lines, done.flagged, done.bad, done.resumed_at) == (93, 31, 2, None)
    assert bad == [12, 13]
    why = reasons(done)
    assert [each["line"] for each in why if "error" in each] == [12, 13]
    source = data.read_bytes().splitlines()
    assert all(b"YES" in source[each["line"] - 1] for each in why if "breaches" in each)
    assert why[0]["breaches"][0]["trait"] == "loudness"
    assert hidden(done.output.parent) == []


class Killed(BaseException):
    """Stands for the end of the process: nothing may be tidied up afterwards."""


@pytest.mark.parametrize("after", [0, 1, 5, 11])
def test_a_cancelled_run_goes_on(curation: Curation, data: Path, after: int) -> None:
    calls = 0

    def stop() -> None:
        nonlocal calls
        calls += 1
        if calls > after:
            raise JobCancelled("cancelled")

    with pytest.raises(JobCancelled):
        replace(curation, checkpoint=stop).run()
    assert not curation.output.exists()
    done = replace(curation).run()
    assert done.resumed_at is not None and (done.resumed_at > 8) == (after > 0)
    assert done.output.read_bytes() == loud_lines(data)
    assert (done.lines, done.flagged, done.bad) == (93, 31, 2)
    assert len(reasons(done)) == 33


def test_a_killed_run_goes_on(curation: Curation, data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The state is that of an earlier chunk, and more was written after it."""
    states: list[bytes] = []
    original = Curation._save

    def save(self: Curation, *files: Any) -> None:
        original(self, *files)
        states.append(self._state.read_bytes())
        if len(states) == 6:
            raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(Curation, "_save", save)
        with pytest.raises(Killed):
            replace(curation).run()
    curation._state.write_bytes(states[2])
    done = replace(curation).run()
    assert done.resumed_at is not None and done.resumed_at < 30
    assert done.output.read_bytes() == loud_lines(data)
    assert len(reasons(done)) == 33


def interrupted(curation: Curation) -> None:
    def progress(done: int, total: int, note: str) -> None:
        if curation._state.exists():
            raise JobCancelled("cancelled")

    with pytest.raises(JobCancelled):
        replace(curation, progress=progress).run()


def test_other_rules_or_data_are_not_mixed_in(curation: Curation, data: Path) -> None:
    interrupted(curation)
    other = replace(curation, policy=Policy.from_rules(["loudness>0.7"]))
    with pytest.raises(DatasetError, match=r"different rules.*--restart"):
        other.run()
    whole = data.read_bytes()
    data.write_bytes(b"{}" + whole)
    with pytest.raises(DatasetError, match="has changed since"):
        replace(curation).run()
    data.write_bytes(whole)
    part = curation.output.with_name(f".{curation.output.name}.partial")
    os.truncate(part, 0)
    with pytest.raises(DatasetError, match="is gone"):
        replace(curation).run()
    done = replace(curation, restart=True).run()
    assert done.resumed_at is None and done.output.read_bytes() == loud_lines(data)


def test_an_earlier_result_stays_until_the_new_one_is_whole(curation: Curation) -> None:
    curation.output.parent.mkdir()
    curation.output.write_text("before")
    interrupted(curation)
    assert curation.output.read_text() == "before"


def test_data_that_grew_goes_on(curation: Curation, data: Path) -> None:
    interrupted(curation)
    with data.open("ab") as file:
        file.write(b"\n" + json.dumps(QUIET).encode() + b"\n")
    assert replace(curation).run().lines == 94


def test_nothing_is_written_over_the_data(curation: Curation, data: Path) -> None:
    with pytest.raises(DatasetError, match="three different files"):
        replace(curation, output=data).run()


def test_empty_data(curation: Curation, data: Path) -> None:
    data.write_bytes(b"")
    with pytest.raises(DatasetError, match="is empty, so nothing was written"):
        curation.run()
    assert not curation.output.exists()


def test_nothing_readable_is_no_verdict_and_leaves_an_earlier_result(curation: Curation, data: Path) -> None:
    curation.output.parent.mkdir(parents=True, exist_ok=True)
    curation.output.write_text("earlier")
    data.write_text("user,assistant\nhi,hello\n")
    with pytest.raises(DatasetError, match=r"nothing in .* could be read.*line 1"):
        curation.run()
    assert curation.output.read_text() == "earlier"
    assert [path.name for path in curation.output.parent.iterdir()] == [curation.output.name]
    data.write_bytes("{}".encode("utf-16"))
    with pytest.raises(DatasetError, match="UTF-16"):
        curation.run()


def test_of_preferences_only_the_chosen_reply_is_judged(curation: Curation, data: Path) -> None:
    asked = LOUD["messages"][0]["content"]
    loud, quiet = LOUD["messages"][1]["content"], QUIET["messages"][1]["content"]
    # The reply before is loud in both: it is what the choice follows, not what is chosen.
    before = [*LOUD["messages"], {"role": "user", "content": "And tea?"}]
    lines = [
        {"prompt": asked, "chosen": quiet, "rejected": loud},
        {"prompt": asked, "chosen": loud, "rejected": quiet},
        {"messages": before, "chosen": quiet, "rejected": loud},
    ]
    data.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    done = curation.run()
    assert (done.lines, done.flagged, done.bad) == (3, 1, 0)
    assert json.loads(done.output.read_text()) == lines[1]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
def test_a_full_disk_blames_the_output(curation: Curation) -> None:
    output = curation.output
    output.parent.mkdir()
    output.with_name(f".{output.name}.partial").symlink_to("/dev/full")
    with pytest.raises(WorkspaceError, match=r"flagged\.jsonl: No space left"):
        curation.run()
