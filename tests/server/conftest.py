"""A server on the built-in model, as programs find it: at an address."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import httpx
import pytest

from persona_tui.core.workspace import packaged_root
from persona_tui.project.project import Project
from persona_tui.server.limits import Capacity
from persona_tui.server.run import Server

GREEDY = "model: {name: tiny, dtype: float32}\ngeneration: {max_new_tokens: 24, temperature: 0}\n"


@pytest.fixture(scope="session")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """What the package ships, in a folder of its own."""
    root = tmp_path_factory.mktemp("served") / "workspace"
    root.mkdir()
    for name in ("datasets", "vectors"):
        shutil.copytree(packaged_root() / name, root / name, ignore=shutil.ignore_patterns("partial"))
    (root / "config.yaml").write_text(GREEDY, encoding="utf-8")
    return Project.open(root)


@contextmanager
def serving(project: Project, api_key: str | None = None, limits: Capacity | None = None) -> Iterator[Server]:
    """A server that runs in a thread of its own; it is told to end afterwards."""
    server = Server(project, api_key=api_key, limits=limits)
    ready = threading.Event()
    thread = threading.Thread(target=server.run, args=(ready.set,))
    thread.start()
    try:
        assert ready.wait(60)
        yield server
    finally:
        server.end()
        thread.join(60)
        assert not thread.is_alive()


@pytest.fixture(scope="package")
def server(project: Project) -> Iterator[Server]:
    with serving(project) as running:
        yield running


@pytest.fixture
def endless(server: Server) -> Iterator[None]:
    """Replies do not end by themselves."""
    model = server.service.model
    ends, model._end_tokens = model._end_tokens, frozenset()
    yield
    model._end_tokens = ends


@pytest.fixture
def http(server: Server) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server.url, timeout=100) as client:
        yield client
