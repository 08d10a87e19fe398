"""`replay`: the tokens of a transcript come out again, or it is said what is in the way."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from persona_tui.chat import SessionStore
from persona_tui.core.workspace import Workspace
from persona_tui.project.project import Project

from .conftest import Cli

# Forty tokens are some text, whatever a random model writes.
LINES = """\
/max-tokens 40
/persona sage
Hello?
/strength 1
/safety off
And now?
/regenerate
/temperature 0
/continue
"""


@pytest.fixture
def recorded(cli: Cli) -> Cli:
    assert cli("chat", stdin=LINES).status == 0
    return cli


@pytest.mark.slow
def test_a_session_comes_out_the_same(recorded: Cli, call: Cli, workspace: Path) -> None:
    result = call("--workspace", workspace, "replay", "last")  # the model is the session's, not the settings'
    assert result.status == 0, result.err
    *replies, summary = result.out.splitlines()
    assert [line.split(", ")[0] for line in replies] == [
        "reply 2: equal",
        "reply 4: equal",
        "reply 5: equal",
        "reply 5",  # its continuation
    ]
    assert summary == "4 of 4 replies came out the same, token for token."
    report = recorded("replay", "last", "--json").json
    assert report["equal"] and [entry["run"] for entry in report["replies"]] == [0, 0, 0, 1]


@pytest.mark.slow
def test_a_change_in_the_middle_of_a_reply_comes_out_the_same(
    call: Cli, workspace: Path, tmp_path: Path
) -> None:
    """On the tiny model: the strength moves while a reply is written."""
    from persona_tui.chat.chat import Chat
    from persona_tui.chat.commands import execute
    from persona_tui.core.workspace import packaged_root

    root = tmp_path / "builtin"
    root.mkdir()
    shutil.copytree(packaged_root() / "vectors", root / "vectors")
    (root / "config.yaml").write_text("generation: {max_new_tokens: 20, temperature: 1.5}\n")
    session = Chat.start(Project.open(root))
    execute(session, f"/persona {session.project.personas.list_available()[0]}")
    turn = session.events(session.say("What is a good life?"))
    for strength in (0.6, 1.2):
        for _ in range(3):
            next(turn)
        execute(session, f"/strength {strength}")
    list(turn)
    session.close()
    report = call("--workspace", root, "replay", "last", "--json").json
    (reply,) = report["replies"]
    assert reply["equal"] and reply["mix_changes"] == 2


@pytest.mark.slow
def test_a_token_that_differs_is_shown(recorded: Cli, workspace: Path) -> None:
    store = SessionStore(Workspace(workspace))
    path = store.folder / f"{store.resolve('last')}.jsonl"
    conversation, _ = store.load(path.stem)
    ids = conversation.node(4).token_ids
    before = f'"node": 4, "ids": [{ids[0]}, {ids[1]}, {ids[2]}, '
    after = f'"node": 4, "ids": [{ids[0]}, {ids[1]}, {ids[2] + 1}, '
    text = path.read_text()
    assert before in text
    path.write_text(text.replace(before, after).replace('"torch": "', '"torch": "0.'))
    result = recorded("replay", "last")
    assert result.status == 1
    assert (
        f"reply 4: differs at token 2 of {len(ids)}: {ids[2] + 1} was written then, now token {ids[2]}"
        in result.out
    )
    assert "3 of 4 replies came out the same" in result.out
    assert result.err.startswith("reply 4 was written with torch 0.")
    entry = recorded("replay", "last", "--json").json["replies"][1]
    assert (entry["first_difference"], entry["got"]) == (2, ids[2])


def test_a_persona_that_has_changed_is_named(recorded: Cli, workspace: Path) -> None:
    (file,) = workspace.glob("vectors/*/personas/sage.safetensors")
    shutil.copyfile(file.with_name("fool.safetensors"), file)
    result = recorded("replay", "last")
    assert (result.status, result.out) == (1, "")
    assert "another file of sage: SHA-256" in result.err and result.err.count("\n") == 1
    file.unlink()
    assert "spoken with sage: " in recorded("replay", "last").err


def test_the_capping_layers_are_those_of_then(recorded: Cli) -> None:
    recorded("config", "set", "steering.capping_layers", "[0]")
    assert recorded("replay", "last").status == 0


def test_another_model_is_named(recorded: Cli, call: Cli, workspace: Path) -> None:
    result = call("--workspace", workspace, "--model", "builtin", "replay", "last")
    assert result.status == 1 and "with the fingerprint" in result.err and result.err.count("\n") == 1


def test_nothing_to_replay(cli: Cli, workspace: Path) -> None:
    log = SessionStore(Workspace(workspace)).create("builtin")
    log.record("message", node=1, parent=None, role="user", text="Hello?")
    log.close()
    result = cli("replay", "last")
    assert (result.status, result.out) == (0, "") and "no replies" in result.err
    assert cli("replay", "nothing").status == 1
