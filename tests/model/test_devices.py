"""A model whose layers lie on several devices: hooks go where each layer computes, vectors stay the same.

There is one device here, so that layers which lie on the disk until they are needed stand for another one:
both are moved by the same hooks of accelerate, which `device_map="auto"` sets.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from accelerate import cpu_offload, disk_offload, dispatch_model
from torch import Tensor

from persona_tui.model import Cap, Interventions, ModelWrapper, Request, Sampling, conversation
from persona_tui.model.architecture import device_of, find_blocks
from persona_tui.vectors.files import same_model

from .conftest import make_model, make_tokenizer

GREEDY = Sampling(max_new_tokens=12, temperature=0)
REQUESTS = [Request(conversation(text), seed=1) for text in ("Hi", "Tell me about the sea.")]


def spread(how: str, folder: Path) -> ModelWrapper:
    """A model of three layers, kept partly or wholly elsewhere."""
    model = make_model("llama")
    if how == "mixed":
        places: dict[str, str | int] = {"model.embed_tokens": "cpu", "model.norm": "cpu", "lm_head": "cpu"}
        places |= {"model.rotary_emb": "cpu", "model.layers.0": "cpu"}
        places |= {"model.layers.1": "disk", "model.layers.2": "disk"}
        model = dispatch_model(model, places, main_device="cpu", offload_dir=folder, force_hooks=True)
    elif how == "disk":
        model = disk_offload(model, folder, execution_device=torch.device("cpu"))
    else:
        model = cpu_offload(model, execution_device=torch.device("cpu"))
    return ModelWrapper(model, make_tokenizer(), "spread")


@pytest.fixture(params=["mixed", "disk", "memory"])
def elsewhere(request: pytest.FixtureRequest, tmp_path: Path) -> ModelWrapper:
    return spread(request.param, tmp_path)


@pytest.fixture
def here() -> ModelWrapper:
    return ModelWrapper(make_model("llama"), make_tokenizer(), "here")


def test_hooks_find_the_device_that_a_layer_computes_on(elsewhere: ModelWrapper) -> None:
    assert any(parameter.is_meta for parameter in elsewhere.model.parameters())
    assert {device_of(block) for block in find_blocks(elsewhere.model)} == {torch.device("cpu")}
    assert elsewhere.device == torch.device("cpu")


def test_it_is_the_same_model(elsewhere: ModelWrapper, here: ModelWrapper) -> None:
    assert same_model(elsewhere.fingerprint, here.fingerprint)


def test_steering_capping_and_capture(
    elsewhere: ModelWrapper, here: ModelWrapper, random_vector: Callable[..., Tensor]
) -> None:
    axis = random_vector(3, unit=True)
    ways = Interventions({0: random_vector(1), 2: random_vector(2)}, {1: Cap(axis, 1.0), 2: Cap(axis, 2.0)})
    for one, other in zip(
        elsewhere.generate(REQUESTS, GREEDY, ways, [0, 1, 2]),
        here.generate(REQUESTS, GREEDY, ways, [0, 1, 2]),
        strict=True,
    ):
        assert one.token_ids == other.token_ids
        assert one.activations is not None and other.activations is not None
        torch.testing.assert_close(one.activations.response, other.activations.response)
        torch.testing.assert_close(one.activations.prompt_last, other.activations.prompt_last)


def test_scores_and_given_text(elsewhere: ModelWrapper, here: ModelWrapper) -> None:
    pairs = [(conversation("Hi"), "Hello"), (conversation("Who are you?"), "Nobody at all")]
    for one, other in zip(elsewhere.score(pairs), here.score(pairs), strict=True):
        assert one.logprob == pytest.approx(other.logprob, abs=1e-5)
    read = elsewhere.read(["a sentence", "more"], [0, 2]), here.read(["a sentence", "more"], [0, 2])
    for one, other in zip(*read, strict=True):
        torch.testing.assert_close(one.response, other.response)


def test_all_gpus_are_a_device(tmp_path: Path) -> None:
    """Without any GPU, `multi` is the CPU."""
    make_model("llama").save_pretrained(tmp_path)
    make_tokenizer().save_pretrained(tmp_path)
    wrapper = ModelWrapper.load(str(tmp_path), device="multi", dtype="float32")
    assert wrapper.generate(REQUESTS[:1], GREEDY)[0].token_ids
