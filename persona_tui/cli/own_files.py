"""Which kind of data a file of the user's own holds, and what is wrong with it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from persona_tui.core.documents import json_value, lines_of, read_plain
from persona_tui.core.errors import DatasetError
from persona_tui.core.yaml_documents import yaml_value
from persona_tui.datasets.schema import (
    ArchetypePrompt,
    MonitorQuery,
    MonitorStatement,
    Question,
    Record,
    SafePrompt,
    UnsafePrompt,
)
from persona_tui.datasets.validate import FileReport, validate_file
from persona_tui.traits.validate import validate_policy_file, validate_trait_file

# Which key only this kind of record has.
_RECORDS: dict[str, type[Record]] = {
    "query": MonitorQuery,
    "statement": MonitorStatement,
    "question": Question,
    "system_prompt": ArchetypePrompt,
}


def validate_own(path: Path) -> FileReport:
    """Check a file, whatever it is.

    Raises:
        DatasetError: it is missing, or of no kind that is known.
    """
    if not path.is_file():
        problem = "is not a regular file" if path.exists() else "does not exist"
        raise DatasetError(f"{path} {problem}")
    if path.suffix in (".yaml", ".yml"):
        return validate_policy_file(path) if "traits" in _yaml_keys(path) else validate_trait_file(path)
    first = _first(path)
    if first is None or "trait" in first or isinstance(first.get("instruction"), list):
        return validate_trait_file(path)
    for key, record in _RECORDS.items():
        if key in first:
            return validate_file(path, record)
    if "prompt" in first:
        return validate_file(path, UnsafePrompt if "attack_type" in first else SafePrompt)
    known = ", ".join(["trait", *_RECORDS])
    raise DatasetError(f"{path}: cannot tell what it holds: no object in it has any of the keys {known}")


def _yaml_keys(path: Path) -> list[str]:
    try:
        document = yaml_value(read_plain(path).decode("utf-8-sig"))
    except (OSError, ValueError):
        return []  # checking it as a trait tells the line
    return [str(key) for key in document] if isinstance(document, dict) else []


def _first(path: Path) -> dict[str, Any] | None:
    """Return the first object in a file of JSON Lines; None if there is none."""
    try:
        for line in lines_of(path):
            try:
                value = json_value(line.decode("utf-8-sig"))
            except ValueError:
                continue
            if isinstance(value, dict):
                return value
    except OSError as error:
        raise DatasetError(f"{path} cannot be read: {error.strerror}") from error
    return None
