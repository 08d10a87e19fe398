"""A/B: the chat is split, one message is answered with two settings side by side, and one answer is kept."""

from __future__ import annotations

from pathlib import Path

import pytest
from textual.pilot import Pilot

from persona_tui.chat import SessionStore
from persona_tui.chat.replay import replay, stretches
from persona_tui.chat.replies import ReplyRow
from persona_tui.core.mix import Mix
from persona_tui.core.workspace import Workspace
from persona_tui.tui.app import PersonaApp
from persona_tui.tui.blocks import MessageBlock, Ruler
from persona_tui.tui.screens.compare import SettingScreen
from persona_tui.tui.screens.confirm import ConfirmScreen

from .driving import errors, never_ending, notes, press, reply, running, say, until
from .test_guard import tune

pytestmark = pytest.mark.slow

SIZES = [(80, 24), (120, 40), (200, 60)]
SAGE = Mix({"sage": 1.0}, 0.3)


def answers(app: PersonaApp) -> list[ReplyRow]:
    return list(app.replies.rows)


def heads(app: PersonaApp) -> list[str]:
    return [head.render().plain for head in app.main.split.heads]


def shown(app: PersonaApp) -> list[list[MessageBlock]]:
    return [log.messages for log in app.main.split.logs]


async def answered(pilot: Pilot[None], app: PersonaApp, text: str) -> None:
    """Split the chat if it is not, ask, and wait for both answers."""
    if not app.beside.active:
        await press(pilot, "f6")
    await say(pilot, text)
    await until(pilot, lambda: app.replies.pending, f"two answers to {text}")


async def under_way(pilot: Pilot[None], app: PersonaApp, tokens: int = 3) -> None:
    """Wait until both answers have a few tokens."""
    await until(
        pilot,
        lambda: len(answers(app)) == 2 and all(answer.tokens > tokens for answer in answers(app)),
        "tokens on both sides",
    )


@pytest.mark.parametrize("size", SIZES)
async def test_two_answers_stand_side_by_side_and_one_is_kept(workspace: Path, size: tuple[int, int]) -> None:
    async with running(workspace, size, SAGE) as (app, pilot):
        await reply(pilot, app, "What is bread?")
        await press(pilot, "f6")
        left, right = app.main.split.logs
        await until(pilot, lambda: right.region.width > 25, "two sides")
        assert left.region.width - right.region.width in (0, 1, 2)
        assert heads(app)[0].startswith("A  sage 0.30, capping on")
        assert heads(app)[1].startswith("B  no persona, capping on")
        await answered(pilot, app, "Who are you?")
        texts = [answer.text for answer in answers(app)]
        assert texts[0] != texts[1]
        assert [blocks[-1].source for blocks in shown(app)] == texts
        assert [blocks[-2].source for blocks in shown(app)] == ["Who are you?"] * 2
        assert len(shown(app)[0]) == 4, "what was said before stays on the left"
        for head, answer in zip(heads(app), answers(app), strict=True):
            assert f"{answer.tokens} tokens" in head and "repetition" in head and "capped" in head
            assert "repetition" in head or size[0] < 200, "where there is room"
        assert len(app.chat.conversation) == 2, "neither is in the conversation yet"
        await press(pilot, "alt+up", "alt+right")
        assert app.main.chat.marked is None, "what was marked is not there any more"
        assert not app.beside.active and not app.main.split.logs[1].parent.display
        kept = app.chat.conversation.last_reply()
        assert (
            kept is not None and kept.text == texts[1] and app.chat.conversation.siblings(kept.id) == (1, 2)
        )
        assert [block.source for block in app.main.chat.messages][2:] == ["Who are you?", texts[1]]
        await press(pilot, "alt+up", "left")
        assert app.main.chat.messages[-1].source == texts[0], "the other one stays beside it"


async def test_what_was_kept_is_saved_and_can_be_written_again(workspace: Path) -> None:
    async with running(workspace, mix=SAGE) as (app, pilot):
        never_ending(app)
        await press(pilot, "f6")
        await say(pilot, "Who are you?")
        await under_way(pilot, app)
        await press(pilot, "ctrl+up", "ctrl+up")
        first = answers(app)[0]
        await until(pilot, lambda: first.mix.strength == 0.4 and first.tokens > 20, "A follows the faders")
        await press(pilot, "escape")
        await until(pilot, lambda: app.replies.pending, "stopped")
        assert first.changes[-1].mix["strength"] == 0.4 and not answers(app)[1].changes
        assert heads(app)[0].startswith("A  sage 0.40")
        await press(pilot, "alt+left")
        session, engine = app.chat.session_id, app.project.engine
        assert session is not None
        app.chat.close()
        conversation, _ = SessionStore(Workspace.find(workspace)).load(session)
        runs = stretches(conversation)
        assert [run.settings["row"] for run in runs] == [1, 0] and len(runs[0].settings["rows"]) == 2
        for run in runs:
            assert replay(engine, run).equal
        rulers = [piece for piece in app.main.chat.messages[-1]._pieces if isinstance(piece, Ruler)]
        assert rulers and "strength 0.30 →" in rulers[0].text


