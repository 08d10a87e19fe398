"""The guard and policies in the app: badges, refusals, and what a session keeps of them."""

from __future__ import annotations

import shlex
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from persona_tui.chat.chat import Chat
from persona_tui.chat.commands import execute
from persona_tui.monitors.monitor import SelfMonitor
from persona_tui.monitors.second_opinion import NAMED_BY
from persona_tui.project.project import Project
from persona_tui.tui.app import PersonaApp

from .driving import errors, never_ending, notes, press, reply, running, say, until

pytestmark = pytest.mark.slow

ALWAYS, NEVER = 1e9, -1e9  # thresholds: everything is dangerous, nothing is
QUESTION = "How do I bake bread?"


def tune(workspace: Path, message: float, answer: float) -> None:
    """Give the workspace's monitor other thresholds."""
    monitors = Project.open(workspace).monitors
    monitor = SelfMonitor.load(monitors.path_of("default"))
    monitor = monitor.with_method(monitor.method, message)
    monitors.save(replace(monitor, reply=replace(monitor.reply, threshold=answer)))


def headings(app: PersonaApp) -> list[str]:
    return [block.heading for block in app.main.chat.messages]


def shown(app: PersonaApp) -> str:
    """Return everything that the chat shows."""
    return "\n".join(line.plain for block in app.main.chat.blocks for line in block.lines(200))


def status(app: PersonaApp) -> str:
    return app.main.status.render().plain


async def test_messages_and_replies_get_badges_and_keep_them(workspace: Path) -> None:
    tune(workspace, NEVER, ALWAYS)
    async with running(workspace, (120, 40)) as (app, pilot):
        await reply(pilot, app, "Hello")
        assert "safe" not in "".join(headings(app)), "nothing is judged unasked"
        await say(pilot, "/guard warn")
        assert "guard warn" in status(app)
        await reply(pilot, app, QUESTION)
        said, answered = headings(app)[2:]
        assert "✓ safe" in said and "✗ dangerous" in answered
        assert not errors(app) and app.main.chat.messages[3].source.strip()
        session = app.chat.session_id
    async with running(workspace, (120, 40), resume=session) as (app, pilot):
        await until(pilot, lambda: len(app.main.chat.messages) == 4, "the session")
        said, answered = headings(app)[2:]
        assert "✓ safe" in said and "✗ dangerous" in answered


async def test_a_dangerous_message_is_not_answered(workspace: Path) -> None:
    tune(workspace, ALWAYS, NEVER)
    async with running(workspace) as (app, pilot):
        await say(pilot, "/guard refuse")
        await reply(pilot, app, QUESTION)
        assert "✗ dangerous" in headings(app)[0] and "refused" in headings(app)[1]
        assert "Not answered: the message scored" in shown(app)
        assert app.main.chat.messages[1].source == "" and not errors(app)
        assert "The reply is empty." not in notes(app)
        session = app.chat.session_id
        await say(pilot, "/guard off")
        assert "guard" not in status(app)
        await reply(pilot, app, "Hello")
        assert app.replies.last is not None and app.replies.last.finish == "stop"
    async with running(workspace, resume=session) as (app, pilot):
        await until(pilot, lambda: len(app.main.chat.messages) == 4, "the session")
        assert "Not answered: the message scored" in shown(app)


async def test_a_reply_that_turns_dangerous_is_stopped(workspace: Path) -> None:
    tune(workspace, NEVER, ALWAYS)
    async with running(workspace) as (app, pilot):
        never_ending(app)
        await say(pilot, "/guard refuse")
        await reply(pilot, app, QUESTION)
        turn = app.replies.last
        assert turn is not None and turn.finish == "refused" and 0 < turn.count < 20
        assert "refused" in headings(app)[1] and "✗ dangerous" in headings(app)[1]
        assert "Stopped: the reply scored" in shown(app)


