"""Two settings beside each other, on the command line and in lines; another model in the middle of a chat."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import click
import pytest

from persona_tui.chat.chat import Chat
from persona_tui.chat.commands import complete, execute
from persona_tui.chat.replay import replay, stretches
from persona_tui.chat.replies import ChatReply, ReplyRow
from persona_tui.chat.voice import parse_setting, parse_settings, setting_as_text
from persona_tui.cli.compare import side_by_side
from persona_tui.core.errors import ModelLoadError, PersonaNotFoundError, PersonaTuiError
from persona_tui.core.mix import Mix
from persona_tui.model import TokenEvent
from persona_tui.project.models import RecentModels
from persona_tui.project.project import Project

from .conftest import Cli

SAGE = "persona=sage,strength=0.5"


@pytest.fixture
def session(workspace: Path, tiny_model: Path) -> Chat:
    session = Chat.start(Project.open(workspace, model=str(tiny_model)))
    execute(session, "/seed 3")  # A random model says nothing but blanks now and then, which is not kept.
    return session


# The command line -------------------------------------------------------------------------------------------


def test_two_settings_answer_one_prompt_with_one_seed(cli: Cli) -> None:
    found = cli("compare", "Hi", "--a", SAGE, "--b", "persona=none,capping=off", "--seed", "3", "--json").json
    first, second = found["answers"]
    assert found["seed"] == 3 and found["prompt_tokens"] > 0
    assert (first["weights"], first["strength"], first["capping"]) == ({"sage": 1.0}, 0.5, True)
    assert (second["weights"], second["capping"], second["capped_tokens"]) == ({}, False, 0)
    assert 0 < first["tokens"] <= 5
    for answer, other in ((first, second), (second, first)):
        differing = [answer["response"][start:stop] for start, stop in answer["differs"]]
        assert all(words and words == words.strip() for words in differing)
        if not differing:
            assert set(answer["response"].split()) <= set(other["response"].split())


def test_the_same_setting_twice_says_the_same_and_each_what_generate_says(cli: Cli) -> None:
    found = cli("compare", "Hi", "--a", SAGE, "--b", SAGE, "--json").json["answers"]
    assert found[0]["response"] == found[1]["response"] and found[0]["differs"] == found[1]["differs"] == []
    seeded = cli("compare", "Hi", "--a", SAGE, "--seed", "3", "--json").json["answers"]
    assert seeded[1]["response"] == cli("generate", "Hi", "--seed", "3", "--json").json["response"]


def test_without_a_terminal_one_answer_follows_the_other(cli: Cli) -> None:
    out = cli("compare", "Hi", "--a", SAGE).out
    assert out.startswith("A: sage 0.50, capping on\n")
    assert "\n\nB: no persona, capping on\n" in out


@pytest.mark.parametrize(
    ("setting", "problem"),
    [
        ("person=sage", 'Did you mean "persona"'),
        ("sage", "looks like persona=sage"),
        ("strength=loud", "must be a number"),
        ("capping=maybe", '"on" or "off"'),
        ("persona=sagee", 'Did you mean "sage"'),
        ("blend=sage:0.5+sage:1", "twice"),
    ],
)
def test_a_setting_that_is_none_says_what_would_be(cli: Cli, setting: str, problem: str) -> None:
    result = cli("compare", "Hi", "--a", setting)
    assert result.status == 1 and problem in result.err and len(result.err.splitlines()) == 1


def test_what_is_left_out_is_as_before() -> None:
    default = Mix({"fool": 1.0}, 0.4, capping=False)
    assert parse_setting("", default) == default
    blend = parse_setting("blend=sage:0.5+fool:-0.3, capping=on", default)
    assert blend == Mix({"sage": 0.5, "fool": -0.3}, 0.4, capping=True)
    mixes, question = parse_settings("persona=sage vs persona=none What is bread?", default, [])
    assert [mix.weights for mix in mixes] == [{"sage": 1.0}, {}] and question == "What is bread?"
    mixes, question = parse_settings("", Mix(), ["sage"])
    assert [mix.weights for mix in mixes] == [{}, {"sage": 1.0}] and question is None
    assert [mix.capping for mix in parse_settings("", Mix(), [])[0]] == [True, False]


def test_answers_stand_side_by_side_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    answers = [ReplyRow(Mix({"sage": 1.0})), ReplyRow(Mix())]
    lines = side_by_side(answers, 100).splitlines()
    assert lines[0].index("B: no persona") == 51


def test_what_differs_is_coloured_on_a_terminal_and_nowhere_else(monkeypatch: pytest.MonkeyPatch) -> None:
    answers = [ReplyRow(Mix({"sage": 1.0})), ReplyRow(Mix())]
    for row, text in zip(
        answers, ("Bread is an old\tgift. Of the well-known hills!", "Bread is a gift."), strict=True
    ):
        row.events.append(TokenEvent(0, 0, 5, text, {}, 0.0, 0.0, "stop"))
    plain = side_by_side(answers, 72)
    assert plain.endswith("Bread is a gift.") and "\x1b" not in plain
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    monkeypatch.delenv("NO_COLOR", raising=False)
    shown = side_by_side(answers, 72)
    assert "Bread is \x1b[35man\x1b[0m \x1b[35mold\x1b[0m gift. " in shown and "[35mhills!" in shown
    assert "Bread is \x1b[35ma\x1b[0m gift." in shown and "well-" in click.unstyle(shown)
    monkeypatch.setenv("NO_COLOR", "1")
    assert side_by_side(answers, 72) == click.unstyle(shown)


# Slash commands ---------------------------------------------------------------------------------------------


def test_what_is_kept_is_in_the_conversation_with_the_other_beside_it(session: Chat) -> None:
    shown = execute(session, f"/compare {SAGE} vs persona=none Who are you?")
    assert "A: sage 0.50" in shown and "/keep A" in shown
    assert session.conversation.messages() == [], "nothing is said before an answer is kept"
    assert execute(session, "/keep b") == "Kept B. A stays beside it."
    reply = session.conversation.last_reply()
    assert reply is not None and session.conversation.siblings(reply.id) == (1, 2)
    assert [message["role"] for message in session.conversation.messages()] == ["user", "assistant"]
    execute(session, "/compare")
    execute(session, "/keep a")
    reply = session.conversation.last_reply()
    assert reply is not None and session.conversation.siblings(reply.id)[1] == 4
    with pytest.raises(PersonaTuiError, match="nothing to keep yet"):
        execute(session, "/keep a")


def test_what_is_kept_can_be_replayed(session: Chat) -> None:
    execute(session, f"/compare {SAGE} vs persona=fool,strength=-0.5 Who are you?")
    execute(session, "/keep a")
    runs = stretches(session.conversation)
    assert len(runs) == 2
    for run in runs:
        assert replay(session.project.engine, run).equal


def test_what_changed_while_it_was_written_is_replayed_too(session: Chat) -> None:
    conversation, engine = session.conversation, session.project.engine
    mixes = [Mix({"sage": 1.0}, 0.3, capping=False), Mix(capping=False)]
    engine.set_mix(mixes[0])
    comparison = ChatReply.beside(conversation, mixes, "Who are you?", follower=0)
    for event in comparison.write(engine, replace(engine.sampling, seed=3)):
        if (event.row, event.index) == (0, 0):
            engine.set_mix(replace(mixes[0], strength=0.8))
    assert comparison.rows[0].mix.strength == 0.8
    kept = comparison.keep(0)
    assert comparison.nodes[0] == kept == conversation.path()[-1].id
    assert [change.index for change in conversation.node(kept).runs[0].changes] == [1]
    for run in stretches(conversation):
        assert run.settings["row_changes"][1] == [] and replay(engine, run).equal


@pytest.mark.parametrize("text", ["persona=none", SAGE, "blend=sage:0.5+fool:-0.3,strength=0.2,capping=off"])
def test_a_setting_is_written_as_it_is_typed(text: str) -> None:
    mix = parse_setting(text, Mix())
    assert parse_setting(setting_as_text(mix), Mix({"fool": 1.0}, 0.9, capping=False)) == mix


def test_what_cannot_be_compared_or_kept_is_an_error(session: Chat) -> None:
    with pytest.raises(PersonaTuiError, match="nothing to answer"):
        execute(session, "/compare")
    with pytest.raises(PersonaNotFoundError):
        execute(session, "/compare persona=sagee vs persona=none Hi")
    execute(session, "/compare Hi")
    for letter in ("c", "", "ab"):
        with pytest.raises(PersonaTuiError, match="/keep A"):
            execute(session, f"/keep {letter}")
    assert session.conversation.messages() == [], "nothing was kept"


def test_another_model_is_talked_to_and_a_bad_one_changes_nothing(session: Chat, tiny_model: Path) -> None:
    session.change_mix(weights={"sage": 1.0})
    with pytest.raises(ModelLoadError):
        execute(session, "/model ./nowhere")
    assert execute(session, "/model").startswith(str(tiny_model))
    assert session.mix.weights == {"sage": 1.0}
    assert "Now talking to builtin" in execute(session, "/model builtin")
    assert session.project.engine.model.name == "builtin"
    assert session.mix.weights == {}, "the tiny model has no sage in this workspace"
    assert RecentModels(session.project.workspace).list()[0].name == "builtin"
    assert complete(session, "/model b") == ["/model builtin"]
