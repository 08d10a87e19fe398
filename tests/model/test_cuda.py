"""On a GPU: the same tokens and activations as on the processor, whatever is done to them.

These say so where they are skipped for want of a GPU. Weights are random and in float32, as the processor's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import pytest
import torch
from torch import Tensor
from torch._dynamo.utils import counters

from persona_tui.core.config import Settings, override
from persona_tui.extraction import ActivationExtractor
from persona_tui.model import Cap, Interventions, ModelWrapper, Request, Sampling, conversation

from .conftest import make_model, make_tokenizer

pytestmark = [
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"),
    pytest.mark.slow,
]

GREEDY = Sampling(max_new_tokens=24, temperature=0)
SAMPLED = Sampling(max_new_tokens=24, temperature=1.0)
REQUESTS = [
    Request(conversation(text), seed=row) for row, text in enumerate(("Hi", "Tell me about the sea.", "And?"))
]
PLACES = ("cpu", "cuda")
FAMILIES = ["qwen2", "llama", "gemma3_text", "gpt2"]

assert_close = partial(torch.testing.assert_close, atol=1e-3, rtol=1e-3)


@pytest.fixture(autouse=True)
def exact() -> Iterator[None]:
    """Products of matrices in full float32, and nothing compiled before."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    torch._dynamo.reset()
    counters.clear()
    yield
    torch.set_float32_matmul_precision(before)


def pair(family: str = "qwen2") -> tuple[ModelWrapper, ModelWrapper]:
    """The same model on the processor and on the GPU."""
    here, there = (ModelWrapper(make_model(family).to(place), make_tokenizer(), "tiny") for place in PLACES)
    return here, there


def ways(random_vector: Callable[..., Tensor]) -> dict[str, Interventions]:
    axis = random_vector(3, unit=True)
    return {
        "plain": Interventions(),
        "steered": Interventions({0: random_vector(1)}),
        "blend": Interventions({0: random_vector(1) - random_vector(2), 1: random_vector(4)}),
        "capped": Interventions({1: random_vector(4)}, {0: Cap(axis, 2.0), 1: Cap(axis, 1.0)}),
        "guided": Interventions({1: 3 * random_vector(1)}, plausibility=0.4),
        "rows": Interventions.by_row(
            [Interventions({0: random_vector(1)}), Interventions({}, {1: Cap(axis, 1.0)}), Interventions()]
        ),
    }


@pytest.mark.parametrize("way", ["plain", "steered", "blend", "capped", "guided", "rows"])
@pytest.mark.parametrize("family", FAMILIES)
def test_replies_and_means_are_those_of_the_processor(
    family: str, way: str, random_vector: Callable[..., Tensor]
) -> None:
    done = ways(random_vector)[way]
    for one, other in zip(
        *(each.generate(REQUESTS, GREEDY, done, [0, 1]) for each in pair(family)), strict=True
    ):
        assert one.token_ids == other.token_ids
        assert one.activations is not None and other.activations is not None
        assert_close(other.activations.response.cpu(), one.activations.response)
        assert_close(other.activations.prompt_last.cpu(), one.activations.prompt_last)


def test_streams_with_readings_are_those_of_the_processor(random_vector: Callable[..., Tensor]) -> None:
    axes = {"one": {0: random_vector(5, unit=True), 1: random_vector(6, unit=True)}}
    for way in ways(random_vector).values():
        streams = (each.stream(REQUESTS, GREEDY, way, axes) for each in pair())
        for one, other in zip(*streams, strict=True):
            assert (one.row, one.token_id) == (other.row, other.token_id)
            assert other.projections["one"] == pytest.approx(one.projections["one"], abs=1e-3)
            assert other.capped == pytest.approx(one.capped, abs=1e-3)


def test_likelihoods_are_those_of_the_processor() -> None:
    asked = [(conversation("Hi"), "Good morning to you"), (conversation("Who are you?"), "Nobody")]
    for one, other in zip(*(each.score(asked) for each in pair()), strict=True):
        assert other.n_tokens == one.n_tokens
        assert other.logprob == pytest.approx(one.logprob, abs=1e-3)


