"""What a request asks for is what is done to it, inside vLLM as in our own engine."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from copy import copy
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from persona_tui.core.config import Settings
from persona_tui.core.mix import Mix
from persona_tui.model import ModelWrapper, Sampling
from persona_tui.steering.engine import SteeringEngine
from persona_tui.vectors.manager import PersonaManager
from persona_tui.vllm.wire import KEY, MODEL, WORKSPACE

from .conftest import NAME

TOKENS = 16
MIXES: dict[str, dict[str, Any]] = {
    "plain": {"capping": False},
    "steered": {"persona": "sage", "strength": 0.5, "capping": False},
    "away": {"persona": "sage", "strength": -0.5, "capping": False},
    "blended": {"blend": "sage:0.5,fool:0.5", "strength": 0.7, "capping": False},
    "floored": {"strength": 0, "capping": True, "percentile": 90},
    "both": {"blend": {"sage": 1, "fool": -1}, "strength": 0.4, "capping": True, "percentile": 60},
}


@pytest.fixture(scope="session")
def engine(model_folder: Path, workspace: Path) -> SteeringEngine:
    """Our own engine, on the same model and vectors."""
    settings = Settings.model_validate({"steering": {"capping_layers": [2, 3]}})
    model = ModelWrapper.load(str(model_folder), device="cpu", dtype="float32")
    return SteeringEngine(model, PersonaManager(workspace / "vectors" / NAME), settings)


def ids_of(engine: SteeringEngine, question: str) -> list[int]:
    return engine.model.encode([{"role": "user", "content": question}])


def ask(llm: Any, prompts: list[list[int]], mixes: list[dict[str, Any] | None]) -> list[Any]:
    from vllm import SamplingParams, TokensPrompt

    params = [
        SamplingParams(
            temperature=0, max_tokens=TOKENS, logprobs=0, extra_args=None if mix is None else {KEY: mix}
        )
        for mix in mixes
    ]
    return list(llm.generate([TokensPrompt(prompt_token_ids=ids) for ids in prompts], params, use_tqdm=False))


def said(output: Any) -> tuple[list[int], list[float]]:
    best = output.outputs[0]
    return list(best.token_ids), [
        each[token].logprob for each, token in zip(best.logprobs, best.token_ids, strict=True)
    ]


def ours(engine: SteeringEngine, question: str, mix: dict[str, Any]) -> tuple[list[int], list[float]]:
    from persona_tui.core.mix import parse_blend

    blend = mix.get("blend", {mix["persona"]: 1.0} if "persona" in mix else {})
    weights = parse_blend(blend) if isinstance(blend, str) else blend
    other = {key: value for key, value in mix.items() if key not in ("persona", "blend")}
    events = engine.stream(
        [{"role": "user", "content": question}],
        mix=Mix(weights, **other),
        sampling=Sampling(max_new_tokens=TOKENS, temperature=0),
    )
    spoken = [event for event in events if event.token_id >= 0]
    return [event.token_id for event in spoken], [event.logprob for event in spoken]


@pytest.mark.parametrize("mix", MIXES.values(), ids=MIXES.keys())
def test_it_is_our_engine(llm: Any, engine: SteeringEngine, mix: dict[str, Any]) -> None:
    for question in ("What is bread?", "Who are you, and why?"):
        tokens, logprobs = said(ask(llm, [ids_of(engine, question)], [mix])[0])
        expected, wanted = ours(engine, question, mix)
        assert tokens == expected
        torch.testing.assert_close(torch.tensor(logprobs), torch.tensor(wanted), rtol=0, atol=1e-4)


def test_every_request_has_its_own_mix(llm: Any, engine: SteeringEngine) -> None:
    mixes = [{"persona": "sage", "strength": at / 20, "capping": at % 2 == 0} for at in range(32)]
    ids = ids_of(engine, "What is bread?")
    together = [said(each)[0] for each in ask(llm, [ids] * 32, list(mixes))]
    alone = [said(ask(llm, [ids], [mix])[0])[0] for mix in mixes]
    assert together == alone
    assert len({tuple(each) for each in together}) > 4


def test_a_plain_request_beside_a_steered_one_is_plain(llm: Any, engine: SteeringEngine) -> None:
    ids = ids_of(engine, "What is bread?")
    alone = said(ask(llm, [ids], [None])[0])
    beside = ask(llm, [ids, ids], [{"persona": "sage", "strength": 2}, None])
    assert said(beside[1]) == alone and said(beside[0])[0] != alone[0]


def test_the_prefix_cache_knows_what_was_done(llm: Any, engine: SteeringEngine) -> None:
    """A steered request reads again what a plain one has read; one of its own kind does not."""
    ids = ids_of(engine, "What is bread? " * 8)
    mix = {"persona": "fool", "strength": 1.5, "capping": False}
    plain = ask(llm, [ids], [None])[0]
    steered = ask(llm, [ids], [mix])[0]
    assert said(steered)[0] == ours(engine, "What is bread? " * 8, mix)[0]
    assert steered.num_cached_tokens == 0
    assert ask(llm, [ids], [mix])[0].num_cached_tokens > 0
    assert ask(llm, [ids], [None])[0].num_cached_tokens > 0
    assert said(plain)[0] != said(steered)[0]


def test_several_replies_to_one_request(llm: Any, engine: SteeringEngine) -> None:
    """`n`: each of them is steered, as if it had been asked for alone."""
    from vllm import SamplingParams, TokensPrompt

    prompt = TokensPrompt(prompt_token_ids=ids_of(engine, "What is bread?"))

    def several(n: int, seed: int, mix: dict[str, Any] | None) -> list[list[int]]:
        extra = None if mix is None else {KEY: mix}
        params = SamplingParams(n=n, seed=seed, temperature=0.8, max_tokens=TOKENS, extra_args=extra)
        (output,) = llm.generate([prompt], params, use_tqdm=False)
        return [list(each.token_ids) for each in output.outputs]

    mix = {"persona": "sage", "strength": 0.5, "capping": False}
    together = several(3, 5, mix)
    assert together == [several(1, 5 + at, mix)[0] for at in range(3)]
    assert len({tuple(each) for each in together}) == 3 and several(3, 5, None) != together


@pytest.mark.parametrize(
    ("asked", "reason"),
    [
        ({"persona": "nobody"}, "nobody"),
        ({"persona": "sage", "strength": "loud"}, "strength|type"),
        ({"persona": "sage", "strength": float("nan")}, "strength"),
        ({"persona": "sage", "blend": "sage:1"}, "both"),
        ({"persona": "../../etc/passwd"}, "name"),
        ({"persona": "sage", "plausibility": 0.02}, "not available"),
        ({"persona": "sage", "file": "/etc/passwd"}, 'unknown field "file"'),
        ("{", "not valid JSON"),
        (json.dumps([1]), "must be an object"),
        ({"blend": {"sage": "x"}}, "names nobody"),
        ({"percentile": 1000}, "percentile"),
    ],
)
def test_what_cannot_be_done_is_refused_alone(
    llm: Any, engine: SteeringEngine, asked: Any, reason: str
) -> None:
    from vllm.exceptions import VLLMValidationError  # what it answers with 400

    ids = ids_of(engine, "What is bread?")
    with pytest.raises(VLLMValidationError, match=reason):
        ask(llm, [ids], [asked])
    assert said(ask(llm, [ids], [None])[0])[0]  # the server goes on


def test_what_was_compiled_without_us_is_not_used(llm: Any) -> None:
    """vLLM keeps what it has compiled under a hash of its configuration."""
    config = llm.llm_engine.vllm_config
    ours = config.compute_hash()
    plain = {key: each for key, each in config.additional_config.items() if not key.startswith("persona_tui")}
    assert replace(config, additional_config=plain).compute_hash() != ours


def test_a_release_that_was_not_tried_serves_no_personas(monkeypatch: pytest.MonkeyPatch) -> None:
    import vllm

    from persona_tui.vllm.plugin import register

    monkeypatch.setattr(vllm, "__version__", "0.99.0")
    monkeypatch.setenv(WORKSPACE, "somewhere")
    with pytest.raises(RuntimeError, match=r"not tried with vLLM 0\.99\.0"):
        register()
    monkeypatch.delenv(WORKSPACE)
    register()  # a server without personas is not our business


@pytest.mark.parametrize(
    ("option", "divides"),
    [
        ("--kv-sharing-fast-prefill", {"cache_config": {"kv_sharing_fast_prefill": True}}),
        ("--enable-dbo", {"parallel_config": {"enable_dbo": True}}),
        ("--prefill-context-parallel-size", {"parallel_config": {"prefill_context_parallel_size": 2}}),
        ("--enable-batch-sharded-sampling", {"parallel_config": {"enable_batch_sharded_sampling": True}}),
        ("enable_adaptive_verification", {"speculative_config": {"enable_adaptive_verification": True}}),
    ],
)
def test_an_option_that_divides_a_pass_serves_no_personas(
    llm: Any, monkeypatch: pytest.MonkeyPatch, option: str, divides: dict[str, dict[str, Any]]
) -> None:
    """Some blocks, or processes, would take a token for another."""
    worker = llm.llm_engine.model_executor.driver_worker.worker
    config = copy(worker.vllm_config)
    for section, values in divides.items():
        own = copy(getattr(config, section)) or SimpleNamespace()
        for name, value in values.items():
            setattr(own, name, value)
        setattr(config, section, own)
    monkeypatch.setattr(worker.model_runner, "vllm_config", config)
    with pytest.raises(RuntimeError, match=f"{option}.* personas need whole passes"):
        worker.model_runner.load_model()


def test_a_model_without_blocks_is_not_steered_in_silence() -> None:
    from persona_tui.vllm.op import watch_blocks

    with pytest.raises(RuntimeError, match="no decoder blocks in Sequential"):
        watch_blocks(torch.nn.Sequential(torch.nn.Linear(2, 2)))


_DRAFTING = """
import json, sys
from vllm import LLM
from tests.vllm.test_plugin import ask, said

