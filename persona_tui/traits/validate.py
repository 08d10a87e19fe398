"""Checks files of traits and policies: every mistake that can be told, each with its line."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

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
    report = FileReport(path)
    definition, situations = None, list[tuple[int, Situation]]()
    try:
        for line, item in scan_definition(path):
            if isinstance(item, str):
                report.problems.append(f"line {line}: {item}")
            elif isinstance(item, TraitDefinition):
                definition = item
            else:
                situations.append((line, item))
    except DatasetError as error:
        report.problems.append(_located(path, str(error)))
        return report
    report.count = len(situations)
    report.categories = Counter(situation.split for _, situation in situations)
    report.problems += [f"line {line}: {problem}" for line, problem in _situation_problems(situations)]
    if definition is not None:
        whole = definition.model_copy(update={"situations": tuple(each for _, each in situations)})
        report.problems += _whole_problems(path, whole)
    return report


def validate_ordinary_file(path: Path) -> FileReport:
    """Check one file of ordinary talk."""
    report = FileReport(path)
    situations: list[tuple[int, Situation]] = []
    try:
        for line, item in scan_situations(path):
            if isinstance(item, str):
                report.problems.append(f"line {line}: {item}")
            elif item.ordinary is None:
                report.problems.append(f'line {line}: "ordinary" is missing')
            else:
                situations.append((line, item))
    except DatasetError as error:
        report.problems.append(_located(path, str(error)))
        return report
    report.count = len(situations)
    report.categories = Counter(situation.split for _, situation in situations)
    report.problems += [f"line {line}: {problem}" for line, problem in _situation_problems(situations)]
    return report


def validate_policy_file(path: Path) -> FileReport:
    """Check one policy."""
    report = FileReport(path)
    try:
        report.count = len(Policy.load(path).traits)
    except ConfigError as error:
        report.problems.append(_located(path, str(error).rstrip(".")))
    return report


def _located(path: Path, message: str) -> str:
    """An error of a file as a problem in its report: `file:3: why` is `line 3: why`."""
    where, _, problem = message.removeprefix(f"{path}:").partition(": ")
    return f"line {where}: {problem}" if where.isdigit() else message.removeprefix(str(path)).lstrip(": ")


def _situation_problems(situations: list[tuple[int, Situation]]) -> Iterator[tuple[int, str]]:
    """Ids that are there twice, and replies that say nearly the same as another of their side."""
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
    for side in SIDES:
        count = definition.count("train", side)
        if not count:
            yield f'the {side} side is empty: no "train" situation has a "{side}" reply'
        elif count < FEWEST:
            yield f'{count} "train" situations have a "{side}" reply; at least {FEWEST} are needed'
