"""A server on the built-in model, and a workspace of its own for whoever connects to it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from persona_tui.chat.chat import Chat
from persona_tui.project.project import Project
from persona_tui.remote.project import RemoteProject
from persona_tui.server.run import Server
from tests.server.conftest import endless, project, serving

__all__ = ["endless", "project"]


@pytest.fixture(scope="package")
def server(project: Project) -> Iterator[Server]:
    with serving(project) as running:
        yield running


@pytest.fixture
def laptop(tmp_path: Path) -> Path:
    """A workspace without any vectors."""
    root = tmp_path / "laptop"
    (root / "vectors").mkdir(parents=True)
    (root / "datasets").mkdir()
    (root / "config.yaml").write_text("generation: {max_new_tokens: 24, seed: 3}\n", encoding="utf-8")
    return root


@pytest.fixture
def chat(server: Server, laptop: Path) -> Iterator[Chat]:
    """A chat on the laptop, connected to the server."""
    chat = Chat.start(RemoteProject.connect(server.url, workspace=laptop))
    chat.load()
    yield chat
    chat.close()
