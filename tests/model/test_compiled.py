"""Compiled decoding: the same tokens and activations, one graph whatever is applied.

Traced only, by torch.compile's "eager" backend: what is tested is the graph, not the code that is made of it.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch._dynamo.utils import counters

from persona_tui.core.errors import GenerationError
from persona_tui.model import Cap, Interventions, ModelWrapper, Request, Sampling, conversation
from tests.cli.conftest import environment

from .conftest import make_model, make_tokenizer

pytestmark = pytest.mark.slow

REPOSITORY = Path(__file__).parents[2]
GREEDY = Sampling(max_new_tokens=12, temperature=0)
REQUESTS = [Request(conversation(text), seed=1) for text in ("Hi", "Tell me about the sea.", "And you?")]
# How many graphs: transformers' cache of a sliding window has one for before and one for after it is full.
FAMILIES = {"qwen2": 1, "llama": 1, "qwen2-sliding": 2}


assert_close = partial(torch.testing.assert_close, atol=1e-4, rtol=1e-4)


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    torch._dynamo.reset()
    counters.clear()
    yield
    torch._dynamo.reset()


def graphs() -> int:
    return counters["stats"]["unique_graphs"]


def pair(family: str) -> tuple[ModelWrapper, ModelWrapper]:
    """The same model, compiled and not."""
    compiled, plain = (ModelWrapper(make_model(family), make_tokenizer(), "tiny") for _ in range(2))
    compiled.compile(backend="eager")
    return compiled, plain


def ways(random_vector: Callable[..., Tensor]) -> list[Interventions]:
    """Strength, blend, single rows, floors, other layers, nothing."""
    axis = random_vector(3, unit=True)
    rows = Interventions.by_row(
        [
            Interventions({0: random_vector(1)}),
            Interventions({1: random_vector(2)}, {1: Cap(axis, 1.0)}),
            Interventions(),
        ]
    )
    return [
        Interventions({0: random_vector(1)}),
        Interventions({0: 3 * random_vector(1)}),
        Interventions({0: random_vector(1) - random_vector(2), 1: random_vector(4)}),
        Interventions({1: random_vector(4)}, {0: Cap(axis, 2.0), 1: Cap(axis, 1.0)}),
        rows,
        Interventions(),
    ]


@pytest.mark.parametrize("family", FAMILIES)
def test_the_same_replies_and_activations_from_one_graph(
    family: str, random_vector: Callable[..., Tensor]
) -> None:
    compiled, plain = pair(family)
    for way in ways(random_vector):
        both = (each.generate(REQUESTS, GREEDY, way, [0, 1]) for each in (compiled, plain))
        for one, other in zip(*both, strict=True):
            assert one.token_ids == other.token_ids
            assert one.activations is not None and other.activations is not None
            assert_close(one.activations.response, other.activations.response)
            assert_close(one.activations.prompt_last, other.activations.prompt_last)
    assert graphs() == FAMILIES[family]
    assert not counters["graph_break"]


def test_a_mix_that_changes_while_tokens_stream(random_vector: Callable[..., Tensor]) -> None:
    compiled, plain = pair("qwen2")
    axes = {"one": {0: random_vector(5, unit=True), 1: random_vector(6, unit=True)}}

    def events(wrapper: ModelWrapper) -> list[tuple[int, float, float]]:
        pending = iter(ways(random_vector))
        stream = wrapper.stream(REQUESTS, GREEDY, lambda: next(pending, None), axes)
        return [(each.token_id, each.projections["one"], each.capped) for each in stream]

    for one, other in zip(events(compiled), events(plain), strict=True):
        assert one == pytest.approx(other, abs=1e-4)
    assert graphs() == 1


def test_rows_of_other_batches(random_vector: Callable[..., Tensor]) -> None:
    """A second number of rows makes a second graph, for any number; more make none."""
    compiled, plain = pair("llama")
    many = REQUESTS * 3
    for rows in (3, 5, 4, 9, 7, 2):
        for one, other in zip(
            *(each.generate(many[:rows], GREEDY) for each in (compiled, plain)), strict=True
        ):
            assert one.token_ids == other.token_ids
    assert graphs() <= 2


def test_nothing_stays_on_the_model(random_vector: Callable[..., Tensor]) -> None:
    compiled, plain = pair("qwen2")
    stream = compiled.stream(REQUESTS, GREEDY, Interventions({0: random_vector(1)}))
    next(stream)
    next(stream)
    assert not any(module._forward_hooks for module in compiled.model.modules())
    read, expected = (each.read(["a sentence"], [0, 1])[0] for each in (compiled, plain))
    assert_close(read.response, expected.response)


def test_a_quantized_model_is_refused() -> None:
    model = make_model("llama")
    model.is_quantized = True
    with pytest.raises(GenerationError, match="single device"):
        ModelWrapper(model, make_tokenizer(), "tiny").compile()


def test_the_setting_compiles_and_trouble_with_that_is_one_line(tmp_path: Path) -> None:
    """On the command line, on a machine without a C++ compiler."""
    make_model("llama").save_pretrained(tmp_path / "model")
    make_tokenizer().save_pretrained(tmp_path / "model")
    (tmp_path / "config.yaml").write_text(
        "model:\n  device: cpu\n  compile: true\nsteering: {capping: false}\n"
    )
    command = [sys.executable, "-m", "persona_tui", "--workspace", tmp_path, "--model", tmp_path / "model"]
    own = {"CXX": str(tmp_path / "no-compiler"), "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "cache")}
    done = subprocess.run(
        [*map(str, command), "generate", "Hi", "--max-new-tokens", "3", "--temperature", "0"],
        capture_output=True,
        text=True,
        cwd=REPOSITORY,
        env={**environment(), **own},
    )
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith("Error: torch.compile failed: ") and "model.compile" in line


@pytest.mark.parametrize("family", ["qwen2", "qwen2-sliding"])
def test_a_guide_that_comes_and_goes(family: str, random_vector: Callable[..., Tensor]) -> None:
    way = {1: 3 * random_vector(1)}
    texts = []
    for model in pair(family):
        limits = iter([0.0] * 5 + [0.4] * 20 + [0.0] * 100)
        poll = partial(lambda left: Interventions(way, plausibility=[next(left), 0.0, 0.1]), limits)
        events = list(model.stream(REQUESTS, Sampling(32, 1.5, seed=1), poll))
        texts.append([(event.row, event.token_id) for event in events])
        assert [event.nats is None for event in events if event.row == 0][:6] == [True] * 5 + [False]
    assert texts[0] == texts[1]
