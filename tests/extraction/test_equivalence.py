"""Extraction against the plainest way to do it, on several architectures.

Extraction answers in padded batches, with a cache, and reads activations while it writes. The plain way
answers one request at a time, and then runs the model a second time over prompt and answer, without a cache.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from persona_tui.core.config import Settings, override
from persona_tui.extraction import ActivationExtractor
from persona_tui.model import ModelWrapper, Request, conversation
from persona_tui.model.text import encode_prompt
from tests.model.conftest import make_model, make_tokenizer

FAMILIES = ("llama", "qwen2-sliding", "qwen3", "gemma2", "gpt2", "falcon-alibi", "mixtral", "olmo2")
QUESTIONS = ("Who are you?", "Hi", "Tell me a rather long story about the sea and the wind.", "Why?", "Sing!")
SYSTEMS = (None, "You are a wise old sage.", "Be brief.")


def requests() -> list[Request]:
    return [
        Request(conversation(question, system), seed=100 * number + place)
        for number, question in enumerate(QUESTIONS)
        for place, system in enumerate(SYSTEMS)
    ]


@pytest.fixture(scope="module", params=FAMILIES)
def wrapper(request: pytest.FixtureRequest) -> ModelWrapper:
    """A model of a family; GPT-2 as a base model without a chat template."""
    return ModelWrapper(make_model(request.param), make_tokenizer(request.param != "gpt2"), request.param)


def second_pass(
    wrapper: ModelWrapper, extractor: ActivationExtractor, layers: list[int]
) -> dict[str, Tensor]:
    """The means over all requests, by recipe, `[layers, hidden]`."""
    response, last = [], []
    for request in requests():
        answer = wrapper.generate([request], extractor.sampling)[0]
        if not answer.token_ids:
            continue  # silence counts for nothing
        prompt = encode_prompt(wrapper.tokenizer, request.messages)
        with torch.no_grad():
            states = wrapper.model(
                torch.tensor([[*prompt, *answer.token_ids]]), output_hidden_states=True, use_cache=False
            ).hidden_states
        found = torch.stack([states[layer + 1][0] for layer in layers])
        response.append(found[:, len(prompt) :].mean(1))
        last.append(found[:, len(prompt) - 1])
    return {"response": torch.stack(response).mean(0), "prompt_last": torch.stack(last).mean(0)}


@pytest.mark.slow
@pytest.mark.parametrize("batch_size", [1, 4, 32])
def test_batches_in_one_pass_are_single_answers_in_two(
    wrapper: ModelWrapper, settings: Settings, batch_size: int
) -> None:
    own = override(settings, {"extraction.batch_size": batch_size, "extraction.target_layers": [0, 1]})
    extractor = ActivationExtractor(wrapper, own)
    sums = extractor.run(requests())
    layers = [layer for layer in extractor.layers if layer < wrapper.n_layers - 1]  # the last is normed there
    assert layers
    for recipe, expected in second_pass(wrapper, extractor, layers).items():
        rows = [extractor.layers.index(layer) for layer in layers]
        torch.testing.assert_close(sums.mean(recipe)[rows], expected, atol=2e-3, rtol=1e-3)
    assert 0 < sums.count <= len(requests())
