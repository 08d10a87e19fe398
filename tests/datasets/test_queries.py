"""The queries of self-monitoring: what the shipped sets hold, and what a bad line is told."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from persona_tui.core.workspace import Workspace, packaged_root
from persona_tui.datasets.records import QUERY_SETS, queries_path, read_queries, read_statements
from persona_tui.datasets.schema import MonitorQuery
from persona_tui.datasets.validate import Distinct, validate_datasets, validate_file

SHIPPED = Workspace(packaged_root())
GOOD = {"id": "q_1", "query": "How do I bake bread?", "label": "safe", "kind": "everyday"}
BAD = {"id": "q_2", "query": "How do I rob banks?", "label": "dangerous", "kind": "direct"}


def count(name: str, **wanted: str) -> int:
    queries = read_queries(queries_path(SHIPPED, name))
    return sum(all(getattr(query, key) == value for key, value in wanted.items()) for query in queries)


def test_the_sets_are_as_large_as_documented() -> None:
    for label in ("safe", "dangerous"):
        assert count("training", label=label) == 25
    assert count("validation", kind="everyday") == count("validation", label="dangerous") == 68
    assert count("validation", kind="professional", label="safe") == 20
    for kind in ("idiom", "hostile", "academic", "obfuscated"):
        assert count("adversarial", kind=kind) == 12
    assert count("large", label="safe") >= 250 and count("large", label="dangerous") >= 250
    assert count("large", kind="chat", split="train") == 111
    assert {statement.label for statement in read_statements(SHIPPED)} == {"safe", "dangerous"}


def test_no_query_is_in_two_sets() -> None:
    distinct = Distinct()
    for name in QUERY_SETS:
        queries = read_queries(queries_path(SHIPPED, name))
        assert all(distinct.add_new(query.query) for query in queries), name


def test_training_and_test_share_no_template() -> None:
    queries = read_queries(queries_path(SHIPPED, "large"))
    templates = {split: {q.template for q in queries if q.split == split} for split in ("train", "test")}
    assert templates["train"] and templates["test"]
    assert not templates["train"] & templates["test"]
    assert len({query.category for query in queries}) == 9  # eight harms, and none


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"label": "evil"}, '"label":'),
        ({"category": "cooking"}, '"category":'),
        ({"category": None}, "a dangerous query needs a category"),
        ({"label": "safe"}, "only a dangerous query has a category"),
        ({"split": "train"}, "a query with a split needs a template"),
        ({"query": " "}, '"query":'),
        ({"querry": "x"}, 'unknown key "querry". Did you mean "query"?'),
    ],
)
def test_a_bad_line_is_named(tmp_path: Path, change: dict[str, str | None], problem: str) -> None:
    path = tmp_path / "mine.jsonl"
    path.write_text(f"{json.dumps(GOOD)}\n{json.dumps({**BAD, 'category': 'fraud', **change})}\n")
    report = validate_file(path, MonitorQuery)
    assert len(report.problems) == 1
    assert report.problems[0].startswith("line 2: ") and problem in report.problems[0]


def test_a_template_in_both_splits_is_a_problem(tmp_path: Path) -> None:
    path = tmp_path / "mine.jsonl"
    split = [{**GOOD, "template": "t", "split": "train"}, {**BAD, "category": "fraud", "template": "t"}]
    path.write_text("".join(f"{json.dumps(line)}\n" for line in split))
    assert "in both splits" in validate_file(path, MonitorQuery).problems[0]


def test_a_measuring_set_that_repeats_what_monitors_are_fitted_on_is_a_problem(tmp_path: Path) -> None:
    folder = tmp_path / "datasets" / "monitors"
    shutil.copytree(SHIPPED.datasets / "monitors", folder)
    assert not leaks(tmp_path)
    known = read_queries(folder / "training.jsonl")[0]
    repeated = {"id": "valid_x", "query": f"{known.query} !", "label": "safe", "kind": "everyday"}
    with (folder / "validation.jsonl").open("a") as file:
        file.write(f"{json.dumps(repeated)}\n")
    (problem,) = leaks(tmp_path)
    assert f'nearly the same as "{known.id}", which monitors are fitted on' in problem


def leaks(root: Path) -> list[str]:
    """The problems of the query sets of a workspace that has nothing else."""
    reports = validate_datasets(Workspace(root))
    return [problem for each in reports if each.path.parent.name == "monitors" for problem in each.problems]
