"""A workspace with the tiny model, loaded once for all tests; and conversations that need no model."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from persona_tui.chat import Conversation, SessionStore
from persona_tui.chat.chat import Chat
from persona_tui.core.workspace import Workspace, packaged_root
from persona_tui.project.project import Project


@pytest.fixture
def store(tmp_path: Path) -> SessionStore:
    return SessionStore(Workspace(tmp_path))


def say(conversation: Conversation, question: str, *words: str) -> int:
    """A question and its reply, a token per word; the reply's number."""
    conversation.add_user(question)
    return answer(conversation, conversation.begin_reply(), *words)


def answer(conversation: Conversation, reply: int, *words: str) -> int:
    for token, word in enumerate(words):
        conversation.extend(reply, word, token)
    conversation.finish(reply, "stop")
    return reply


@pytest.fixture(scope="package")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """What the package ships, in a folder of its own."""
    root = tmp_path_factory.mktemp("sessions") / "workspace"
    root.mkdir()
    for name in ("datasets", "vectors"):
        shutil.copytree(packaged_root() / name, root / name)
    (root / "config.yaml").write_text("model: {name: builtin}\ngeneration: {max_new_tokens: 24}\n")
    return Project.open(root)


@pytest.fixture
def persona(project: Project) -> str:
    """Any persona of the tiny model."""
    return project.personas.list_available()[0]


@pytest.fixture
def session(project: Project) -> Chat:
    """A chat with the tiny model that hardly ever ends a reply by itself."""
    session = Chat.start(project)
    session.sampling_changes = {"temperature": 5.0, "top_p": 1.0, "seed": 1}
    return session
