"""Every mistake in a file of traits or a policy is told with its line."""

from __future__ import annotations

import json
from pathlib import Path

from persona_tui.core.workspace import Workspace, packaged_root
from persona_tui.traits.validate import (
    validate_policy_file,
    validate_trait_file,
    validate_traits,
)

from .conftest import HEAD, situations, write_definition, write_lines


def test_what_is_shipped_has_no_mistakes() -> None:
    reports = validate_traits(Workspace(packaged_root()))
    assert len(reports) >= 5 and all(report.ok for report in reports)


def test_all_mistakes_of_a_file_are_told_with_their_lines(tmp_path: Path) -> None:
    path = write_definition(tmp_path / "loudness.jsonl")
    assert validate_trait_file(path).ok
    lines = path.read_text(encoding="utf-8").splitlines()
    lines[2] = "no json"
    lines[3] = json.dumps({"id": "a", "user": "u", "hihg": "x"})
    lines[4] = lines[1]
    path.write_text("\n".join(lines), encoding="utf-8")
    problems = validate_trait_file(path).problems
    assert problems[0].startswith("line 3: not valid JSON")
    assert problems[1] == 'line 4: unknown key "hihg". Did you mean "high"?'
    assert problems[2] == 'line 5: the id "train_0" is already on line 2'
    assert "nearly the same as on line 2" in problems[3]


def test_an_empty_side_and_a_wrong_name_are_told(tmp_path: Path) -> None:
    one_sided = [{key: value for key, value in each.items() if key != "low"} for each in situations("train")]
    path = write_lines(tmp_path / "other.jsonl", [HEAD, *one_sided])
    problems = validate_trait_file(path).problems
    assert problems[0] == 'line 1: it describes "loudness": its file must have that name'
    assert problems[1].startswith("the low side is empty")


def test_yaml_text_that_is_none_and_empty_files(tmp_path: Path) -> None:
    yaml = tmp_path / "x.yaml"
    yaml.write_text(
        "trait: x\ndescription: d\nhigh: h\nlow: l\nsituations:\n- id: a\n  user: u\n  high: 3\n", "utf-8"
    )
    assert validate_trait_file(yaml).problems[0].startswith('line 6: "high"')
    binary = tmp_path / "b.jsonl"
    binary.write_bytes(b'{"a": 1}\n\xff\xfe\x00')
    assert validate_trait_file(binary).problems == ["line 2: not UTF-8 text"]
    empty = tmp_path / "e.jsonl"
    empty.write_bytes(b"")
    assert validate_trait_file(empty).problems == ["is empty"]


def test_a_policy_is_checked_too(tmp_path: Path) -> None:
    path = tmp_path / "p.yaml"
    path.write_text("traits:\n  e: {min: 2, max: 1}\n", "utf-8")
    assert validate_policy_file(path).problems == ['line 2: "traits.e": min is above max']