async def test_the_faders_act_on_a_while_it_is_written(workspace: Path) -> None:
    async with running(workspace, (120, 40), SAGE) as (app, pilot):
        never_ending(app)
        await press(pilot, "f6")
        await say(pilot, "Tell me a long story")
        await under_way(pilot, app)
        await until(pilot, lambda: len(app.main.trace.readings) > 3, "the trace is A's")
        assert app.busy
        before = answers(app)[1].mix
        await press(pilot, "ctrl+down")
        await until(pilot, lambda: answers(app)[0].mix.strength == 0.25, "A follows")
        assert answers(app)[1].mix == before
        await say(pilot, "impatient")
        assert app.main.prompt.text == "impatient", "nothing is sent meanwhile"
        await press(pilot, "f5", "f6")
        assert app.screen is app.main
        await press(pilot, "escape")
        await until(pilot, lambda: not app.busy, "both are stopped")
        assert [answer.finish for answer in answers(app)] == ["cancelled"] * 2
        texts = [answer.text for answer in answers(app)]
        assert all(texts) and [blocks[-1].source for blocks in shown(app)] == texts
        assert all("stopped" in blocks[-1].heading for blocks in shown(app))
        await press(pilot, "alt+left")
        assert app.main.chat.messages[-1].source == texts[0]
        assert "stopped" in app.main.chat.messages[-1].heading


async def test_the_setting_of_b_is_typed_or_chosen(workspace: Path) -> None:
    async with running(workspace, mix=SAGE) as (app, pilot):
        await press(pilot, "f6", "f6")
        assert isinstance(app.screen, SettingScreen)
        field = app.screen.query_one("#setting")
        assert field.value == "persona=none,strength=0.3,capping=on,plausibility=0"
        field.value = "persona=nobody_at_all"
        await press(pilot, "enter")
        assert isinstance(app.screen, SettingScreen) and "nobody_at_all" in str(
            app.screen.query_one("#advice").render()
        )
        field.value = "persona=trickster,strength=0.2"
        await press(pilot, "enter")
        assert app.screen is app.main and heads(app)[1].startswith("B  trickster 0.20, capping on")
        await press(pilot, "f6", "tab", "left", "tab", "right", "tab", "right")
        chosen = app.screen.query_one("#setting").value
        assert chosen == "persona=sage,strength=0.25,capping=off,plausibility=0"
        await press(pilot, "ctrl+s")
        assert heads(app)[1].startswith("B  sage 0.25, capping off")
        await press(pilot, "f6", "escape")
        assert app.beside.active, "escape leaves the dialog only"
        await press(pilot, "escape")
        assert not app.beside.active


async def test_a_blend_stays_one_in_the_dialog(workspace: Path) -> None:
    async with running(workspace, mix=SAGE) as (app, pilot):
        await press(pilot, "f6", "f6")
        field = app.screen.query_one("#setting")
        field.value = "blend=sage:0.5+trickster:0.5"
        await pilot.pause()
        assert app.screen.query_one("#setting-persona").value == "a blend"
        await press(pilot, "enter")
        assert heads(app)[1].startswith("B  sage:0.5,tr") and "0.30, capping on" in heads(app)[1]


async def test_leaving_asks_before_answers_are_lost(workspace: Path) -> None:
    async with running(workspace, mix=SAGE) as (app, pilot):
        await answered(pilot, app, "Who are you?")
        await say(pilot, "And then?")
        assert app.main.prompt.text == "And then?" and app.replies.pending, "one has to be chosen first"
        app.main.prompt.replace_text("")
        await say(pilot, "/new")
        assert any("keep one of the two" in text for text in errors(app)) and app.replies.pending
        await press(pilot, "escape", "enter")
        assert app.replies.pending, "no has the focus"
        await press(pilot, "escape")
        assert isinstance(app.screen, ConfirmScreen)
        await press(pilot, "right", "enter")
        await until(pilot, lambda: not app.beside.active, "left")
        assert app.main.chat.messages == [] and len(app.chat.conversation) == 0
        await reply(pilot, app, "And then?")
        assert len(app.chat.conversation) == 2


