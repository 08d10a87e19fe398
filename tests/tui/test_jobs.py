"""The queue of jobs: what the panel shows of it, its log, failures, and going on after a restart."""

from __future__ import annotations

import json
import re
import threading
from pathlib import Path

import pytest
from textual.widgets import Static

from persona_tui.core.jobs import LOG_LINES, Job, JobContext
from persona_tui.core.log_file import LogFile
from persona_tui.core.mix import Mix
from persona_tui.core.workspace import Workspace
from persona_tui.project.dataset_task import DatasetTask
from persona_tui.project.project import Project
from persona_tui.project.requests import JobRequest, Unfinished, dataset_request
from persona_tui.tui.app import PersonaApp
from persona_tui.tui.widgets.jobs_panel import JobList, JobLog, JobRow

from .driving import LONG, errors, notes, press, reply, running, say, until

pytestmark = pytest.mark.slow


def rows(app: PersonaApp) -> str:
    """Return what the list of jobs shows."""
    return "\n".join(str(option.prompt) for option in app.main.query_one(JobList).options)


def details(app: PersonaApp) -> str:
    """Return what the page over the chat shows."""
    return "\n".join(str(part.render()) for part in app.screen.query(Static))


def log(app: PersonaApp) -> str:
    return "\n".join(app.main.query_one(JobLog).lines)


def saved_log(workspace: Path) -> str:
    return "\n".join(path.read_text() for path in (workspace / "logs").glob("*.log"))


async def test_a_row_shows_progress_time_left_throughput_and_the_prompt(workspace: Path) -> None:
    row = JobRow("k", "create wizard", "running", 0.25, 130.0, "asking", "5/20", 0.5, "What is bread?")
    first, second = row.content().plain.split("\n")
    assert first == "▸ create wizard ██░░░░░░ 25% · 2:10 left"
    assert second == "  asking · 5/20 · 30/min · What is bread?"
    go_on = threading.Event()

    def work(context: JobContext) -> None:
        context.progress(1, 4, "asking")
        context.working_on("Why is the sky blue?")
        context.progress(2, 4, "asking")
        go_on.wait()

    async with running(workspace, (120, 40)) as (app, pilot):
        app.jobs.submit("ask", work, lambda job: None)
        await until(pilot, lambda: "ask ████░░░░ 50%" in rows(app), "how far it is")
        assert "asking · 2/4 · " in rows(app) and "Why is the sky blue?" in rows(app)
        assert "ask 50%" in app.main.status.render().plain
        await press(pilot, "f4", "enter")
        await until(pilot, lambda: app.screen is not app.main, "the details")
        assert "now       Why is the sky blue?" in details(app)
        go_on.set()
        await press(pilot, "escape")
        await until(pilot, lambda: "✓ ask" in rows(app), "done")


async def test_a_persona_is_calibrated_anew(workspace: Path) -> None:
    async with running(workspace, (120, 40)) as (app, pilot):
        await say(pilot, "/calibrate sage")
        job = app.jobs.running
        assert job is not None and "calibrate sage" in rows(app)
        await until(pilot, lambda: job.ended, "the end", LONG)
        assert job.state == "done" and job.progress.total and job.progress.detail, job.error
        await until(pilot, lambda: "Calibrated sage." in notes(app)[-1], "what came of it")


async def test_jobs_wait_for_each_other_and_are_cancelled_while_they_wait(workspace: Path) -> None:
    async with running(workspace) as (app, pilot):
        await say(pilot, "/create wizard a grumpy old wizard")
        await say(pilot, "/create cook a friendly cook")
        first = app.jobs.running
        assert first is not None and first.name == "create wizard"
        await until(pilot, lambda: "· create cook queued" in rows(app), "the second one waits")
        await press(pilot, "f4", "delete")
        await until(pilot, lambda: "– create cook cancelled" in rows(app), "it does not any more")
        assert not first.ended
        await press(pilot, "down", "delete")
        await until(pilot, lambda: first.state == "cancelled", "the first one, too")
        await press(pilot, "f5")
        await until(pilot, lambda: app.jobs.running is not None, "it can be begun again")
        assert app.jobs.cancel()
        await until(pilot, lambda: app.jobs.running is None, "and is stopped")
        assert "create wizard: cancelled" in log(app) and "create wizard: cancelled" in saved_log(workspace)


