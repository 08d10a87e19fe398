"""Checks data sets: every line readable, ids unique, nothing said twice, categories as agreed."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from persona_tui.core.errors import DatasetError
from persona_tui.core.workspace import Workspace
from persona_tui.datasets.records import (
    FITTED_ON,
    QUERY_SETS,
    TRAINING,
    archetype_path,
    list_archetypes,
    queries_path,
    questions_path,
    read_queries,
    refusals_path,
    roles_path,
    safety_path,
    scan_jsonl,
    statements_path,
)
from persona_tui.datasets.schema import (
    QUESTION_CATEGORIES,
    ArchetypePrompt,
    MonitorQuery,
    MonitorStatement,
    Question,
    Record,
    SafePrompt,
    SafetyReply,
    UnsafePrompt,
)

# Two texts that share this much of their words say the same thing. The shipped data sets' closest pairs,
# which do differ, share about two thirds.
NEAR_DUPLICATE = 0.8

_WORD = re.compile(r"[^\W_]+(?:'[^\W_]+)?")


def tokens(text: str) -> frozenset[str]:
    """Return the set of a text's words, case folded, without punctuation."""
    return frozenset(_WORD.findall(text.casefold()))


def similarity(a: frozenset[str], b: frozenset[str]) -> float:
    """Shared words over all words (Jaccard), 0 to 1. Two texts without any word are the same."""
    union = len(a | b)
    return len(a & b) / union if union else 1.0


class Distinct:
    """Collects texts, and finds the earlier one that a new one repeats."""

    def __init__(self, texts: Iterable[str] = (), threshold: float = NEAR_DUPLICATE) -> None:
        self._threshold = threshold
        self._seen: list[frozenset[str]] = []
        for text in texts:
            self.add(text)

    def find(self, text: str) -> int | None:
        """Return the place, in order of adding, of the first text that this one repeats, or None."""
        words = tokens(text)
        for place, seen in enumerate(self._seen):
            few, many = sorted((len(words), len(seen)))
            if few >= self._threshold * many and similarity(words, seen) >= self._threshold:
                return place
        return None

    def add(self, text: str) -> None:
        """Remember a text."""
        self._seen.append(tokens(text))

    def add_new(self, text: str) -> bool:
        """Remember a text unless it repeats one; whether it was new."""
        if self.find(text) is not None:
            return False
        self.add(text)
        return True


@dataclass
class FileReport:
    """What was found in one file.

    Attributes:
        path: the file.
        count: how many good records it has.
        categories: how many records each category has.
        problems: one line each, beginning with `line N:` where a line is to blame.
    """

    path: Path
    count: int = 0
    categories: Counter[str] = field(default_factory=Counter)
    problems: list[str] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """Whether nothing is wrong."""
        return not self.problems


def validate_datasets(workspace: Workspace) -> list[FileReport]:
    """Check every data set that vectors are made from. Never raises for a bad file: it is in the reports."""
    reports = [validate_file(path, record) for path, record in dataset_files(workspace)]
    for report in reports:
        if report.path.parent == queries_path(workspace, TRAINING).parent and report.ok:
            report.problems += _leaks(workspace, report.path)
    return reports


def _leaks(workspace: Workspace, path: Path) -> Iterator[str]:
    """Yield what a set of queries measures with although monitors are fitted on nearly the same."""
    if path == queries_path(workspace, TRAINING) or path == statements_path(workspace):
        return
    trained: list[MonitorQuery] = []
    for name in FITTED_ON:
        with suppress(DatasetError):  # missing or bad: that is in its own report
            trained += (item for item in read_queries(queries_path(workspace, name)) if item.split != "test")
    distinct = Distinct(item.query for item in trained)
    for number, item in scan_jsonl(path, MonitorQuery):
        if not isinstance(item, MonitorQuery) or item.split == "train":
            continue
        if (found := distinct.find(item.query)) is not None:
            yield f'line {number}: nearly the same as "{trained[found].id}", which monitors are fitted on'


def dataset_files(workspace: Workspace) -> Iterator[tuple[Path, type[Record]]]:
    """Yield the data sets of a workspace, and what a line of each is."""
    yield safety_path(workspace, "safe"), SafePrompt
    yield safety_path(workspace, "unsafe"), UnsafePrompt
    if refusals_path(workspace).is_file():
        yield refusals_path(workspace), SafetyReply
    yield questions_path(workspace), Question
    for name in list_archetypes(workspace):
        yield archetype_path(workspace, name), ArchetypePrompt
    if roles_path(workspace).is_file():
        yield roles_path(workspace), ArchetypePrompt
    # A workspace can do without monitors.
    monitors: list[tuple[Path, type[Record]]] = [
        *((queries_path(workspace, name), MonitorQuery) for name in QUERY_SETS),
        (statements_path(workspace), MonitorStatement),
    ]
    yield from ((path, record) for path, record in monitors if path.exists())


def validate_file(path: Path, record: type[Record]) -> FileReport:
    """Check one data set."""
    report = FileReport(path)
    ids: dict[str, int] = {}
    distinct = Distinct()
    lines: list[int] = []
    splits: dict[str, str | None] = {}
    try:
        for number, item in scan_jsonl(path, record):
            if isinstance(item, str):
                report.problems.append(f"line {number}: {item}")
                continue
            problems = [*_problems(item, ids, distinct, lines), *_split_problems(item, splits)]
            report.problems += [f"line {number}: {problem}" for problem in problems]
            _count(report, item)
            ids.setdefault(item.id, number)
            distinct.add(item.text)
            lines.append(number)
    except DatasetError as error:
        report.problems.append(str(error))
        return report
    if not report.count:
        report.problems.append("no records")
    return report


def _problems(item: Record, ids: dict[str, int], distinct: Distinct, lines: list[int]) -> Iterator[str]:
    if item.id in ids:
        yield f'the id "{item.id}" is already on line {ids[item.id]}'
    repeated = distinct.find(item.text)
    if repeated is not None:
        yield f"nearly the same as line {lines[repeated]}"
    if isinstance(item, MonitorQuery) and item.label == "dangerous" and item.category is None:
        yield "a dangerous query needs a category"
    if isinstance(item, Question) and item.category not in QUESTION_CATEGORIES:
        yield f'unknown category "{item.category}": use one of {", ".join(QUESTION_CATEGORIES)}'


def _split_problems(item: Record, splits: dict[str, str | None]) -> Iterator[str]:
    if not isinstance(item, MonitorQuery) or item.template is None:
        return
    if splits.setdefault(item.template, item.split) != item.split:
        yield f'the template "{item.template}" is in both splits: a test must not share one with training'


def _count(report: FileReport, item: Record) -> None:
    report.count += 1
    if item.group is not None:
        report.categories[item.group] += 1
