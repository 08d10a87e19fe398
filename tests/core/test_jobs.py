"""The worker: one thread, turns before jobs, cancelling, errors, closing."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from concurrent.futures import CancelledError

import pytest

from persona_tui.core.errors import GenerationError, JobCancelled
from persona_tui.core.jobs import LOG_LINES, Change, Job, JobContext, JobProgress, ModelWorker, run_inline

PATIENCE = 10  # seconds; only ever waited for when something is broken


@pytest.fixture
def worker() -> Iterator[ModelWorker]:
    worker = ModelWorker()
    yield worker
    worker.close()


def wait(job: Job[object] | Job[str] | Job[None] | Job[int]) -> None:
    assert job.wait(PATIENCE)


def test_a_job_returns_its_result(worker: ModelWorker) -> None:
    job = worker.submit_job("add", lambda context: 1 + 1)
    wait(job)
    assert (job.state, job.result, job.error) == ("done", 2, None)


def test_all_work_runs_on_one_thread(worker: ModelWorker) -> None:
    jobs = [worker.submit_job("who", lambda context: threading.get_ident()) for _ in range(3)]
    turn = worker.submit_turn(threading.get_ident).result(PATIENCE)
    for job in jobs:
        wait(job)
    assert {job.result for job in jobs} == {turn}
    assert turn != threading.get_ident()


def test_jobs_run_in_order(worker: ModelWorker) -> None:
    order: list[int] = []
    jobs = [worker.submit_job(str(n), lambda context, n=n: order.append(n)) for n in range(5)]
    wait(jobs[-1])
    assert order == list(range(5))


def test_a_turn_runs_between_a_jobs_batches(worker: ModelWorker) -> None:
    started, asked = threading.Event(), threading.Event()
    order: list[str] = []

    def batches(context: JobContext) -> None:
        started.set()
        assert asked.wait(PATIENCE)
        order.append("batch 1")
        context.checkpoint()
        order.append("batch 2")

    job = worker.submit_job("batches", batches)
    assert started.wait(PATIENCE)
    turn = worker.submit_turn(lambda: order.append("turn"))
    asked.set()
    turn.result(PATIENCE)
    wait(job)
    assert order == ["batch 1", "turn", "batch 2"]


def test_a_turn_inside_a_turn_waits(worker: ModelWorker) -> None:
    """A checkpoint that a turn happens to call must not start the next turn in the middle of it."""
    order: list[str] = []

    def first() -> None:
        second.append(worker.submit_turn(lambda: order.append("second")))
        worker._give_way()
        order.append("first")

    second: list[object] = []
    worker.submit_turn(first).result(PATIENCE)
    worker.submit_turn(lambda: None).result(PATIENCE)
    assert order == ["first", "second"]


def test_a_failing_turn_keeps_its_error_and_the_job(worker: ModelWorker) -> None:
    started, asked = threading.Event(), threading.Event()

    def work(context: JobContext) -> str:
        started.set()
        assert asked.wait(PATIENCE)
        context.checkpoint()
        return "unharmed"

    def fail() -> None:
        raise GenerationError("too long")

    job = worker.submit_job("work", work)
    assert started.wait(PATIENCE)
    turn = worker.submit_turn(fail)
    asked.set()
    with pytest.raises(GenerationError, match="too long"):
        turn.result(PATIENCE)
    wait(job)
    assert job.result == "unharmed"


def test_cancelling_takes_effect_at_the_next_checkpoint(worker: ModelWorker) -> None:
    started, cancelled = threading.Event(), threading.Event()
    checkpoints = 0

    def endless(context: JobContext) -> None:
        nonlocal checkpoints
        started.set()
        assert cancelled.wait(PATIENCE)
        while True:
            checkpoints += 1
            context.checkpoint()

    job = worker.submit_job("endless", endless)
    assert started.wait(PATIENCE)
    job.cancel()
    cancelled.set()
    wait(job)
    assert (job.state, job.error, checkpoints) == ("cancelled", None, 1)


def test_a_queued_job_is_cancelled_at_once(worker: ModelWorker) -> None:
    started, release = threading.Event(), threading.Event()

    def hold(context: JobContext) -> None:
        started.set()
        assert release.wait(PATIENCE)

    holding = worker.submit_job("hold", hold)
    assert started.wait(PATIENCE)
    ran: list[int] = []
    queued = worker.submit_job("queued", lambda context: ran.append(1))
    queued.cancel()
    assert queued.state == "cancelled" and queued.ended
    release.set()
    wait(holding)
    worker.submit_turn(lambda: None).result(PATIENCE)
    assert ran == []


def test_cancelling_a_finished_job_changes_nothing(worker: ModelWorker) -> None:
    job = worker.submit_job("add", lambda context: 2)
    wait(job)
    job.cancel()
    assert job.state == "done"


@pytest.mark.parametrize("error", [GenerationError("no memory"), ValueError("bug")])
def test_an_error_is_kept_and_the_worker_goes_on(worker: ModelWorker, error: Exception) -> None:
    def fail(context: JobContext) -> None:
        context.log("before")
        raise error

    job = worker.submit_job("fail", fail)
    wait(job)
    assert job.state == "failed" and job.error is error
    assert job.lines[0] == "before" and str(error) in job.lines[1]
    assert worker.submit_turn(lambda: "alive").result(PATIENCE) == "alive"


def test_listeners_hear_everything_and_may_fail(worker: ModelWorker) -> None:
    heard: list[tuple[Change, str]] = []
    ready = threading.Event()

    def listen(job: Job[object], change: Change) -> None:
        heard.append((change, job.state))
        raise RuntimeError("the screen is gone")

    def work(context: JobContext) -> None:
        assert ready.wait(PATIENCE)
        context.progress(1, 2, "half")
        context.log("a line")

    job = worker.submit_job("work", work, listen)
    ready.set()
    wait(job)
    worker.submit_turn(lambda: None).result(PATIENCE)
    assert heard == [("state", "running"), ("progress", "running"), ("log", "running"), ("state", "done")]
    assert (job.progress.done, job.progress.total, job.progress.note) == (1, 2, "half")


def test_progress_measures_the_rate_per_stage(monkeypatch: pytest.MonkeyPatch) -> None:
    seconds = iter(range(100))
    monkeypatch.setattr(time, "monotonic", lambda: float(next(seconds)))
    seen: list[JobProgress] = []
    context = JobContext(on_progress=seen.append)
    for done in (0, 2, 4):
        context.progress(done, 10)
    assert seen[0].rate is None
    assert (seen[2].rate, seen[2].eta, seen[2].fraction) == (2.0, 3.0, 0.4)
    context.progress(1, 500, "the next stage")
    assert seen[3].rate is None
    context.progress(5, 0)
    assert seen[4].fraction == 0.0 and seen[4].eta is None


def test_what_is_in_hand_is_reported_between_two_counts() -> None:
    seen: list[JobProgress] = []
    context = JobContext(on_progress=seen.append)
    context.progress(1, 4, "responses")
    context.working_on("What is bread?")
    context.progress(2, 4, "responses")
    assert [(each.done, each.note, each.detail) for each in seen] == [
        (1, "responses", ""),
        (1, "responses", "What is bread?"),
        (2, "responses", "What is bread?"),
    ]


def test_a_log_keeps_its_last_lines(worker: ModelWorker) -> None:
    def talk(context: JobContext) -> None:
        for number in range(LOG_LINES + 5):
            context.log(str(number))

    job = worker.submit_job("talk", talk)
    wait(job)
    assert (len(job.lines), job.lines[0]) == (LOG_LINES, "5")
    assert job.seconds > 0


def test_closing_takes_less_than_half_a_second_whatever_runs() -> None:
    worker = ModelWorker()
    started, release = threading.Event(), threading.Event()

    def deaf(context: JobContext) -> None:
        started.set()
        release.wait(PATIENCE)

    job = worker.submit_job("deaf", deaf)
    waiting = worker.submit_job("waiting", lambda context: None)
    assert started.wait(PATIENCE)
    turn = worker.submit_turn(lambda: None)
    before = time.monotonic()
    assert not worker.close()
    assert time.monotonic() - before < 0.5
    assert waiting.state == "cancelled"
    with pytest.raises(CancelledError):
        turn.result(0)
    release.set()
    wait(job)


def test_closing_stops_a_turn_and_ends_the_thread() -> None:
    worker = ModelWorker()
    stop, started = threading.Event(), threading.Event()

    def speak() -> bool:
        started.set()
        return stop.wait(PATIENCE)

    turn = worker.submit_turn(speak, stop)
    assert started.wait(PATIENCE)
    assert worker.close()
    assert turn.result(0) is True
    assert not worker.busy
    with pytest.raises(RuntimeError):
        worker.submit_turn(speak)
    with pytest.raises(RuntimeError):
        worker.submit_job("late", lambda context: None)


def test_inline_work_reports_and_raises() -> None:
    seen: list[JobProgress] = []
    lines: list[str] = []

    def work(context: JobContext) -> str:
        context.progress(1, 1)
        context.log("line")
        context.checkpoint()
        return "result"

    assert run_inline(work, seen.append, lines.append) == "result"
    assert len(seen) == 1 and lines == ["line"]
    stop = threading.Event()
    stop.set()
    with pytest.raises(JobCancelled):
        JobContext(stop=stop).checkpoint()
