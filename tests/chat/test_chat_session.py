"""A chat with the tiny model: what is remembered, what is saved, and how it is taken up again."""

from __future__ import annotations

from collections.abc import Generator
from pathlib import Path

import pytest

from persona_tui.chat import SessionStore
from persona_tui.chat.chat import Chat
from persona_tui.chat.commands import execute
from persona_tui.chat.replay import replay, stretches
from persona_tui.core.errors import GenerationError, PersonaTuiError, SessionError, WorkspaceError
from persona_tui.model import TokenEvent
from persona_tui.project.project import Project


def take(turn: Generator[TokenEvent, None, None], tokens: int) -> str:
    """The text of a turn that is given up after so many tokens."""
    said = "".join(next(turn).text for _ in range(tokens))
    turn.close()
    return said


# --- turns ---


def test_a_turn_is_remembered(session: Chat) -> None:
    first = "".join(event.text for event in session.events(session.say("Hello?")))
    list(session.events(session.say("And now?")))
    assert [message["role"] for message in session.conversation.messages()] == ["user", "assistant"] * 2
    assert session.conversation.messages()[1]["content"] == first.strip()
    node = session.conversation.path()[1]
    assert node.runs[0].stats["tokens"] == len(node.token_ids) <= 24
    assert node.runs[0].stats["prompt_tokens"] > 0


def test_a_stopped_turn_keeps_what_was_said(session: Chat) -> None:
    said = take(session.events(session.say("Hello?")), 6)
    assert session.conversation.messages()[1]["content"] == said.strip()
    for count, _ in enumerate(session.events(session.say("And now?"))):
        if count == 3:
            session.stop()
    assert [node.finish for node in session.conversation.path() if node.runs] == ["cancelled"] * 2


def test_a_turn_that_never_began_leaves_no_trace(session: Chat) -> None:
    reply = session.say("Hello?")
    session.stop()
    assert "".join(event.text for event in session.events(reply)) == "" and reply.taken_back
    with pytest.raises(GenerationError):
        list(session.events(session.say("word " * 5000)))
    assert session.conversation.messages() == [] and len(session.conversation) == 0


@pytest.mark.slow
def test_the_oldest_turns_give_way(session: Chat) -> None:
    session.sampling_changes["max_new_tokens"] = 2
    context = session.project.engine.model.context_length or 0
    for _ in range(3):
        list(session.events(session.say("word " * int(0.4 * context))))
    replies = [node for node in session.conversation.path() if node.runs]
    assert [node.runs[0].settings["forgotten"] for node in replies] == [0, 0, 2]
    assert len(session.conversation.messages()) == 6
    assert replay(session.project.engine, stretches(session.conversation)[-1]).equal


def test_the_mix_reaches_a_reply_that_is_being_written(session: Chat, persona: str) -> None:
    turn = session.events(session.say("Hello?"))
    for _ in range(3):
        next(turn)
    execute(session, f"/persona {persona}")
    next(turn)
    turn.close()
    (change,) = session.conversation.path()[1].runs[0].changes
    assert change.index == 3 and change.mix["weights"] == {persona: 1.0}


# --- branches, by slash command ---


def test_regenerate_edit_branch_and_continue(session: Chat) -> None:
    list(session.events(session.say("Hello?")))
    execute(session, "/regenerate")
    reply = session.conversation.path()[1]
    assert session.conversation.siblings(reply.id) == (1, 2)
    execute(session, "/max-tokens 3")
    before = reply.text
    execute(session, "/continue")
    assert reply.text.startswith(before) and len(reply.runs) == 2
    execute(session, "/edit Good evening.")
    assert (
        session.conversation.messages()[0]["content"] == "Good evening."
        and len(session.conversation.messages()) == 2
    )
    assert "(2 of 2): Good evening." in execute(session, "/branch")
    shown = execute(session, "/branch prev")
    assert shown.startswith("#1 you (1 of 2): Hello?")
    execute(session, "/branch #2")
    assert session.conversation.path()[-1].id == 2
    assert execute(session, "/edit #2 No.") == "Edited #2."
    assert session.conversation.messages()[-1] == {"role": "assistant", "content": "No."}


