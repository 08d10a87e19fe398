"""What every front end does with a conversation, and does alike."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from persona_tui import model
from persona_tui.chat import SessionStore
from persona_tui.chat.replay import replay, stretches
from persona_tui.core.config import Settings
from persona_tui.core.mix import Mix
from persona_tui.core.workspace import Workspace, packaged_root
from persona_tui.project.project import Project

from .fronts import FRONTS, LOCAL, Front, Talk

pytestmark = pytest.mark.slow

QUICK = "model: {name: builtin}\ngeneration: {max_new_tokens: 24, seed: 1}\n"
TRAIT = "trait:empathetic_responsiveness"


@pytest.fixture(params=list(FRONTS))
def front(request: pytest.FixtureRequest) -> Front:
    return FRONTS[str(request.param)]


@pytest.fixture
def workspace(tmp_path: Path) -> Path:
    root = tmp_path / "workspace"
    root.mkdir()
    for name in ("datasets", "vectors"):
        shutil.copytree(packaged_root() / name, root / name, ignore=shutil.ignore_patterns("partial"))
    (root / "config.yaml").write_text(QUICK, encoding="utf-8")
    return root


def store(workspace: Path) -> SessionStore:
    return SessionStore(Workspace.find(workspace))


def roles(talk: Talk) -> list[str]:
    return [message["role"] for message in talk.conversation.messages()]


def check_readable(workspace: Path) -> None:
    """Every session's file can be read and is nobody's any more."""
    sessions = store(workspace)
    for info in sessions.list():
        assert info.problem is None
        sessions.load(info.id)
        sessions.open(info.id).close()


async def test_what_was_said_is_saved_and_comes_out_again_token_for_token(
    front: Front, workspace: Path
) -> None:
    async with front(workspace) as talk:
        await talk.do("/persona sage")
        await talk.do("/system Be brief.")
        await talk.say("What is bread?")
        await talk.do("/strength 0.6")
        await talk.do("/safety off")
        await talk.say("And soup?")
        assert (talk.mix.weights, talk.mix.strength, talk.mix.capping) == ({"sage": 1.0}, 0.6, False)
        said, session = talk.conversation.messages(), talk.session_id
    conversation, events = store(workspace).load(session or "")
    assert conversation.messages() == said and conversation.system == "Be brief."
    assert [event.fields["mix"]["strength"] for event in events if event.kind == "mix"] == [0.6, 0.6]
    engine = Project.open(workspace).engine
    assert [replay(engine, run).equal for run in stretches(conversation)] == [True, True]


async def test_edit_regenerate_continue_and_walk(front: Front, workspace: Path) -> None:
    async with front(workspace) as talk:
        await talk.say("What is bread?")
        await talk.do("/regenerate")
        assert talk.conversation.siblings(talk.conversation.path()[1].id) == (1, 2)
        await talk.do("/continue")
        assert len(talk.conversation.path()[1].runs) == 2
        await talk.do("/edit #1 What is soup?")
        assert talk.conversation.messages()[0]["content"] == "What is soup?" and len(roles(talk)) == 2
        shown = await talk.do("/branch #1")
        assert "#1 you (1 of 2): What is bread?" in shown
        await talk.do("/rename Kitchen")
        nodes, session = talk.conversation.nodes(), talk.session_id
    conversation, _ = store(workspace).load(session or "")
    assert conversation.nodes() == nodes and conversation.title == "Kitchen"
    assert conversation.path()[0].text == "What is bread?"


async def test_two_answers_side_by_side_and_one_is_kept(front: Front, workspace: Path) -> None:
    async with front(workspace) as talk:
        await talk.say("What is bread?")
        assert "nothing to keep yet" in await talk.do("/keep a")
        await talk.do("/compare persona=sage,strength=0.5 vs persona=none Who are you?")
        assert len(talk.conversation) == 2, "neither is in the conversation yet"
        assert "Kept B." in await talk.do("/keep b")
        kept = talk.conversation.path()[-1]
        assert roles(talk) == ["user", "assistant"] * 2 and talk.conversation.siblings(kept.id) == (1, 2)
        assert [mix["weights"] for mix in kept.runs[0].settings["rows"]] == [{"sage": 1.0}, {}]
        session = talk.session_id
    conversation, _ = store(workspace).load(session or "")
    engine = Project.open(workspace).engine
    assert [replay(engine, run).equal for run in stretches(conversation)] == [True] * 3


async def test_a_reply_is_stopped_and_what_was_said_stays(front: Front, workspace: Path) -> None:
    (workspace / "config.yaml").write_text(QUICK.replace("24", "1500"), encoding="utf-8")
    async with front(workspace) as talk:
        await talk.do("/temperature 5")
        talk.project.engine.model._end_tokens = frozenset()
        await talk.stop("Tell me a long story")
        stopped = talk.conversation.path()[-1]
        assert stopped.finish == "cancelled" and stopped.text.strip()
        await talk.do("/max-tokens 8")
        await talk.say("And then?")
        assert len(roles(talk)) == 4
    check_readable(workspace)


async def test_guard_and_policy_judge_and_go_on_with_another_model(front: Front, workspace: Path) -> None:
    policy = workspace / "strict.yaml"
    policy.write_text("traits:\n  empathetic_responsiveness: {min: 9, everywhere: true}\n")
    async with front(workspace) as talk:
        await talk.do("/guard warn")
        await talk.do(f"/policy {policy}")
        await talk.say("What is bread?")
        await talk.do("/model builtin")
        await talk.say("And soup?")
        stats = [node.runs[-1].stats for node in talk.conversation.path() if node.runs]
        assert all("message" in each["guard"] for each in stats)
        assert all("< 9.00" in each["breaches"][0]["badge"] for each in stats)
        assert "is warn" in await talk.do("/guard") and "No policy" in await talk.do("/policy off")


async def test_a_session_is_resumed_as_it_was_left(front: Front, workspace: Path) -> None:
    async with front(workspace) as talk:
        await talk.do("/persona sage")
        await talk.say("What is bread?")
        await talk.do("/strength 0.45")
        said, first = talk.conversation.messages(), talk.session_id
        await talk.do("/new")
        await talk.do("/none")
        await talk.say("Who are you?")
        second = talk.session_id
        assert first != second and len(roles(talk)) == 2
        shown = await talk.do(f"/resume {first}")
        assert "What is bread?" in shown and talk.session_id == first
        assert talk.conversation.messages() == said
        assert (talk.mix.weights, talk.mix.strength) == ({"sage": 1.0}, 0.45)
        await talk.say("And soup?")
    assert len(store(workspace).load(first or "")[0].path()) == 4
    check_readable(workspace)


async def test_a_trait_that_is_gone_is_said_and_the_session_goes_on_without_it(
    front: Front, workspace: Path
) -> None:
    wanted = await spoken_as(front, workspace, TRAIT)
    (workspace / "vectors" / "builtin" / "traits" / f"{TRAIT.partition(':')[2]}.safetensors").unlink()
    async with front(workspace) as talk:
        await talk.say("Who are you?")
        shown = await talk.do(f"/resume {wanted}")
        assert TRAIT in shown and "gone" in shown and "Error" not in shown
        assert talk.session_id == wanted and talk.mix.weights == {}
        await talk.say("And soup?")
        assert len(roles(talk)) == 4
    assert len(store(workspace).load(wanted)[0].path()) == 4
    check_readable(workspace)


async def test_a_persona_that_is_damaged_leaves_the_open_conversation_as_it_was(
    front: Front, workspace: Path
) -> None:
    wanted = await spoken_as(front, workspace, "sage")
    path = workspace / "vectors" / "builtin" / "personas" / "sage.safetensors"
    path.write_bytes(path.read_bytes()[:1000])
    before = (workspace / "sessions" / f"{wanted}.jsonl").read_bytes()
    async with front(workspace) as talk:
        await talk.do("/persona trickster")
        await talk.say("Who are you?")
        opened, mix = talk.session_id, talk.mix
        shown = await talk.do(f"/resume {wanted}")
        assert "Error" in shown and "sage.safetensors" in shown
        assert (talk.session_id, talk.mix) == (opened, mix)
        store(workspace).open(wanted).close()  # nobody holds it
        await talk.say("And then?")
        assert len(roles(talk)) == 4
    assert len(store(workspace).load(opened or "")[0].path()) == 4
    assert (workspace / "sessions" / f"{wanted}.jsonl").read_bytes().startswith(before)
    check_readable(workspace)


async def spoken_as(front: Front, workspace: Path, name: str) -> str:
    """A session in which somebody speaks; its id."""
    async with front(workspace) as talk:
        await talk.do(f"/persona {name}")
        assert talk.mix == Mix({name: 1.0}, plausibility=Settings().steering.plausibility)
        await talk.say("What is bread?")
        session = talk.session_id
        await talk.do("/new")
        await talk.do(f"/unload {name}")  # whatever is loaded is compared with every reply, so it is read
    assert session is not None
    return session


@pytest.mark.parametrize("front", LOCAL, indirect=True)
@pytest.mark.parametrize("name", ["sage", TRAIT])
async def test_who_speaks_goes_on_with_another_model_where_it_has_the_voice(
    front: Front, workspace: Path, name: str
) -> None:
    async with front(workspace) as talk:
        await talk.do(f"/persona {name}")
        await talk.say("What is bread?")
        before = talk.project
        shown = await talk.do("/model builtin")
        assert "Now talking to builtin" in shown and talk.project is not before
        assert talk.mix.weights == {name: 1.0} and name in await talk.do("/persona")
        await talk.say("And soup?")
        runs = [node.runs[0] for node in talk.conversation.path() if node.runs]
        assert [run.settings["mix"]["weights"] for run in runs] == [{name: 1.0}] * 2


@pytest.mark.parametrize("front", LOCAL, indirect=True)
@pytest.mark.parametrize("name", ["sage", TRAIT])
async def test_a_voice_that_another_model_lacks_is_said(
    front: Front, workspace: Path, name: str, tmp_path: Path
) -> None:
    shutil.copytree(Path(model.__file__).parent / "tiny", tmp_path / "other")
    async with front(workspace) as talk:
        await talk.do(f"/persona {name}")
        await talk.say("What is bread?")
        shown = await talk.do(f"/model {tmp_path / 'other'}")
        assert f"It has no {name}" in shown and talk.mix.weights == {}
        await talk.say("And soup?")
        assert len(roles(talk)) == 4