async def test_commands_between_answers_and_keeping_change_nothing_of_them(workspace: Path) -> None:
    async with running(workspace, mix=SAGE) as (app, pilot):
        await answered(pilot, app, "Who are you?")
        texts = [answer.text for answer in answers(app)]
        await say(pilot, "/strength 0.45")
        assert [blocks[-1].source for blocks in shown(app)] == texts
        assert heads(app)[0].startswith("A  sage 0.30"), "it says what was spoken with"
        await say(pilot, "/keep a")
        assert notes(app)[-1].startswith("Kept A.") and app.main.chat.messages[-1].source == texts[0]
        assert app.chat.conversation.mix is not None
        assert app.chat.conversation.mix["strength"] == 0.45, "what the faders say now is noted"


async def test_slash_commands_compare_and_keep(workspace: Path) -> None:
    async with running(workspace, mix=SAGE) as (app, pilot):
        await say(pilot, "/keep a")
        assert "nothing to keep yet" in errors(app)[-1]
        await say(pilot, "/compare")
        assert "nothing to answer" in errors(app)[-1].casefold() and not app.beside.active
        await say(pilot, "/compare persona=sagee vs persona=none Who are you?")
        assert 'Did you mean "sage"' in errors(app)[-1] and not app.beside.active
        await say(pilot, "/compare persona=trickster,strength=0.4 vs persona=none Who are you?")
        await until(pilot, lambda: app.replies.pending, "two answers")
        assert heads(app)[0].startswith("A  trickster 0.40")
        await say(pilot, "/keep b")
        assert len(app.chat.conversation) == 3 and not app.beside.active
        await say(pilot, "/compare")
        await until(pilot, lambda: app.replies.pending, "the same message once more")
        assert shown(app)[1][0].source == "Who are you?"
        await press(pilot, "alt+left")
        last = app.chat.conversation.last_reply()
        assert last is not None and app.chat.conversation.siblings(last.id)[1] == 4


async def test_again_answers_once_more_with_another_setting(workspace: Path) -> None:
    async with running(workspace, mix=SAGE) as (app, pilot):
        await answered(pilot, app, "Who are you?")
        await press(pilot, "f6")
        app.screen.query_one("#setting").value = "persona=trickster"
        await press(pilot, "enter", "f5")
        await until(pilot, lambda: app.replies.pending and answers(app)[1].mix.label == "trickster", "again")
        assert [len(blocks) for blocks in shown(app)] == [2, 2]


async def test_a_guard_judges_both_answers(workspace: Path) -> None:
    async with running(workspace, mix=SAGE) as (app, pilot):
        await say(pilot, "/guard warn")
        assert app.chat.guard.mode == "warn"
        await answered(pilot, app, "Who are you?")
        assert all("message" in answer.verdicts for answer in answers(app))
        await press(pilot, "alt+left")
        kept = app.chat.conversation.last_reply()
        assert kept is not None and "message" in kept.runs[0].stats["guard"]


async def test_a_message_that_is_refused_has_no_answers(workspace: Path) -> None:
    tune(workspace, 99, 0)
    async with running(workspace, mix=SAGE) as (app, pilot):
        await say(pilot, "/guard refuse")
        await press(pilot, "f6")
        await say(pilot, "Hello")
        await until(pilot, lambda: any("Not answered" in text for text in errors(app)), "the reason")
        assert app.beside.active and not app.replies.pending and app.main.chat.messages == []


async def test_a_policy_judges_both_answers(workspace: Path) -> None:
    policy = workspace / "strict.yaml"
    policy.write_text(
        "name: strict\ntraits:\n  harmful_validation: {max: -9, reason: too keen, everywhere: true}\n"
    )
    async with running(workspace, (200, 60), SAGE) as (app, pilot):
        await say(pilot, f"/policy {policy}")
        await answered(pilot, app, "Who are you?")
        assert all("! harmful_validation" in blocks[-1].heading for blocks in shown(app))
        await press(pilot, "alt+left")
        assert "! harmful_validation" in app.main.chat.messages[-1].heading


async def test_the_layout_survives_another_size(workspace: Path) -> None:
    async with running(workspace, (200, 60), SAGE) as (app, pilot):
        await answered(pilot, app, "Who are you?")
        await pilot.resize_terminal(80, 24)
        await until(pilot, lambda: app.main.split.logs[1].region.right == 80, "narrow")
        assert all(log.region.width >= 39 for log in app.main.split.logs)
