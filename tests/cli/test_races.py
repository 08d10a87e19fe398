"""Commands that are called at once on one workspace."""

from __future__ import annotations

from pathlib import Path

import pytest

from persona_tui.vectors.manager import PersonaManager
from tests.cli.conftest import Cli
from tests.core.test_races import LOAD, at_once


@pytest.mark.slow
def test_loading_at_once(cli: Cli, workspace: Path) -> None:
    folder = next(path.parent for path in (workspace / "vectors").glob("*/personas"))
    personas = PersonaManager(folder)
    sage = personas.get("sage")
    names = [f"sage_{number}" for number in range(5)]
    for name in names:
        (folder / "personas" / f"{name}.safetensors").write_bytes(personas.path_of(sage.name).read_bytes())
    at_once(*(LOAD.format(path=str(folder), name=name) for name in names))
    assert set(names) <= {entry["name"] for entry in cli("list", "--loaded", "--json").json}
