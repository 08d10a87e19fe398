"""Replies that come out again, token for token, from what the transcript has."""

from __future__ import annotations

import shutil
from datetime import date
from pathlib import Path

import pytest

from persona_tui.chat import Conversation, SessionStore
from persona_tui.chat.chat import Chat
from persona_tui.chat.commands import execute
from persona_tui.chat.replay import Stretch, check_same, replay, stretches
from persona_tui.core.errors import SessionError
from persona_tui.project.project import Project

pytestmark = pytest.mark.slow


def saved(session: Chat) -> Conversation:
    """The conversation as its file has it."""
    id = str(session.session_id)
    session.close()
    return SessionStore(session.project.workspace).load(id)[0]


def spoken(session: Chat, persona: str, *strengths: float) -> None:
    """A turn in which the strength changes after every fourth token."""
    turn = session.events(session.say("What is a good life?"))
    execute(session, f"/persona {persona}")
    for strength in strengths:
        for _ in range(4):
            next(turn)
        execute(session, f"/strength {strength}")
    list(turn)


def test_a_session_comes_out_the_same(session: Chat, persona: str) -> None:
    session.sampling_changes["temperature"] = 1.5
    spoken(session, persona, 0.6, 1.5, -0.4)
    execute(session, "/safety off")
    execute(session, "/system Be brief.")
    list(session.events(session.say("Go on.")))
    execute(session, "/max-tokens 5")
    execute(session, "/regenerate")
    execute(session, "/continue")
    execute(session, "/edit #1 Why?")
    execute(session, "/temperature 0")
    execute(session, "/regenerate")
    conversation = saved(session)
    recorded = stretches(conversation)
    assert len(recorded) == 6
    assert [change.index for change in recorded[0].recorded.changes] == [4, 8, 12]
    results = [replay(session.project.engine, stretch) for stretch in recorded]
    assert [result.equal for result in results] == [True] * 6
    assert [result.tokens for result in results] == [len(stretch.tokens) for stretch in recorded]


def test_a_guided_session_comes_out_the_same(session: Chat, persona: str) -> None:
    """With the guide on from the beginning, switched on and off in a reply, and of another reply at 0."""
    turn = session.events(session.say("What is a good life?"))
    execute(session, f"/persona {persona}")
    execute(session, "/strength 2")
    for value in ("0.3", "off", "0.05"):
        for _ in range(4):
            next(turn)
        assert "guide is" in (execute(session, f"/plausibility {value}") or "")
    events = list(turn)
    assert all(event.nats is not None for event in events)
    list(session.events(session.say("Go on.")))
    execute(session, "/strength 0")
    execute(session, "/regenerate")
    recorded = stretches(saved(session))
    assert [change.mix["plausibility"] for change in recorded[0].recorded.changes] == [0.3, 0.0, 0.05]
    assert [stretch.settings["mix"]["plausibility"] for stretch in recorded[1:]] == [0.05, 0.05]
    assert ["nats_from_plain" in stretch.recorded.stats for stretch in recorded] == [True, True, False]
    assert all(replay(session.project.engine, stretch).equal for stretch in recorded)


def test_it_is_the_changes_that_matter(session: Chat, persona: str) -> None:
    session.sampling_changes = {"temperature": 0.0}
    spoken(session, persona, 3.0)
    (stretch,) = stretches(saved(session))
    engine = session.project.engine
    assert replay(engine, stretch).equal
    late = stretch.recorded.changes.pop()
    result = replay(engine, stretch)
    assert not result.equal and result.tokens >= late.index
    assert result.expected == stretch.tokens[result.tokens] != result.got


def test_the_present_mix_and_what_is_loaded_stay(project: Project, session: Chat, persona: str) -> None:
    spoken(session, persona, 0.5)
    project.personas.unload(persona)
    mix = project.engine.mix
    (stretch,) = stretches(saved(session))
    assert replay(project.engine, stretch).equal
    assert project.engine.mix == mix and persona not in project.personas.list_loaded()


def test_the_floor_is_where_it_was(session: Chat, persona: str) -> None:
    session.project.engine.set_safety_floor(90)
    spoken(session, persona, 0.5)
    session.project.engine.set_safety_floor(25)
    (stretch,) = stretches(saved(session))
    assert stretch.settings["mix"]["floor"]["percentile"] == 90
    assert replay(session.project.engine, stretch).equal


