"""Weights in 8 and in 4 bits, on the CPU: the same hooks and fingerprint, nearly the same activations."""

from __future__ import annotations

import pytest
import torch

from persona_tui.model import Cap, Interventions, ModelWrapper, Request, Sampling, conversation
from persona_tui.vectors.files import same_model

pytest.importorskip("bitsandbytes")

GREEDY = Sampling(max_new_tokens=8, temperature=0)
REQUESTS = [Request(conversation(text), seed=1) for text in ("Who are you?", "Tell me about the sea.")]


@pytest.fixture(scope="module")
def whole() -> ModelWrapper:
    return ModelWrapper.load("builtin", device="cpu")


@pytest.fixture(scope="module", params=["8bit", "4bit"])
def quantized(request: pytest.FixtureRequest) -> ModelWrapper:
    return ModelWrapper.load("builtin", device="cpu", quantization=request.param)


def test_it_counts_as_the_same_model(quantized: ModelWrapper, whole: ModelWrapper) -> None:
    assert same_model(quantized.fingerprint, whole.fingerprint)
    assert quantized.identity != whole.identity


def test_activations_are_nearly_the_same(quantized: ModelWrapper, whole: ModelWrapper) -> None:
    layers = range(whole.n_layers)
    for one, other in zip(
        quantized.read([each.messages for each in REQUESTS], layers),
        whole.read([each.messages for each in REQUESTS], layers),
        strict=True,
    ):
        assert torch.cosine_similarity(one.response, other.response, dim=-1).min() > 0.97


def test_steering_adds_exactly_the_vector(quantized: ModelWrapper) -> None:
    vector = torch.randn(quantized.hidden_size, generator=torch.Generator().manual_seed(0))
    ways = Interventions(steering={1: vector})
    plain, steered = quantized.read(["a sentence"], [1])[0], quantized.read(["a sentence"], [1], ways)[0]
    torch.testing.assert_close(steered.response - plain.response, vector[None], rtol=1e-3, atol=1e-3)


def test_capping_and_capture_while_writing(
    quantized: ModelWrapper, capfd: pytest.CaptureFixture[str]
) -> None:
    axis = torch.nn.functional.normalize(torch.ones(quantized.hidden_size), dim=0)
    ways = Interventions(capping={2: Cap(axis, 5.0)})
    for generation in quantized.generate(REQUESTS, GREEDY, ways, capture_layers=[2]):
        assert generation.activations is not None
        assert float(generation.activations.prompt_last[0] @ axis) >= 5 - 0.05
    written = capfd.readouterr()
    assert written.out == written.err == ""  # a library's warnings would tear the screen
