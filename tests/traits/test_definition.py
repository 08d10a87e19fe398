"""Definitions: what is refused and where, and that the shipped ones are fair."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from statistics import fmean

import pytest

from persona_tui.core.errors import DatasetError, PersonaTuiError
from persona_tui.core.statistics import roc_auc
from persona_tui.core.workspace import Workspace, packaged_root
from persona_tui.datasets.validate import Distinct
from persona_tui.traits.definition import (
    SIDES,
    Split,
    TraitDefinition,
    find_definition,
    list_definitions,
    read_definition,
)

from .conftest import HEAD, situations, write_definition, write_lines

SPLITS: tuple[Split, Split] = ("train", "test")
SHIPPED = ["boundary_maintenance", "crisis_recognition", "empathetic_responsiveness", "harmful_validation"]
HELP_LINES = ("988", "116 123", "your local emergency number")


@pytest.fixture(params=SHIPPED)
def shipped(request: pytest.FixtureRequest) -> TraitDefinition:
    return find_definition(Workspace(packaged_root()), request.param)


def test_there_are_four() -> None:
    assert list(list_definitions(Workspace(packaged_root()))) == SHIPPED


def test_enough_of_everything(shipped: TraitDefinition) -> None:
    assert min(shipped.count(split, side) for split in SPLITS for side in SIDES) >= 24
    assert min(len(shipped.outside(split)) for split in SPLITS) >= 12
    assert len(shipped.high_prompts) >= 3
    assert (shipped.healthy.min, shipped.healthy.max) != (None, None)


def test_both_sides_answer_the_same_messages(shipped: TraitDefinition) -> None:
    about = [*shipped.about("train"), *shipped.about("test")]
    outside = [*shipped.outside("train"), *shipped.outside("test")]
    assert all(situation.high and situation.low for situation in about)
    assert len(about) + len(outside) == len(shipped.situations)


def test_no_situation_comes_twice(shipped: TraitDefinition) -> None:
    distinct = Distinct()
    assert all(distinct.add_new(situation.prompt[-1]["content"]) for situation in shipped.situations)


@pytest.mark.parametrize("split", ["train", "test"])
def test_length_does_not_tell_the_sides_apart(shipped: TraitDefinition, split: str) -> None:
    high, low = (
        [len(messages[-1]["content"].split()) for _, messages in shipped.conversations(split, side)]  # type: ignore[arg-type]
        for side in SIDES
    )
    assert 0.3 < roc_auc(high, low) < 0.7
    assert abs(fmean(high) - fmean(low)) < 2


def test_crisis_texts_name_help_that_exists() -> None:
    crisis = find_definition(Workspace(packaged_root()), "crisis_recognition")
    replies = [messages[-1]["content"] for _, messages in crisis.conversations("train", "high")]
    replies += [messages[-1]["content"] for _, messages in crisis.conversations("test", "high")]
    named = [any(line in reply for line in HELP_LINES) for reply in replies]
    assert fmean(named) > 0.8
    numbers = {number for reply in replies for number in re.findall(r"\d[\d ]+\d", reply)}
    assert numbers <= {"988", "116 123"}


@pytest.fixture
def broken(tmp_path: Path) -> Callable[[list[object]], str]:
    """What is said of a file with these lines."""

    def read(records: list[object]) -> str:
        path = write_lines(tmp_path / "bad.jsonl", records)
        with pytest.raises(DatasetError) as caught:
            read_definition(path)
        return str(caught.value).removeprefix(str(tmp_path))

    return read


def test_mistakes_name_their_line(broken: Callable[[list[object]], str]) -> None:
    good = situations("train")
    assert broken([HEAD, good[0], {**good[1], "hihg": "x"}]).startswith('/bad.jsonl:3: unknown key "hihg".')
    assert 'Did you mean "high"' in broken([HEAD, {**good[0], "hihg": "x"}])
    assert broken([HEAD, good[0], good[0]]) == '/bad.jsonl:3: the id "train_0" is already on line 2'
    assert broken([{**HEAD, "description": ""}]).startswith('/bad.jsonl:1: "description":')
    assert broken([HEAD, {"id": "a", "user": "b"}]) == '/bad.jsonl:2: "high" or "low" is needed, ideally both'
    assert broken([HEAD, {"id": "a", "high": "b"}]).startswith('/bad.jsonl:2: either "user" or "messages"')
    assert broken([HEAD, [1]]).startswith("/bad.jsonl:2: a mapping with keys is needed")
    assert broken([{**HEAD, "low_prompts": []}]).startswith('/bad.jsonl:1: "high_prompts" and "low_prompts"')
    assert broken([{**HEAD, "trait": "no/name"}]).startswith('/bad.jsonl:1: "trait" must be a name')


def test_one_side_empty(broken: Callable[[list[object]], str]) -> None:
    records = [{**each, "low": None} for each in situations("train")]
    assert "the low side is empty" in broken([HEAD, *records])
    assert "the high side is empty" in broken([HEAD])


@pytest.mark.parametrize("content", [b"", b"\xff\xfe", b"{", b"\n\n", b"3"])
def test_what_is_no_definition(tmp_path: Path, content: bytes) -> None:
    for name in ("bad.jsonl", "bad.yaml"):
        path = tmp_path / name
        path.write_bytes(content)
        with pytest.raises(DatasetError, match="bad"):
            read_definition(path)


YAML = """\
# Comments are welcome here.
trait: calm
description: Whether a reply is calm.
high: calm
low: hectic
situations:
  - id: a
    user: Hurry!
    high: Let us take our time.
    low: Quick, quick, quick!
  - {id: b, messages: [{role: user, content: Hi}], high: Hello., low: HELLO!, %s: x}
"""


def test_yaml_says_the_same_and_knows_its_lines(tmp_path: Path) -> None:
    path = tmp_path / "calm.yaml"
    path.write_text(YAML.replace(", %s: x", ""))
    assert [read_definition(path).count("train", side) for side in SIDES] == [2, 2]
    path.write_text(YAML % "extra")
    with pytest.raises(DatasetError, match=r"calm.yaml:11: unknown key"):
        read_definition(path)
    path.write_text("trait: [")
    with pytest.raises(DatasetError, match=r"calm.yaml:\d+: not valid YAML"):
        read_definition(path)


def test_ones_own_definitions_come_first(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path)
    own = write_definition(tmp_path / "datasets" / "traits" / "loudness.jsonl")
    assert list_definitions(workspace)["loudness"] == own
    assert set(SHIPPED) < set(list_definitions(workspace))
    assert find_definition(workspace, "loudness").name == find_definition(workspace, str(own)).name
    with pytest.raises(DatasetError, match='Did you mean "loudness"'):
        find_definition(workspace, "loudnes")
    write_definition(tmp_path / "datasets" / "traits" / "other.jsonl")
    with pytest.raises(PersonaTuiError, match='describes "loudness"'):
        find_definition(workspace, "other")
