"""What a monitor is fitted on: labelled queries and two statements, from files or out of another monitor."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from persona_tui.core.documents import read_plain
from persona_tui.core.errors import DatasetError, VectorFileError
from persona_tui.core.workspace import Workspace
from persona_tui.datasets.records import queries_path, read_queries, read_statements, statements_path
from persona_tui.datasets.schema import MonitorQuery
from persona_tui.monitors.probes import Examples

SMALL, LARGE, BOTH = "training", "large", "both"
TRAINING_SETS = (SMALL, LARGE, BOTH)


@dataclass(frozen=True, eq=False)
class TrainingData:
    """What a monitor is fitted on.

    Attributes:
        examples: the labelled queries.
        statements: what a safe and what a dangerous speaker says of itself; None = no tone vectors.
        sources: the files it came from: `file`, `sha256`, `queries`.
    """

    examples: Examples
    statements: tuple[str, str] | None
    sources: tuple[dict[str, Any], ...]

    def record(self) -> dict[str, Any]:
        """Return all of it for a monitor's file, so that it can be fitted again on another model."""
        columns = zip(
            self.examples.queries,
            self.examples.safe,
            self.examples.groups,
            self.examples.harms,
            self.examples.kinds,
            strict=True,
        )
        return {
            "sources": list(self.sources),
            "statements": list(self.statements) if self.statements else None,
            "queries": [
                {"query": query, "safe": bool(safe), "group": group, "harm": harm, "kind": kind}
                for query, safe, group, harm, kind in columns
            ],
        }

    @classmethod
    def restore(cls, record: Mapping[str, Any]) -> TrainingData:
        """Undo `record`.

        Raises:
            VectorFileError: something is missing.
        """
        try:
            rows, said = record["queries"], record.get("statements")
            examples = Examples(
                tuple(str(row["query"]) for row in rows),
                np.array([bool(row["safe"]) for row in rows], dtype=bool),
                tuple(str(row["group"]) for row in rows),
                tuple(row.get("harm") for row in rows),
                tuple(str(row.get("kind") or "") for row in rows),
            )
            return cls(examples, (str(said[0]), str(said[1])) if said else None, tuple(record["sources"]))
        except (KeyError, TypeError, IndexError) as error:
            raise VectorFileError(
                "this monitor's file does not contain its training data; name a data set instead"
            ) from error


def examples_of(queries: Iterable[MonitorQuery]) -> Examples:
    """Queries as arrays."""
    found = list(queries)
    return Examples(
        tuple(query.query for query in found),
        np.array([query.label == "safe" for query in found], dtype=bool),
        tuple(group_of(query) for query in found),
        tuple(query.category for query in found),
        tuple(query.kind for query in found),
    )


def group_of(query: MonitorQuery) -> str:
    """Return what a query has in common with its siblings: its template, or something of its own."""
    return f"template {query.template}" if query.template is not None else query.query


def load_training(workspace: Workspace, which: str = BOTH, file: Path | None = None) -> TrainingData:
    """Read what to fit on.

    Args:
        workspace: has the data sets.
        which: `training` (the small set), `large` (the larger set's training split) or `both`.
        file: queries of the user's own instead; of those with a split only the training ones are taken.

    Raises:
        DatasetError: a file is missing or bad, or holds too few queries.
    """
    names = {SMALL: [SMALL], LARGE: [LARGE], BOTH: [SMALL, LARGE]}
    if which not in names:
        raise DatasetError(f'there is no training set "{which}"; there are {", ".join(TRAINING_SETS)}')
    paths = [file] if file is not None else [queries_path(workspace, name) for name in names[which]]
    read = {path: [query for query in read_queries(path) if query.split != "test"] for path in paths}
    examples = examples_of(query for queries in read.values() for query in queries)
    examples.check()
    sources = tuple(
        {"file": path.name, "sha256": _sha256(path), "queries": len(queries)}
        for path, queries in read.items()
    )
    return TrainingData(examples, _statements(workspace), sources)


def _statements(workspace: Workspace) -> tuple[str, str] | None:
    """Return the first statement of either side."""
    if not statements_path(workspace).exists():
        return None
    said: Sequence[Any] = read_statements(workspace)
    sides = [[each.statement for each in said if each.label == label] for label in ("safe", "dangerous")]
    if not all(sides):
        raise DatasetError(f"{statements_path(workspace)} needs a safe and a dangerous statement")
    return sides[0][0], sides[1][0]


def _sha256(path: Path) -> str:
    return hashlib.sha256(read_plain(path)).hexdigest()
