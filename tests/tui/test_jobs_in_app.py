"""Long work beside the chat."""

from __future__ import annotations

from pathlib import Path

import pytest

from persona_tui.tui.screens.create import CreateScreen, name_for

from .driving import press, running, say, until

pytestmark = pytest.mark.slow

SIZES = [(80, 24), (120, 40)]


@pytest.mark.parametrize("size", SIZES)
async def test_a_persona_is_made_while_the_chat_goes_on(workspace: Path, size: tuple[int, int]) -> None:
    async with running(workspace, size) as (app, pilot):
        await press(pilot, "f2", "insert")
        await until(pilot, lambda: isinstance(app.screen, CreateScreen), "the form")
        await press(pilot, *"guardian", "enter", "end", *"_two", "enter")
        await until(pilot, lambda: app.jobs.running is not None, "the job")
        await press(pilot, "escape")
        await say(pilot, "Hello")
        job = app.jobs.running
        assert job is not None
        await until(pilot, lambda: app.replies.last is not None and app.replies.last.count > 0, "a token")
        assert not job.ended, "the chat does not wait for the job"
        await press(pilot, "escape")
        await until(pilot, lambda: job.ended, "the job ends")
        assert job.state == "done", job.error
        await until(pilot, lambda: "guardian_two" in app.project.personas.list_loaded(), "it is loaded")
        await until(
            pilot, lambda: "guardian_two" in app.main.query_one("#persona-list")._id_to_option, "and listed"
        )


async def test_a_job_is_cancelled(workspace: Path) -> None:
    async with running(workspace) as (app, pilot):
        before = app.project.personas.list_available()
        await say(pilot, "/create wizard a grumpy old wizard")
        await until(
            pilot, lambda: app.jobs.running is not None and app.jobs.running.state == "running", "runs"
        )
        job = app.jobs.running
        assert job is not None
        await press(pilot, "f4", "delete")
        await until(pilot, lambda: job.ended, "cancelled")
        assert job.state == "cancelled"
        assert app.project.personas.list_available() == before


def test_a_name_is_made_from_a_description() -> None:
    assert name_for("A grumpy but secretly kind old wizard") == "grumpy_secretly_kind"
    assert name_for("") == ""
