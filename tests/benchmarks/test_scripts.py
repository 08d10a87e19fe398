"""Every script beside the package can be loaded: what it imports is there under that name."""

from __future__ import annotations

import ast
import importlib.util
import runpy
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
SCRIPTS = sorted(
    path
    for folder in ("benchmarks", "tools")
    for path in (REPOSITORY / folder).rglob("*.py")
    if path.name != "__init__.py"
)


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: str(path.relative_to(REPOSITORY)))
def test_a_script_loads(script: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(script.parent))
    before = set(sys.modules)
    try:
        runpy.run_path(str(script), run_name="loaded")
    finally:  # scripts import each other under plain names, such as `terminal`
        for name in set(sys.modules) - before:
            if str(script.parent) in str(getattr(sys.modules[name], "__file__", "")):
                del sys.modules[name]


def test_what_scripts_import_later_is_there() -> None:
    wanted = {
        (str(node.module), alias.name)
        for script in SCRIPTS
        for node in ast.walk(ast.parse(script.read_text(encoding="utf-8")))
        if isinstance(node, ast.ImportFrom) and str(node.module).startswith("persona_tui")
        for alias in node.names
    }
    missing = {
        f"{module}.{name}"
        for module, name in wanted
        if not hasattr(importlib.import_module(module), name) and not _is_module(f"{module}.{name}")
    }
    assert missing == set()


def _is_module(name: str) -> bool:
    return importlib.util.find_spec(name) is not None
