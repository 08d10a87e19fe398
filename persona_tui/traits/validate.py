"""Checks files of traits and policies: every mistake that can be told, each with its line."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

from persona_tui.core.errors import ConfigError, DatasetError
from persona_tui.core.workspace import Workspace
from persona_tui.datasets.validate import Distinct, FileReport
from persona_tui.traits.definition import (
    FEWEST,
    ORDINARY,
    POLICIES,
    SIDES,
    SUFFIXES,
    Situation,
    TraitDefinition,
    scan_definition,
    scan_situations,
)
from persona_tui.traits.policy import Policy

Item = TypeVar("Item", bound=TraitDefinition | Situation)


def validate_traits(workspace: Workspace) -> list[FileReport]:
    """Check the workspace's traits and policies. Never raises for a bad file: it is in the reports."""
    folder = workspace.datasets / "traits"
    traits = [path for path in sorted(folder.glob("*")) if path.suffix in SUFFIXES and path.is_file()]
    ordinary = sorted((folder / ORDINARY).glob("*.jsonl"))
    policies = [path for path in sorted((folder / POLICIES).glob("*")) if path.suffix in (".yaml", ".yml")]
    return [
        *map(validate_trait_file, traits),
        *map(validate_ordinary_file, ordinary),
        *map(validate_policy_file, policies),
    ]


def validate_trait_file(path: Path) -> FileReport:
    """Check one trait's file."""
    report, items = _read(path, scan_definition(path), lambda item: None)
    definition = next((item for _, item in items if isinstance(item, TraitDefinition)), None)
    if definition is not None:
        situations = tuple(item for _, item in items if isinstance(item, Situation))
        report.problems += _whole_problems(path, definition.model_copy(update={"situations": situations}))
    return report


def validate_ordinary_file(path: Path) -> FileReport:
    """Check one file of ordinary talk."""
    report, _ = _read(
        path, scan_situations(path), lambda item: None if item.ordinary else '"ordinary" is missing'
    )
    return report


def _read(
    path: Path, scanned: Iterator[tuple[int, Item | str]], fault: Callable[[Item], str | None]
) -> tuple[FileReport, list[tuple[int, Item]]]:
    """Check a file's items one by one, then its situations with one another.

    Args:
        path: the file.
        scanned: its items with their lines; a mistake is what is wrong with it.
        fault: what else is wrong with an item, if anything.

    Returns:
        The report, and the items that are sound; none of a file that cannot be read.
    """
    report = FileReport(path)
    items: list[tuple[int, Item]] = []
    try:
        for line, item in scanned:
            problem = item if isinstance(item, str) else fault(item)
            if problem is not None:
                report.problems.append(f"line {line}: {problem}")
            elif not isinstance(item, str):
                items.append((line, item))
    except DatasetError as error:
        report.problems.append(_located(path, str(error)))
        return report, []
    situations: list[tuple[int, Situation]] = [
        (line, item) for line, item in items if isinstance(item, Situation)
    ]
    report.count = len(situations)
    report.categories = Counter(situation.split for _, situation in situations)
    report.problems += [f"line {line}: {problem}" for line, problem in _situation_problems(situations)]
    return report, items


def validate_policy_file(path: Path) -> FileReport:
    """Check one policy."""
    report = FileReport(path)
    try:
        report.count = len(Policy.load(path).traits)
    except ConfigError as error:
        report.problems.append(_located(path, str(error).rstrip(".")))
    return report


def _located(path: Path, message: str) -> str:
    """Return an error of a file as a problem in its report: `file:3: why` is `line 3: why`."""
    where, _, problem = message.removeprefix(f"{path}:").partition(": ")
    return f"line {where}: {problem}" if where.isdigit() else message.removeprefix(str(path)).lstrip(": ")


def _situation_problems(situations: list[tuple[int, Situation]]) -> Iterator[tuple[int, str]]:
    """Yield ids that are there twice, and replies that say nearly the same as another of their side."""
    ids: dict[str, int] = {}
    seen = {side: Distinct() for side in SIDES}
    lines: dict[str, list[int]] = {side: [] for side in SIDES}
    for line, situation in situations:
        if situation.id in ids:
            yield line, f'the id "{situation.id}" is already on line {ids[situation.id]}'
        ids.setdefault(situation.id, line)
        for side in SIDES:
            reply = situation.reply(side)
            if reply is None:
                continue
            repeated = seen[side].find(reply)
            if repeated is not None:
                yield line, f'the "{side}" reply is nearly the same as on line {lines[side][repeated]}'
            seen[side].add(reply)
            lines[side].append(line)


def _whole_problems(path: Path, definition: TraitDefinition) -> Iterator[str]:
    if definition.name != path.stem:
        yield f'line 1: it describes "{definition.name}": its file must have that name'
    for side in SIDES if definition.recipe == "conversations" else ():
        count = definition.count("train", side)
        if not count:
            yield f'the {side} side is empty: no "train" situation has a "{side}" reply'
        elif count < FEWEST:
            yield f'{count} "train" situations have a "{side}" reply; at least {FEWEST} are needed'