async def test_a_failure_says_what_went_wrong_and_what_to_do(workspace: Path) -> None:
    async with running(workspace, (120, 40)) as (app, pilot):
        for path in (workspace / "datasets" / "personas").glob("extraction_questions.jsonl"):
            path.write_text('{"id": "q_001"}\n')
        await say(pilot, "/create wizard a grumpy old wizard")
        await until(pilot, lambda: bool(errors(app)), "the error")
        assert "extraction_questions.jsonl:1" in errors(app)[0]
        assert "✗ create wizard" in rows(app) and "extraction_questions.jsonl" in rows(app)
        await press(pilot, "f4", "enter")
        await until(pilot, lambda: app.screen is not app.main, "the details")
        assert "failed" in details(app) and "extraction_questions.jsonl:1" in details(app)
        assert "f5 runs it again" in details(app)


async def test_a_mistake_of_ours_is_in_the_log(workspace: Path) -> None:
    def work(context: JobContext) -> None:
        raise ZeroDivisionError("one over zero")

    async with running(workspace) as (app, pilot):
        ended: list[Job[None]] = []
        app.jobs.submit("divide", work, ended.append)
        await until(pilot, lambda: bool(ended), "the end")
        assert "✗ divide ZeroDivisionError: one over zero (a bug in persona-tui" in rows(app)
        assert "in work" in saved_log(workspace), "the traceback is in the file"


async def test_what_libraries_print_lands_in_the_log(workspace: Path) -> None:
    def work(context: JobContext) -> None:
        print("a library says something")
        context.log("the job itself does")

    async with running(workspace) as (app, pilot):
        app.jobs.submit("talk", work, lambda job: None)
        await until(pilot, lambda: "a library says something" in log(app), "what was printed")
        await until(pilot, lambda: "talk: the job itself does" in log(app), "what the job said")
        assert "a library says something" in saved_log(workspace)


async def test_the_log_keeps_its_last_lines_and_follows_its_end(workspace: Path) -> None:
    async with running(workspace, (120, 40)) as (app, pilot):
        await press(pilot, "f4")
        widget = app.main.query_one(JobLog)
        await until(pilot, lambda: widget.size.height > 0, "there is room for it")
        for number in range(LOG_LINES + 50):
            app.jobs.log(f"line {number}")
        assert len(widget.lines) == LOG_LINES and widget.lines[-1] == f"line {LOG_LINES + 49}"
        await until(pilot, lambda: widget.is_vertical_scroll_end, "its end is shown")
        app.jobs.submit("one", lambda context: None, lambda job: None)
        app.jobs.submit("two", lambda context: None, lambda job: None)
        await until(pilot, lambda: "two" in rows(app) and app.jobs.running is None, "rows above it")
        await until(pilot, lambda: widget.is_vertical_scroll_end, "its end still is")
        widget.scroll_home(animate=False, immediate=True)
        app.jobs.log("one more")
        assert widget.scroll_y == 0, "the reader is left where they are"


def test_the_file_keeps_the_last_lines(tmp_path: Path) -> None:
    file = LogFile(tmp_path, lines=100)
    for number in range(950):
        file.write(f"line {number}")
    file.close()
    kept = file.path.read_text().splitlines()
    assert 100 <= len(kept) < 200 and kept[-1].endswith("line 949")


async def test_what_an_earlier_run_did_not_finish_goes_on(workspace: Path) -> None:
    earlier = Unfinished(Workspace(workspace))
    earlier.add(dataset_request(Project.open(workspace), DatasetTask("questions", wanted=2), seed=1))
    earlier.add(JobRequest("calibrate", {"name": "sage"}, "somebody/else"))
    earlier.close()
    async with running(workspace, (120, 40)) as (app, pilot):
        await until(pilot, lambda: "↻ write questions" in rows(app), "it is offered")
        assert any("An earlier run did not finish: write questions" in note for note in notes(app))
        await press(pilot, "f4", "f5")
        await pilot.pause()
        assert app.jobs.running is None, "the marked one is another model's"
        await press(pilot, "down", "f5")
        await until(pilot, lambda: app.jobs.running is not None, "it goes on")
        job = app.jobs.running
        assert job is not None
        await until(pilot, lambda: job.ended, "the end", LONG)
        assert job.state == "done", job.error
        await until(pilot, lambda: "write questions: done" in log(app), "it is told")
    left = [json.loads(path.read_text()) for path in (workspace / "jobs").glob("*/*.json")]
    assert [request["model"] for request in left] == ["somebody/else"], "what is done is forgotten"


