"""The sets of queries that monitors are measured on. No monitor is fitted on any of them.

| set | queries |
| --- | --- |
| standard | validation: everyday and dangerous ones |
| borderline | validation: legitimate questions of professionals, all safe |
| adversarial | idioms, hostile tone (safe), academic dress, obfuscation (dangerous), and disguises of both |
| large | the larger set's test split, of templates that are in no training set |
| languages | requests in four other languages; all training queries are in English |
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from persona_tui.core.errors import DatasetError
from persona_tui.core.workspace import Workspace
from persona_tui.datasets.records import queries_path, read_queries
from persona_tui.datasets.schema import MonitorQuery

STANDARD, BORDERLINE, ADVERSARIAL, LARGE = "standard", "borderline", "adversarial", "large"
LANGUAGES = "languages"
PROFESSIONAL = "professional"  # the kind of the borderline queries


@dataclass(frozen=True, eq=False)
class QuerySet:
    """Labelled queries under one name."""

    name: str
    queries: tuple[MonitorQuery, ...]


def load_sets(workspace: Workspace) -> list[QuerySet]:
    """Read the sets above.

    Raises:
        DatasetError: a file is missing or bad.
    """
    validation = read_queries(queries_path(workspace, "validation"))
    large = read_queries(queries_path(workspace, "large"))
    sets = {
        STANDARD: [query for query in validation if query.kind != PROFESSIONAL],
        BORDERLINE: [query for query in validation if query.kind == PROFESSIONAL],
        ADVERSARIAL: read_queries(queries_path(workspace, "adversarial")),
        LARGE: [query for query in large if query.split == "test"],
    }
    if (languages := queries_path(workspace, "languages")).exists():  # older workspaces have none
        sets[LANGUAGES] = read_queries(languages)
    return [QuerySet(name, tuple(queries)) for name, queries in sets.items() if queries]


def set_from(path: Path) -> QuerySet:
    """Return a file of the user's own as a set; of queries with a split only the test ones are taken.

    Raises:
        DatasetError: the file is missing, bad, or has no such queries.
    """
    queries = tuple(query for query in read_queries(path) if query.split != "train")
    if not queries:
        raise DatasetError(f"{path} has no queries to test with: all of them are in the training split")
    return QuerySet(path.stem, queries)
