"""Two ranks, a cache that is too small, and a worker that is killed."""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from persona_tui.core.errors import GenerationError
from persona_tui.core.jobs import JobContext
from persona_tui.core.sections import VllmSettings
from persona_tui.model import Interventions, ModelWrapper, Sampling
from persona_tui.steering.engine import SteeringEngine
from persona_tui.vllm.engine import VllmModel
from persona_tui.vllm.wire import CHANGES, KEY, MODEL, TRACE, WORKER, WORKSPACE

from .conftest import NAME
from .test_engine import ALL, GREEDY, QUESTIONS, asked, near, ours, rows_of, ways
from .test_jobs import PROMPTS, opened
from .test_plugin import engine, ids_of

__all__ = ["engine", "ours"]


@pytest.fixture(scope="module")
def cramped(model_folder: Path) -> Iterator[VllmModel]:
    """With a cache for a thousand tokens."""
    settings = VllmSettings(requests=16, context=256, eager=True, cache=0.001)
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("VLLM_CPU_KVCACHE_SPACE")  # it would win
        model = VllmModel.start(str(model_folder), dtype="float32", settings=settings)
    yield model
    model.driver.shut_down()


def test_who_has_to_wait_is_summed_up_once(cramped: VllmModel, ours: ModelWrapper, workspace: Path) -> None:
    """Requests that lose their place in the cache are read again from the start."""
    long = Sampling(max_new_tokens=100, temperature=0)
    requests = [asked(f"{each} And {at}?") for at in range(4) for each in QUESTIONS[:3]]
    prompts = sum(ours.count_tokens(each.messages) for each in requests)
    assert prompts < cramped.driver.about.room < prompts + 60 * len(requests)  # some begin, and lose it
    for name in ("plain", "steered"):
        rows = rows_of(ways(workspace, ours)[name], len(requests))
        there = cramped.generate(requests, long, rows, ALL)
        here = ours.generate(requests, long, rows, ALL)
        for one, other in zip(there, here, strict=True):
            assert one.token_ids == other.token_ids
            assert one.activations is not None and other.activations is not None
            assert one.activations.n_tokens == other.activations.n_tokens
            near(one.activations.response, other.activations.response)
            near(one.activations.prompt_last, other.activations.prompt_last)
        pairs = [(each.messages, "It depends. " * 10) for each in requests]
        for one_score, other_score in zip(cramped.score(pairs, rows), ours.score(pairs, rows), strict=True):
            assert one_score.n_tokens == other_score.n_tokens
            assert one_score.logprob == pytest.approx(other_score.logprob, abs=1e-4)


def test_the_guided_take_turns_where_there_is_no_room(
    cramped: VllmModel, ours: ModelWrapper, workspace: Path
) -> None:
    long = Sampling(max_new_tokens=60, temperature=0)
    requests = [asked(each) for each in QUESTIONS]
    rows = rows_of(ways(workspace, ours)["guided"], len(requests))
    there, here = cramped.generate(requests, long, rows), ours.generate(requests, long, rows)
    assert [each.token_ids for each in there] == [each.token_ids for each in here]


def test_a_mix_that_has_changed_stays_so(
    model_folder: Path, workspace: Path, engine: SteeringEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Over HTTP, too, a reply that loses its place in the cache goes on with the mix it was changed to."""
    from vllm import LLM, SamplingParams, TokensPrompt
    from vllm.v1.core.sched.scheduler import Scheduler

    monkeypatch.setenv(WORKSPACE, str(workspace))
    monkeypatch.setenv(MODEL, NAME)
    monkeypatch.delenv("VLLM_CPU_KVCACHE_SPACE")
    llm = LLM(
        str(model_folder),
        dtype="float32",
        enforce_eager=True,
        max_model_len=256,
        max_num_seqs=16,
        block_size=32,
        kv_cache_memory_bytes=2**20,
        worker_extension_cls=WORKER,
    )
    put_aside: set[str] = set()
    preempt = Scheduler._preempt_request

    def preempted(self: Scheduler, request: Any, *args: Any, **kwargs: Any) -> None:
        put_aside.add(request.request_id)
        preempt(self, request, *args, **kwargs)

    monkeypatch.setattr(Scheduler, "_preempt_request", preempted)
    loud = {"persona": "sage", "strength": 2, "capping": False}
    prompts = {str(at): ids_of(engine, f"What is bread? And {at}?") for at in range(12)}
    ids = {
        llm.llm_engine.add_request(
            name,
            TokensPrompt(prompt_token_ids=prompt),
            SamplingParams(
                temperature=0,
                max_tokens=100,
                ignore_eos=True,
                extra_args={KEY: loud, TRACE: name, CHANGES: True},
            ),
        ): name
        for name, prompt in prompts.items()
    }
    replies: dict[str, list[int]] = {}
    for number in range(10_000):
        for output in llm.llm_engine.step():
            replies[output.request_id] = list(output.outputs[0].token_ids)
        if number == 4:
            for name in prompts:
                llm.llm_engine.collective_rpc("persona_tui_speak", args=(name, {**loud, "strength": 0}))
        if not llm.llm_engine.has_unfinished_requests():
            break
    assert put_aside
    for id in put_aside:
        name = ids[id]
        *before, last = replies[name]
        assert plainly(llm, prompts[name] + before) == last


def plainly(llm: Any, prompt: list[int]) -> int:
    from vllm import SamplingParams, TokensPrompt

    params = SamplingParams(temperature=0, max_tokens=1, ignore_eos=True)
    (output,) = llm.generate([TokensPrompt(prompt_token_ids=prompt)], params, use_tqdm=False)
    return int(output.outputs[0].token_ids[0])


@pytest.fixture(scope="module")
def two(model_folder: Path) -> Iterator[VllmModel]:
    """On two tensor-parallel ranks, in processes of their own."""
    settings = VllmSettings(requests=16, context=256, eager=True, tensor_parallel=2, cache=0.1)
    model = VllmModel.start(str(model_folder), dtype="float32", settings=settings)
    yield model
    model.driver.shut_down()


def test_two_ranks(two: VllmModel, ours: ModelWrapper, workspace: Path) -> None:
    requests = [asked(each) for each in QUESTIONS]
    known = ways(workspace, ours)
    rows = Interventions.by_row([known[name] for name in ("plain", "steered", "both", "guided")])
    there = two.generate(requests, GREEDY, rows, ALL)
    here = ours.generate(requests, GREEDY, rows, ALL)
    for one, other in zip(there, here, strict=True):
        assert one.token_ids == other.token_ids
        assert one.activations is not None and other.activations is not None
        near(one.activations.response, other.activations.response)
    pairs = [(each.messages, "It depends.") for each in requests]
    for one_score, other_score in zip(two.score(pairs, rows), ours.score(pairs, rows), strict=True):
        assert one_score.logprob == pytest.approx(other_score.logprob, abs=1e-4)


def test_a_job_outlives_a_worker(two: VllmModel, tmp_path: Path, model_folder: Path) -> None:
    """A killed worker ends the command with one line; the next one goes on with what is finished."""
    project = opened(tmp_path, model_folder, "vllm")
    project._model = two  # the engine that runs already
    calls = 0

    def kill() -> None:
        nonlocal calls
        calls += 1
        if calls == 3:
            worker = multiprocessing.active_children()[0]
            assert worker.pid is not None
            os.kill(worker.pid, signal.SIGKILL)

    context = JobContext(give_way=kill)
    with pytest.raises(GenerationError, match="has stopped working"):
        project.create_persona("grim", PROMPTS, context)
    assert "persona-grim" in project.partial().interrupted()