async def test_quitting_leaves_a_job_for_the_next_run(workspace: Path) -> None:
    async with running(workspace) as (app, pilot):
        await say(pilot, "/create wizard a grumpy old wizard")
        await until(pilot, lambda: app.jobs.running is not None, "the job")
        await press(pilot, "ctrl+q")
    async with running(workspace) as (app, pilot):
        await until(pilot, lambda: "↻ create wizard" in rows(app), "it is offered")
        await press(pilot, "f4", "delete")
        await until(pilot, lambda: rows(app) == "", "and can be forgotten")
        await press(pilot, "ctrl+t")
        await until(pilot, lambda: "↻ create wizard" in rows(app), "which is taken back")
        await press(pilot, "ctrl+q")
    async with running(workspace) as (app, pilot):
        await until(pilot, lambda: "↻ create wizard" in rows(app), "on the disk, too")
        await press(pilot, "f4", "delete")
    async with running(workspace) as (app, pilot):
        assert rows(app) == ""


async def test_prompts_are_written_while_the_chat_goes_on(workspace: Path) -> None:
    path = workspace / "datasets" / "personas" / "extraction_questions.jsonl"
    before = len(path.read_text().splitlines())
    async with running(workspace) as (app, pilot):
        await reply(pilot, app, "What is bread?")
        undisturbed = app.main.chat.messages[1].source
        await say(pilot, "/new")
        await say(pilot, "/dataset questions 12")
        job = app.jobs.running
        assert job is not None and job.name == "write questions"
        await until(pilot, lambda: job.state == "running", "it runs")
        await reply(pilot, app, "What is bread?")
        assert app.main.chat.messages[1].source == undisturbed, "a job changes nothing in a reply"
        await until(pilot, lambda: job.ended, "the end", LONG)
        assert job.state == "done", job.error
        await until(pilot, lambda: any(note.startswith("Wrote ") for note in notes(app)), "what came of it")
    assert len(path.read_text().splitlines()) > before


async def test_a_data_set_that_does_not_exist(workspace: Path) -> None:
    async with running(workspace) as (app, pilot):
        await say(pilot, "/dataset poems")
        await say(pilot, "/dataset archetype wizard")
        await say(pilot, "/dataset questions many")
        await until(pilot, lambda: len(errors(app)) == 3, "errors")
        assert 'not "poems"' in errors(app)[0] and "description" in errors(app)[1]
        assert app.jobs.running is None


def test_the_line_mode_writes_them_too(workspace: Path) -> None:
    from persona_tui.chat.chat import Chat
    from persona_tui.chat.commands import execute

    session = Chat.start(Project.open(workspace), saves=False)
    said = execute(session, "/dataset questions 2")
    assert said.startswith("Wrote 2 records to ") and "extraction_questions.jsonl" in said


async def test_the_time_of_a_job_goes_on_between_its_reports_and_a_reply_says_what_it_waits_for(
    workspace: Path,
) -> None:
    go_on = threading.Event()

    def work(context: JobContext) -> None:
        context.progress(1, 4, "asking")
        go_on.wait()

    async with running(workspace, (120, 40), Mix({"sage": 1.0}, 0.3)) as (app, pilot):
        app.jobs.submit("ask", work, lambda job: None)
        await until(pilot, lambda: "ask ██░░░░░░ 25%" in rows(app), "how far it is")
        await say(pilot, "Hello")
        heading = app.main.chat.messages[-1].heading
        assert heading == "sage 0.30  after a step of ask"
        await until(pilot, lambda: re.search(r"25% · 0:0[2-9]", rows(app)) is not None, "time passes")
        assert app.jobs._clock is not None
        go_on.set()
        await until(pilot, lambda: not app.busy, "the reply")
        assert "after a step" not in app.main.chat.messages[-1].heading
        await until(pilot, lambda: app.jobs._clock is None, "nothing ticks any more")