folder, prompts, mixes = json.load(sys.stdin)
drafts = {"method": "ngram", "num_speculative_tokens": 3, "prompt_lookup_max": 2}
llm = LLM(
    folder, dtype="float32", enforce_eager=True, max_model_len=256, max_num_seqs=4, speculative_config=drafts
)
print(json.dumps([said(each)[0] for each in ask(llm, prompts, mixes)]))
"""


def test_drafted_tokens_are_steered(model_folder: Path, workspace: Path, engine: SteeringEngine) -> None:
    """What is drafted is checked by the steered model: a reply is the same as without drafts.

    In a process of its own: what drafts imports numba, and vLLM then starts no second engine in that process.
    """
    mix = {"persona": "sage", "strength": 0.5, "capping": True, "percentile": 60}
    question = "Bread, bread, bread, bread, bread?"
    done = subprocess.run(
        [sys.executable, "-c", _DRAFTING],
        input=json.dumps([str(model_folder), [ids_of(engine, question)] * 2, [mix, None]]),
        env={**os.environ, WORKSPACE: str(workspace), MODEL: NAME, "PYTHONPATH": os.pathsep.join(sys.path)},
        cwd=Path(__file__).parents[2],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    steered, plain = json.loads(done.stdout.splitlines()[-1])
    assert steered == ours(engine, question, mix)[0]
    assert plain == ours(engine, question, {"capping": False})[0] != steered