def test_a_reply_that_was_one_of_two_rows(session: Chat, persona: str) -> None:
    """As an A/B comparison records it: the whole batch is written again."""
    from persona_tui.chat.prepare import prepare
    from persona_tui.core.mix import Mix

    engine, conversation = session.project.engine, session.conversation
    sampling = type(engine.sampling)(24, 1.5, 1.0, 7)
    mixes = [Mix({persona: 1.0}, 0.5), Mix()]
    session._open_log()
    conversation.add_user("Who are you?")
    prepared = prepare(engine, conversation.messages(), None, sampling)
    rows = [engine.describe(mix) for mix in mixes]
    replies = [
        conversation.regenerate(1, {**prepared.settings, "mix": rows[row], "rows": rows, "row": row})
        for row in range(2)
    ]
    for event in engine.stream_rows(prepared.messages, mixes, sampling=sampling):
        conversation.extend(replies[event.row], event.text, event.token_id)
    for reply in replies:
        conversation.finish(reply)
    first, second = stretches(saved(session))
    assert first.tokens != second.tokens
    assert replay(engine, first).equal and replay(engine, second).equal


def test_another_day_changes_nothing(session: Chat, persona: str) -> None:
    """The date that a template writes is the day on which a conversation begins, and stays with it."""
    from persona_tui.model.text import Rendering

    model = session.project.engine.model
    plain, before = model.tokenizer.chat_template, model.rendering
    model.tokenizer.chat_template = "Today is {{ strftime_now('%d %b %Y') }}.\n" + plain
    try:
        model.rendering = Rendering("2024-02-29T12:00:00")  # the model has been loaded for long
        spoken(session, persona, 0.5)
        reply = session.conversation.path()[-1]
        reply.runs[0].settings["rendering"] = {"date": "2031-12-01T12:00:00"}
        list(session.events(session.say("And tomorrow?")))  # the conversation goes on with its own date
        first, second = stretches(saved(session))
        assert first.settings["rendering"]["date"][:10] == date.today().isoformat()
        assert replay(session.project.engine, first).equal
        assert second.settings["rendering"] == {"date": "2031-12-01T12:00:00"}
        assert replay(session.project.engine, second).equal
        assert model.rendering.date == "2024-02-29T12:00:00"
        second.settings["rendering"] = {"date": "1999-01-01T12:00:00"}
        assert not replay(session.project.engine, second).equal
    finally:
        model.tokenizer.chat_template, model.rendering = plain, before


# --- what cannot come out the same ---


@pytest.fixture
def stretch(session: Chat, persona: str) -> Stretch:
    session.sampling_changes["max_new_tokens"] = 4
    spoken(session, persona)
    return stretches(saved(session))[0]


def test_another_model_is_an_error(project: Project, stretch: Stretch) -> None:
    stretch.settings["fingerprint"] = "0" * 64
    with pytest.raises(
        SessionError, match="reply 2 was written by builtin with the fingerprint 000000000000"
    ):
        check_same(project.engine, stretch)


def test_a_copy_of_the_model_is_another_model(project: Project, stretch: Stretch) -> None:
    """One that is near enough for its vectors: quantised, or fine-tuned in matrices that are in no sample."""
    plain, _, weights = project.model.fingerprint.partition(".")
    assert weights
    for copy in (
        {"fingerprint": plain},
        {"fingerprint": f"{plain}.{'0' * 16}"},
        {"quantization": "4bit"},
    ):
        stretch.settings.update({"fingerprint": project.model.fingerprint, "quantization": "none"} | copy)
        with pytest.raises(SessionError, match=rf"builtin here has {plain[:12]}\.{weights[:8]}$"):
            check_same(project.engine, stretch)


def test_other_vectors_are_an_error_that_names_them(project: Project, stretch: Stretch, persona: str) -> None:
    mix = (stretch.recorded.changes or [stretch.recorded])[-1].mix or {}
    mix["vectors"][persona] = "0" * 64
    with pytest.raises(SessionError, match=f"another file of {persona}: SHA-256 000000000000"):
        replay(project.engine, stretch)
    mix["vectors"] = {"ghost": "0" * 64}
    with pytest.raises(SessionError, match="spoken with ghost: "):
        replay(project.engine, stretch)


def test_a_run_without_its_settings_is_an_error(project: Project, stretch: Stretch) -> None:
    del stretch.settings["sampling"]
    with pytest.raises(SessionError, match="without its sampling"):
        replay(project.engine, stretch)


def test_other_capping_layers_are_an_error(project: Project, stretch: Stretch) -> None:
    for mix in (stretch.settings["mix"], *(change.mix for change in stretch.recorded.changes)):
        mix["floor"]["layers"] = [0]
    with pytest.raises(SessionError, match=r"capped at layers \[0\]"):
        replay(project.engine, stretch)


def test_the_hash_is_of_the_file_as_it_was_read(project: Project, persona: str, tmp_path: Path) -> None:
    from persona_tui.vectors.manager import PersonaManager

    folder = Path(shutil.copytree(project.personas.vectors_dir, tmp_path / "vectors"))
    manager = PersonaManager(folder)
    before = manager.digest(persona)
    path = manager.path_of(persona)
    shutil.copyfile(next(each for each in path.parent.glob("*.safetensors") if each != path), path)
    assert manager.digest(persona) == before
    assert PersonaManager(folder).digest(persona) != before
