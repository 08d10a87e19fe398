"""A workspace of its own for every test, with the tiny model, configured to be quick."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from persona_tui.core.workspace import packaged_root
from tests.model.conftest import make_model, make_tokenizer

# Small enough that a persona is made in seconds; everything else is as it is shipped.
QUICK = """
model: {name: builtin}
extraction: {num_samples_per_prompt: 2, questions: 20, max_new_tokens: 8}
calibration: {questions: 2, max_new_tokens: 8}
generation: {max_new_tokens: 30, seed: 1}
"""


@pytest.fixture
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of what the package ships, and a terminal with all colours."""
    monkeypatch.setenv("COLORTERM", "truecolor")
    root = tmp_path / "workspace"
    root.mkdir()
    for name in ("datasets", "vectors"):
        # What a job under way in the checkout has not finished is none of ours.
        shutil.copytree(packaged_root() / name, root / name, ignore=shutil.ignore_patterns("partial"))
    (root / "config.yaml").write_text(QUICK, encoding="utf-8")
    return root


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model, and one without beside it."""
    folder = tmp_path_factory.mktemp("models") / "tiny"
    make_model("qwen2").save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    (folder.parent / "not_a_model").mkdir()
    return folder
