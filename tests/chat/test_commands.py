"""Slash commands: parsing, completing, and what they do to a session."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from persona_tui.chat import personas
from persona_tui.chat.chat import Chat
from persona_tui.chat.command import CommandError, is_command, message_of
from persona_tui.chat.commands import COMMANDS, complete, execute, parse
from persona_tui.chat.front import Front
from persona_tui.core.errors import PersonaNotFoundError, PersonaTuiError, WorkspaceError
from persona_tui.project.project import FromDescription, Project, Source
from tests.vectors.conftest import Make


@pytest.fixture
def project(tmp_path: Path) -> Project:
    """A workspace with two personas; its model is never loaded."""
    (tmp_path / "config.yaml").touch()
    project = Project.open(tmp_path)
    for name in ("sage", "fool"):
        project.personas.save(Make().persona(name))
    return project


@pytest.fixture
def session(project: Project) -> Chat:
    return Chat.start(project)


class Asking(Front):
    """Somebody who always answers the same."""

    answer = "y"

    def ask(self, question: str) -> str | None:
        return self.answer


# --- reading a line ---


@pytest.mark.parametrize(
    ("line", "command", "message"),
    [
        ("/help", True, "/help"),
        ("//help", False, "/help"),
        ("hello /help", False, "hello /help"),
        ("", False, ""),
    ],
)
def test_what_is_a_command(line: str, command: bool, message: str) -> None:
    assert is_command(line) is command
    assert message_of(line) == message


def test_parsing() -> None:
    assert parse("/persona  sage ") == (COMMANDS["persona"], "sage")
    assert parse("/PERSONA sage") == (COMMANDS["persona"], "sage")
    assert parse("/create wiz A grumpy wizard")[1] == "wiz A grumpy wizard"
    assert parse("/none") == (COMMANDS["none"], "")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("/persna sage", 'Did you mean "/persona"'),
        ("/xyzzy", "/help lists them"),
        ("/", "/help"),
        ("/ help", "/"),
    ],
)
def test_unknown_commands(session: Chat, line: str, message: str) -> None:
    with pytest.raises(CommandError, match=message):
        execute(session, line)


def test_completion(session: Chat) -> None:
    assert complete(session, "/") == [f"/{name}" for name in COMMANDS]
    assert complete(session, "/se") == ["/seed", "/sessions"]
    assert complete(session, "/persona ") == ["/persona fool", "/persona sage"]
    assert complete(session, "/persona sa") == ["/persona sage"]
    assert complete(session, "/persona sage") == []
    assert complete(session, "/blend sage:0.5,f") == ["/blend sage:0.5,fool"]
    assert complete(session, "/safety o") == ["/safety on", "/safety off"]
    assert complete(session, "/unload ") == []
    assert complete(session, "/help pe") == ["/help persona"]
    assert complete(session, "hello") == complete(session, "/nonsense x") == []


# --- who speaks ---


def test_persona_loads_and_speaks(session: Chat) -> None:
    assert execute(session, "/persona").startswith("No persona.")
    assert execute(session, "/persona sage") == "Speaking as sage 0.30."
    assert session.mix.weights == {"sage": 1.0}
    assert session.project.personas.list_loaded() == ["sage"]
    assert execute(session, "/persona") == "Speaking as sage 0.30."
    assert session.label == "sage 0.30"
    assert execute(session, "/none") == "No persona."
    assert session.label == "" and session.mix.weights == {}


def test_an_unknown_persona_changes_nothing(session: Chat) -> None:
    execute(session, "/persona sage")
    for line in ("/persona sgae", "/blend fool:1,sgae:1", "/load sgae", "/delete sgae"):
        with pytest.raises(PersonaNotFoundError, match='Did you mean "sage"'):
            execute(session, line)
    assert session.mix.weights == {"sage": 1.0}
    assert session.project.personas.list_loaded() == ["sage"]


def test_strength_and_capping(session: Chat) -> None:
    assert execute(session, "/strength") == "Strength 0.30."
    assert execute(session, "/strength -0.5") == "Strength -0.50."
    assert session.mix.strength == -0.5
    assert execute(session, "/safety") == "Capping is on."
    assert execute(session, "/safety off") == "Capping is off."
    assert not session.mix.capping
    assert execute(session, "/safety ON") == "Capping is on."


def test_the_floor_and_the_layers(session: Chat) -> None:
    assert execute(session, "/floor") == "The floor lies at percentile 25 of ordinary replies."
    assert execute(session, "/floor 40%") == "The floor lies at percentile 40 of ordinary replies."
    assert execute(session, "/axis safety") == "The floor is on the safety axis."
    assert execute(session, "/layers 3-4") == "Personas are added at layers 3, 4."
    assert (session.mix.percentile, session.mix.capping_axis, session.mix.layers) == (40, "safety", (3, 4))
    for line in ("/floor auto", "/axis auto", "/layers auto"):
        execute(session, line)
    assert (session.mix.percentile, session.mix.capping_axis, session.mix.layers) == (None, None, None)


def test_blend(session: Chat) -> None:
    assert execute(session, "/blend").startswith("No persona.")
    assert execute(session, "/blend sage:0.5, fool:-0.2") == "Speaking as sage 71% + fool −29% · 0.30."
    assert session.mix.weights == {"sage": 0.5, "fool": -0.2}
    assert sorted(session.project.personas.list_loaded()) == ["fool", "sage"]


@pytest.mark.parametrize(
    "line",
    [
        "/strength loud",
        "/strength nan",
        "/strength inf",
        "/blend sage:x",
        "/blend sage:0",
        "/safety maybe",
        "/floor 200",
        "/axis mood",
        "/layers many",
        "/layers 5-3",
        "/seed 99999999999999999999",
        "/temperature hot",
        "/temperature -1",
        "/seed x",
        "/seed -1",
        "/load",
        "/unload",
        "/unload sage",
        "/delete",
        "/delete sage",
        "/create",
        "/create wizard",
        "/create ../x A wizard",
        "/create sage A wise man",
        "/help xyzzy",
    ],
)
def test_mistakes_are_one_line_and_change_nothing(session: Chat, line: str) -> None:
    before = (session.mix, dict(session.sampling_changes), session.project.personas.list_available())
    with pytest.raises(PersonaTuiError) as caught:
        execute(session, line)
    assert str(caught.value) and "\n" not in str(caught.value)
    assert (session.mix, session.sampling_changes, session.project.personas.list_available()) == before


# --- personas ---


def test_list_load_and_unload(session: Chat) -> None:
    execute(session, "/persona sage")
    execute(session, "/load fool")
    assert execute(session, "/list").splitlines() == ["  fool (loaded)", "> sage (loaded)"]
    assert execute(session, "/unload sage") == "Unloaded sage."
    assert session.mix.weights == {}
    assert execute(session, "/list").splitlines() == ["  fool (loaded)", "  sage"]


def test_an_empty_list(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").touch()
    assert "/create" in execute(Chat.start(Project.open(tmp_path)), "/list")


def test_delete(session: Chat) -> None:
    execute(session, "/blend sage,fool")
    assert "in the trash" in execute(session, "/delete sage --yes")
    assert session.project.personas.list_available() == ["fool"]
    assert session.mix.weights == {"fool": 1.0}


def test_what_was_deleted_comes_back_with_its_voice(session: Chat) -> None:
    execute(session, "/blend sage,fool")
    before = session.mix
    deleted = personas.delete(session, "sage")
    personas.restore(session, deleted)
    assert session.project.personas.list_available() == ["fool", "sage"]
    assert session.mix == before
    again = personas.delete(session, "sage")
    execute(session, "/persona off")
    personas.restore(session, again)
    assert session.mix.weights == {}, "the voice was changed since"
    once_more = personas.delete(session, "sage")
    once_more.persona.file.path.write_bytes(b"another one")
    with pytest.raises(WorkspaceError, match="exists again"):
        personas.restore(session, once_more)
    assert once_more.persona.file.kept.is_file()


def test_delete_asks(project: Project) -> None:
    session = Chat.start(project, front=Asking())
    session.front.answer = ""
    assert execute(session, "/delete sage") == "Kept sage."
    session.front.answer = "Y"
    assert execute(session, "/delete sage").startswith("Deleted sage.")


def test_create(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[tuple[str, Source]] = []

    def create(self: Project, name: str, source: Source, context: object) -> Any:
        from persona_tui.project.project import Created

        made.append((name, source))
        return Created(Make().persona(name))

    monkeypatch.setattr(Project, "create_persona", create)
    session = Chat.start(project, front=Asking())
    assert execute(session, "/create wizard  A grumpy wizard ").startswith("Created wizard.")
    session.front.answer = "An elf"
    assert execute(session, "/create elf").startswith("Created elf.")
    assert made == [("wizard", FromDescription("A grumpy wizard")), ("elf", FromDescription("An elf"))]


# --- how it speaks ---


def test_system_seed_and_temperature(session: Chat) -> None:
    assert execute(session, "/system") == "No system prompt."
    assert execute(session, "/system Be brief.") == "System prompt: Be brief."
    assert session.system == "Be brief."
    assert execute(session, "/system off") == "No system prompt."
    assert execute(session, "/seed 7").startswith("Seed 7")
    assert session.sampling.seed == 7
    assert execute(session, "/seed off").startswith("No seed")
    assert execute(session, "/temperature 0") == "Temperature 0."
    assert session.sampling.temperature == 0
    assert session.sampling.max_new_tokens == 256
    assert execute(session, "/top-p 0.5") == "Top-p 0.5." and session.sampling.top_p == 0.5
    assert execute(session, "/max-tokens 9") == "Replies of up to 9 tokens."
    assert session.sampling.max_new_tokens == 9


def test_help_and_quit(session: Chat) -> None:
    lines = execute(session, "/help").splitlines()
    assert [line.split()[0] for line in lines] == [f"/{name}" for name in COMMANDS]
    assert max(map(len, lines)) < 80
    assert execute(session, "/help none").startswith("/none")
    assert not session.ended
    assert execute(session, "/quit") == ""
    assert session.ended
