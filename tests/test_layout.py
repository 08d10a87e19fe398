"""The house: names stand once, files are short, and no room's files go round in circles."""

from __future__ import annotations

import ast
from collections import Counter
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path

import pytest

import persona_tui

ROOT = Path(persona_tui.__file__).parent
PACKAGES = {"persona_tui", *(f"persona_tui.{path.parent.name}" for path in ROOT.glob("*/__init__.py"))}
LONGEST = 500
LARGEST_CIRCLE = 3
DEEPEST = 12
PARTICIPLES = ("ing", "wn", "marked")
NOUNS = {"markdown", "sampling", "setting"}  # that end alike


def files() -> Iterator[Path]:
    return (path for path in sorted(ROOT.rglob("*.py")) if "__pycache__" not in path.parts)


def module(path: Path) -> str:
    parts = path.relative_to(ROOT.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


@cache
def imports() -> dict[str, set[str]]:
    """What every module imports of the package, lazily and for type checking included."""
    trees = {module(path): ast.parse(path.read_text(encoding="utf-8")) for path in files()}
    return {name: {each for each in _imported(tree, trees) if each != name} for name, tree in trees.items()}


@cache
def imports_at_once() -> dict[str, set[str]]:
    """What every module imports when it is imported itself, neither later nor for types.

    A name that a package's face gives on first use counts as taken from the module that it is in.
    """
    trees = {module(path): ast.parse(path.read_text(encoding="utf-8")) for path in files()}
    faces = {name: _given(tree) for name, tree in trees.items() if name in PACKAGES}
    found = {}
    for name, tree in trees.items():
        at_once = [node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)]
        lazily = {
            faces[str(node.module)].get(each.name, name)
            for node in at_once
            if isinstance(node, ast.ImportFrom) and node.module in faces
            for each in node.names
        }
        tree.body = list(at_once)
        found[name] = {each for each in [*_imported(tree, trees), *lazily] if each != name}
    return found


def _given(tree: ast.Module) -> dict[str, str]:
    """The names that a package gives on first use, and where each comes from."""
    typed = next((node.body for node in tree.body if isinstance(node, ast.If)), [])
    imported = (node for node in typed if isinstance(node, ast.ImportFrom))
    return {each.name: str(node.module) for node in imported for each in node.names}


def _imported(tree: ast.Module, known: Mapping[str, object]) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module in known:
            for alias in node.names:
                full = f"{node.module}.{alias.name}"
                yield full if full in known else str(node.module)
        elif isinstance(node, ast.ImportFrom) and node.module == "persona_tui":
            yield from (full for each in node.names if (full := f"persona_tui.{each.name}") in known)
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in known)


def circles(graph: Mapping[str, set[str]]) -> list[set[str]]:
    """The groups of modules in which each reaches every other one."""
    reach = {name: _reached(graph, name) for name in graph}
    groups = {frozenset({name} | {other for other in reach[name] if name in reach[other]}) for name in graph}
    return [set(group) for group in groups if len(group) > 1]


def _reached(graph: Mapping[str, set[str]], start: str) -> set[str]:
    found, waiting = set[str](), list(graph[start])
    while waiting:
        name = waiting.pop()
        if name not in found:
            found.add(name)
            waiting.extend(graph.get(name, ()))
    return found


ROOMS = sorted(path.parent.name for path in ROOT.glob("*/__init__.py"))


@pytest.mark.parametrize("room", ROOMS)
def test_no_circle_is_large(room: str) -> None:
    graph = imports()
    inside = {name for name in graph if name.startswith(f"persona_tui.{room}.")}
    found = circles({name: graph[name] & inside for name in inside})
    assert [sorted(circle) for circle in found if len(circle) > LARGEST_CIRCLE] == []


def test_imports_are_not_deep() -> None:
    @cache
    def depth(name: str) -> int:
        return 1 + max(map(depth, imports_at_once()[name]), default=0)

    deep = [f"{name}: {depth(name)}" for name in sorted(imports_at_once()) if depth(name) > DEEPEST]
    assert deep == []


def test_no_class_name_stands_twice() -> None:
    trees = (ast.parse(path.read_text(encoding="utf-8")) for path in files())
    names = Counter(
        node.name
        for tree in trees
        for node in tree.body
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_")
    )
    assert {name for name, count in names.items() if count > 1} == set()


def test_files_are_short() -> None:
    lengths = {
        str(path.relative_to(ROOT)): len(path.read_text(encoding="utf-8").splitlines()) for path in files()
    }
    assert {name for name, length in lengths.items() if length > LONGEST} == set()


@pytest.mark.parametrize("room", ["chat", "tui"])
def test_rooms_are_named_by_nouns(room: str) -> None:
    names = [path.stem for path in files() if path.relative_to(ROOT).parts[0] == room]
    bad = [name for name in names if name not in NOUNS and name.endswith(PARTICIPLES)]
    assert bad == [] and "lab" not in names