def test_given_texts_are_read_as_on_the_processor() -> None:
    texts = ["a sentence", "another one, which is longer", "x"]
    for one, other in zip(*(each.read(texts, [0, 1, 2]) for each in pair()), strict=True):
        assert_close(other.response.cpu(), one.response)
        assert_close(other.prompt_last.cpu(), one.prompt_last)


def test_a_step_of_distilling_is_that_of_the_processor(random_vector: Callable[..., Tensor]) -> None:
    lessons = [
        (conversation(asked, "You are a sailor."), conversation(asked), "Aye, that is so")
        for asked in ("What is bread?", "Who are you?", "Why?")
    ]
    start = {1: 0.05 * random_vector(1)}
    found = [model.distillation(lessons).improved(start, rate=0.1, seed=0) for model in pair()]
    (here, expected), (there, divergence) = found
    assert divergence == pytest.approx(expected, rel=1e-3)
    assert_close(there[1].cpu(), here[1])
    assert not torch.equal(here[1], start[1])


def test_a_reply_does_not_depend_on_its_neighbours() -> None:
    model = pair()[1]
    together = [each.token_ids for each in model.generate(REQUESTS, SAMPLED)]
    assert together == [model.generate([each], SAMPLED)[0].token_ids for each in REQUESTS]
    assert together == [each.token_ids for each in model.generate(REQUESTS, SAMPLED)]


@pytest.mark.parametrize("family", ["qwen2", "llama"])
def test_recorded_graphs_do_the_same(family: str, random_vector: Callable[..., Tensor]) -> None:
    """Compiled by inductor, recorded as a CUDA graph and replayed: one graph for every way."""
    plain = pair(family)[1]
    compiled = pair(family)[1]
    compiled.compile()
    for name, way in ways(random_vector).items():
        both = (each.generate(REQUESTS, GREEDY, way, [0, 1]) for each in (compiled, plain))
        for one, other in zip(*both, strict=True):
            assert one.token_ids == other.token_ids, name
            assert one.activations is not None and other.activations is not None
            assert_close(one.activations.response, other.activations.response)
    assert not counters["graph_break"]


def test_a_mix_that_changes_while_a_recorded_graph_is_replayed(random_vector: Callable[..., Tensor]) -> None:
    plain, compiled = pair()[1], pair()[1]
    compiled.compile()
    found = []
    for model in (plain, compiled):
        pending = iter([each for name, each in ways(random_vector).items() if name != "guided"])
        events = model.stream(REQUESTS, GREEDY, lambda left=pending: next(left, None))  # type: ignore[misc]
        found.append([(event.row, event.token_id) for event in events])
    assert found[0] == found[1]


def test_an_extraction_that_runs_out_of_memory_goes_on_with_fewer_rows() -> None:
    """The card's own shortage: what this process may have of it is held down."""
    wrapper = ModelWrapper(
        make_model("qwen2", max_position_embeddings=4096).to("cuda"), make_tokenizer(), "small"
    )
    prompts = [{"system": None, "user": "word " * 500} for _ in range(64)]
    own = override(Settings(), {"extraction.batch_size": 64, "extraction.max_new_tokens": 4})
    expected = ActivationExtractor(wrapper, own).extract_batch(prompts)
    needed, held = torch.cuda.max_memory_allocated(), torch.cuda.memory_allocated()
    torch.cuda.empty_cache()
    lines: list[str] = []
    _, whole = torch.cuda.mem_get_info()
    torch.cuda.set_per_process_memory_fraction((held + (needed - held) / 3) / whole)
    try:
        vectors = ActivationExtractor(wrapper, own, log=lines.append).extract_batch(prompts)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert lines and all(line.startswith("Not enough memory for ") for line in lines)
    for layer, vector in vectors.items():
        assert_close(vector, expected[layer])


def test_spread_by_accelerate() -> None:
    """As `--device multi` loads it; here all of it is on one card."""
    from accelerate import dispatch_model

    here = pair()[0]
    model = dispatch_model(make_model("qwen2"), {"": 0}, force_hooks=True)
    there = ModelWrapper(model, make_tokenizer(), "tiny")
    for one, other in zip(*(each.generate(REQUESTS, GREEDY) for each in (here, there)), strict=True):
        assert one.token_ids == other.token_ids