@pytest.mark.parametrize(
    "line",
    [
        "/regenerate",
        "/continue",
        "/edit",
        "/edit Hello.",
        "/edit #7 x",
        "/branch next",
        "/branch #7",
        "/resume",
        "/resume x",
        "/export",
        "/top-p 2",
        "/top-p x",
        "/max-tokens 0",
        "/max-tokens 1.5",
    ],
)
def test_mistakes_are_one_line_and_change_nothing(session: Chat, line: str) -> None:
    with pytest.raises(PersonaTuiError) as caught:
        execute(session, line)
    assert str(caught.value) and "\n" not in str(caught.value)
    assert len(session.conversation) == 0
    assert execute(session, "/branch") == "Nothing has been said yet."


# --- sessions ---


def test_a_session_is_taken_up_as_it_was_left(
    project: Project, session: Chat, persona: str, tmp_path: Path
) -> None:
    execute(session, "/system Be brief.")
    execute(session, f"/persona {persona}")
    execute(session, "/strength 0.25")
    assert session.session_id is None
    list(session.events(session.say("Hello? Turquoise.")))
    execute(session, "/rename Colours")
    execute(session, "/strength 0.75")  # nothing is said with it
    id, said = str(session.session_id), session.conversation.messages()
    assert f"{id}  Colours (2)" in execute(session, "/sessions")
    assert f"{id}  Hello? Turquoise." in execute(session, "/sessions turquoise")
    assert "this conversation" in execute(session, f"/resume {id}")
    assert execute(session, "/new") == "A new conversation." and session.conversation.messages() == []

    other = Chat.start(project)
    assert execute(other, "/resume colours").startswith("Resumed: Colours.")
    assert (other.conversation.messages(), other.system) == (said, "Be brief.")
    assert other.mix.weights == {persona: 1.0} and other.mix.strength == 0.75
    assert other.mix.capping_axis is None and other.mix.percentile is None  # as the settings say, still
    list(other.events(other.say("Again?")))
    with pytest.raises(SessionError, match="is open"):
        execute(session, f"/resume {id}")
    target = tmp_path / "colours.md"
    execute(other, f"/export {target}")
    text = target.read_text(encoding="utf-8")
    assert text.startswith("# Colours") and f"{persona} 0.25" in text and f"{persona} 0.75" in text
    with pytest.raises(WorkspaceError, match="exists"):
        execute(other, f"/export {target}")
    other.close()
    conversation, events = SessionStore(project.workspace).load(id)
    assert conversation.messages() == other.conversation.messages()
    kinds = [event.kind for event in events]
    assert kinds.count("resumed") == 1 and kinds.count("end") == 2


def test_what_is_not_to_be_saved_is_not(project: Project) -> None:
    before = len(SessionStore(project.workspace).list())
    session = Chat.start(project, saves=False)
    session.sampling_changes["max_new_tokens"] = 2
    list(session.events(session.say("Hello?")))
    execute(session, "/regenerate")
    assert session.session_id is None and len(SessionStore(project.workspace).list()) == before


def test_personas_are_written_down(project: Project, session: Chat, persona: str) -> None:
    session.sampling_changes["max_new_tokens"] = 2
    project.personas.unload(persona)
    list(session.events(session.say("Hello?")))
    execute(session, f"/load {persona}")
    execute(session, f"/unload {persona}")
    id = str(session.session_id)
    session.close()
    told = [event.fields for event in SessionStore(project.workspace).load(id)[1] if event.kind == "persona"]
    assert [(each["action"], each["name"]) for each in told] == [("loaded", persona), ("unloaded", persona)]


def test_a_session_of_another_model_and_of_a_persona_that_is_gone(project: Project) -> None:
    log = SessionStore(project.workspace).create("some/model", "f00")
    log.record("message", node=1, parent=None, role="user", text="Hello?")
    log.record("reply", node=2, parent=1, settings={"mix": {"weights": {"ghost": 1.0}, "strength": 0.4}})
    log.close()
    session = Chat.start(project)
    shown = execute(session, f"/resume {log.id}")
    assert "gone: ghost" in shown and "started with some/model; this is builtin" in shown
    assert session.mix.weights == {} and session.mix.strength == 0.4
    session.close()