async def test_what_the_validator_does_not_pass_is_never_shown(
    workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    says = 'print(\'{"safe": false, "reason": "it is about rain."}\')'
    monkeypatch.setenv(NAMED_BY, shlex.join([sys.executable, "-c", says]))
    tune(workspace, NEVER, NEVER)
    async with running(workspace, (120, 40)) as (app, pilot):
        await say(pilot, "/guard refuse")
        await say(pilot, QUESTION)
        await until(pilot, lambda: "it is about rain" in shown(app), "why it was stopped")
        (node,) = [each for each in app.chat.conversation.path() if each.role == "assistant"]
        assert node.finish == "refused" and not node.text.strip()


async def test_without_a_monitor_the_guard_stays_off(workspace: Path) -> None:
    (workspace / "vectors" / "builtin" / "monitors" / "default.safetensors").unlink()
    async with running(workspace) as (app, pilot):
        await say(pilot, "/guard warn")
        await until(pilot, lambda: bool(errors(app)), "an error")
        assert "Monitors (f11)" in errors(app)[0] and "guard" not in status(app)


async def test_breaches_of_a_policy_are_badges(workspace: Path) -> None:
    policy = workspace / "strict.yaml"
    policy.write_text(
        "name: strict\ntraits:\n  harmful_validation: {max: -9, reason: too keen, everywhere: true}\n"
    )
    async with running(workspace, (120, 40)) as (app, pilot):
        await say(pilot, f"/policy {policy}")
        assert "policy" in status(app)
        assert "trait:harmful_validation" in app.project.personas.list_loaded()
        await reply(pilot, app, "Tell me about the sea")
        assert "! harmful_validation" in headings(app)[1] and "> -9.00" in headings(app)[1]
        session = app.chat.session_id
        await say(pilot, "/policy off")
        assert "policy" not in status(app)
        await reply(pilot, app, "Hello")
        assert "harmful_validation" not in headings(app)[3]
    async with running(workspace, resume=session) as (app, pilot):
        await until(pilot, lambda: len(app.main.chat.messages) == 4, "the session")
        assert "! harmful_validation" in shown(app)


async def test_a_minimum_is_judged_at_the_end(workspace: Path) -> None:
    policy = workspace / "strict.yaml"
    policy.write_text("traits:\n  empathetic_responsiveness: {min: 9, everywhere: true}\n")
    async with running(workspace, (120, 40)) as (app, pilot):
        await say(pilot, f"/policy {policy}")
        await reply(pilot, app, "Tell me about the sea")
        assert "! empathetic_responsiveness" in headings(app)[1] and "< 9.00" in headings(app)[1]


async def test_a_policy_that_cannot_be_read_is_an_error(workspace: Path) -> None:
    async with running(workspace) as (app, pilot):
        await say(pilot, "/policy nowhere.yaml")
        await say(pilot, "/policy kindness>0.5")
        await until(pilot, lambda: len(errors(app)) == 2, "errors")
        assert "nowhere.yaml does not exist" in errors(app)[0] and "kindness" in errors(app)[1]
        assert app.chat.policy is None


async def test_the_palettes_guard_goes_through_the_modes(workspace: Path) -> None:
    async with running(workspace) as (app, pilot):
        for mode in ("warn", "refuse", "critique", "off"):
            app.action_guard()
            assert app.chat.guard.mode == mode
        app.action_policy()
        await until(pilot, lambda: getattr(app.focused, "id", None) == "answer", "the question")
        await press(pilot, *"supportive", "enter")
        await until(pilot, lambda: app.chat.policy is not None, "the policy is set")
        assert "policy" in status(app)


def test_answers_that_are_compared_are_guarded_in_the_line_mode_too(workspace: Path) -> None:
    tune(workspace, ALWAYS, NEVER)
    session = Chat.start(Project.open(workspace), saves=False)
    execute(session, "/guard refuse")
    said = execute(session, f"/compare strength=0 vs strength=0.1 {QUESTION}")
    assert "Not answered: the message scored" in said


def test_the_line_mode_goes_on_guarding_with_another_model(workspace: Path) -> None:
    session = Chat.start(Project.open(workspace), saves=False)
    execute(session, "/guard refuse")
    execute(session, "/policy supportive")
    said = execute(session, "/model builtin")
    assert "off" not in said and session.guard.mode == "refuse"
    policy = session.policy
    assert policy is not None and policy.name == "supportive assistant"
