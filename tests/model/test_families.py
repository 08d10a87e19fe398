"""What must hold for every architecture: on each, the same few properties."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from persona_tui.model import Cap, Generation, Interventions, ModelWrapper, Request, Sampling
from persona_tui.model.architecture import find_blocks
from persona_tui.model.distil import Distillation, Lesson
from persona_tui.model.forced import Passage
from tests.model.architectures import HIDDEN, small_config

GREEDY = Sampling(max_new_tokens=20, temperature=0)
QUESTIONS = [
    "What is bread?",
    "Hi",
    "Tell me a rather long story about the sea, the wind, and an old boat that nobody would sail.",
]
Vectors = Callable[..., Tensor]


def requests(texts: list[str] = QUESTIONS) -> list[Request]:
    return [Request([{"role": "user", "content": text}], seed=at) for at, text in enumerate(texts)]


def hidden_states(wrapper: ModelWrapper, ids: list[int]) -> tuple[Tensor, ...]:
    with torch.no_grad():
        return wrapper.model(torch.tensor([ids]), output_hidden_states=True, use_cache=False).hidden_states


def prompt_ids(wrapper: ModelWrapper, request: Request) -> list[int]:
    return wrapper.tokenizer(wrapper.render(request.messages), add_special_tokens=False)["input_ids"]


def hooks_on(wrapper: ModelWrapper) -> list[object]:
    return [hook for block in find_blocks(wrapper.model) for hook in block._forward_hooks.values()]


def assert_same(one: Generation, other: Generation) -> None:
    assert one.token_ids == other.token_ids
    assert one.activations is not None and other.activations is not None
    torch.testing.assert_close(one.activations.response, other.activations.response, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(
        one.activations.prompt_last, other.activations.prompt_last, rtol=1e-3, atol=1e-3
    )


def test_finds_every_block(any_wrapper: ModelWrapper) -> None:
    found = find_blocks(any_wrapper.model)
    assert len(found) == any_wrapper.n_layers >= 2
    assert any_wrapper.hidden_size == 32


def test_activations_are_the_block_outputs(any_wrapper: ModelWrapper) -> None:
    generation = any_wrapper.generate(requests()[:1], GREEDY, capture_layers=[0, 1, 2])[0]
    read = generation.activations
    assert read is not None and read.response.shape == read.prompt_last.shape == (3, 32)
    assert read.n_tokens == len(generation.token_ids) > 0
    prompt = prompt_ids(any_wrapper, requests()[0])
    states = hidden_states(any_wrapper, prompt + generation.token_ids)
    for layer in (0, 1):  # hidden_states end with the final norm's output, which is no block's
        expected = states[layer + 1][0]
        torch.testing.assert_close(read.prompt_last[layer], expected[len(prompt) - 1], rtol=1e-3, atol=1e-3)
        torch.testing.assert_close(
            read.response[layer], expected[len(prompt) :].mean(0), rtol=1e-3, atol=1e-3
        )


def test_greedy_text_is_that_of_transformers(any_wrapper: ModelWrapper) -> None:
    for request, generation in zip(requests(), any_wrapper.generate(requests(), GREEDY), strict=True):
        prompt = torch.tensor([prompt_ids(any_wrapper, request)])
        with torch.no_grad():
            expected = any_wrapper.model.generate(
                prompt,
                attention_mask=torch.ones_like(prompt),
                max_new_tokens=20,
                do_sample=False,
                eos_token_id=2,
            )
        written = [token for token in expected[0, prompt.shape[1] :].tolist() if token != 2]
        assert generation.token_ids == written


def test_a_batch_is_the_rows_one_by_one(any_wrapper: ModelWrapper) -> None:
    sampling = Sampling(max_new_tokens=30, temperature=1.0)
    together = any_wrapper.generate(requests(), sampling, capture_layers=[0, 1, 2])
    for request, row in zip(requests(), together, strict=True):
        assert_same(row, any_wrapper.generate([request], sampling, capture_layers=[0, 1, 2])[0])


def test_padding_on_the_left_changes_nothing(any_wrapper: ModelWrapper) -> None:
    """A short prompt beside a long one, which fills most of its row with padding, and alone."""
    short, long = requests(["Hi", "Tell me all about it, " * 5])
    padded = any_wrapper.generate([short, long], GREEDY, capture_layers=[0, 1, 2])[0]
    assert_same(padded, any_wrapper.generate([short], GREEDY, capture_layers=[0, 1, 2])[0])


def test_a_cache_changes_nothing(any_wrapper: ModelWrapper) -> None:
    """Every token is the likeliest one of a pass over all that precedes it, without a cache."""
    request = requests()[0]
    sampling = Sampling(max_new_tokens=8, temperature=0)
    ids = prompt_ids(any_wrapper, request)
    for event in any_wrapper.stream([request], sampling):
        with torch.no_grad():
            logits = any_wrapper.model(torch.tensor([ids]), use_cache=False).logits[0, -1].float()
        assert event.token_id == int(logits.argmax())
        expected = float(logits.log_softmax(-1)[event.token_id])
        torch.testing.assert_close(event.logprob, expected, rtol=1e-3, atol=1e-3)
        ids.append(event.token_id)


def test_strength_zero_changes_nothing(any_wrapper: ModelWrapper, random_vector: Vectors) -> None:
    nothing = Interventions(
        steering={layer: 0.0 * random_vector(layer) for layer in range(3)},
        capping={1: Cap(random_vector(1, unit=True), float("-inf"))},
    )
    plain = any_wrapper.generate(requests(), GREEDY, capture_layers=[0, 1, 2])
    steered = any_wrapper.generate(requests(), GREEDY, nothing, capture_layers=[0, 1, 2])
    for one, other in zip(plain, steered, strict=True):
        assert one.token_ids == other.token_ids
        assert one.activations is not None and other.activations is not None
        assert torch.equal(one.activations.response, other.activations.response)


def test_steering_adds_the_vector(any_wrapper: ModelWrapper, random_vector: Vectors) -> None:
    vector = random_vector(5)
    plain = any_wrapper.read(["a sentence"], [1])[0]
    steered = any_wrapper.read(["a sentence"], [1], Interventions(steering={1: vector}))[0]
    torch.testing.assert_close(steered.response - plain.response, vector[None], rtol=1e-3, atol=1e-3)


def test_no_token_stays_below_the_floor(any_wrapper: ModelWrapper, random_vector: Vectors) -> None:
    axis, floor = random_vector(3, unit=True), 2.0
    capping = Interventions(steering={1: -axis}, capping={1: Cap(axis, floor), 2: Cap(axis, floor)})
    lowest: list[float] = []

    def look(module: torch.nn.Module, args: tuple[Tensor, ...], kwargs: dict[str, Tensor]) -> None:
        hidden = args[0] if args else kwargs["hidden_states"]
        lowest.append(float((hidden @ axis).min()))

    handle = find_blocks(any_wrapper.model)[2].register_forward_pre_hook(look, with_kwargs=True)
    events = list(any_wrapper.stream(requests(), GREEDY, capping, axes={"axis": {1: axis, 2: axis}}))
    handle.remove()
    assert min(lowest) >= floor - 1e-3
    assert min(event.projections["axis"] for event in events) >= floor - 1e-3
    assert any(event.capped > 0 for event in events)
    assert all(type(hook).__module__ != "persona_tui.model.residual" for hook in hooks_on(any_wrapper))


def test_one_pass_reads_what_a_second_would(any_wrapper: ModelWrapper, random_vector: Vectors) -> None:
    interventions = Interventions(
        steering={1: random_vector(7)}, capping={2: Cap(random_vector(8, unit=True), 1.0)}
    )
    single = any_wrapper.generate(requests(), GREEDY, interventions, capture_layers=[0, 1, 2])
    for request, row in zip(requests(), single, strict=True):
        prompt = prompt_ids(any_wrapper, request)
        passage = Passage([*prompt, *row.token_ids], len(prompt), len(prompt) - 1)
        again = any_wrapper._read([passage], [0, 1, 2], interventions)[0]
        assert row.activations is not None
        torch.testing.assert_close(row.activations.response, again.response, rtol=1e-3, atol=1e-3)
        torch.testing.assert_close(row.activations.prompt_last, again.prompt_last, rtol=1e-3, atol=1e-3)


def test_each_row_can_have_its_own_strength(any_wrapper: ModelWrapper, random_vector: Vectors) -> None:
    vector, axis = random_vector(9), random_vector(10, unit=True)
    strengths = torch.tensor([0.0, 0.5, -1.0])
    caps = [Cap(axis, 1.0), None, Cap(-axis, 0.5)]
    together = any_wrapper.generate(
        requests(),
        GREEDY,
        Interventions(steering={1: strengths[:, None] * vector}, capping={1: caps}),
        capture_layers=[0, 1, 2],
    )
    for request, strength, cap, row in zip(requests(), strengths, caps, together, strict=True):
        own = Interventions({1: strength * vector}, {} if cap is None else {1: cap})
        assert_same(row, any_wrapper.generate([request], GREEDY, own, capture_layers=[0, 1, 2])[0])


def test_vectors_are_fitted_to_what_steering_with_them_does(
    any_wrapper: ModelWrapper, random_vector: Vectors
) -> None:
    """Fitting keeps what the lower blocks compute, and begins above them."""
    asked, reply = requests()[0].messages, "A loaf of it, warm."
    taught = [{"role": "system", "content": "You are a sailor."}, *asked]
    added = {layer: 0.1 * random_vector(layer) for layer in (1, 2)}
    teaching = any_wrapper.distillation([(taught, asked, reply)])
    for seed in range(2):  # the second time with what was kept
        _, divergence = teaching.improved(added, rate=0.0, seed=seed)
        ids = any_wrapper.tokenizer(reply, add_special_tokens=False)["input_ids"]
        logprobs = [
            _logprobs(any_wrapper, any_wrapper.encode(messages), ids, ways)
            for messages, ways in ((taught, {}), (asked, added))
        ]
        top = logprobs[0].topk(min(64, logprobs[0].shape[-1] - 1))
        ours = logprobs[1].gather(-1, top.indices)
        left = [(1 - each.exp().sum(-1)).clamp(min=1e-6) for each in (top.values, ours)]
        expected = (top.values.exp() * (top.values - ours)).sum(-1) + left[0] * (left[0] / left[1]).log()
        assert abs(divergence - float(expected.mean())) < 1e-4


def _logprobs(wrapper: ModelWrapper, before: list[int], ids: list[int], added: dict[int, Tensor]) -> Tensor:
    def adder(vector: Tensor) -> Callable[..., object]:
        def add(module: object, args: object, output: object) -> object:
            return (output[0] + vector, *output[1:]) if isinstance(output, tuple) else output + vector

        return add

    blocks = find_blocks(wrapper.model)
    handles = [blocks[layer].register_forward_hook(adder(vector)) for layer, vector in added.items()]
    with torch.no_grad():
        logits = wrapper.model(torch.tensor([before + ids]), use_cache=False).logits[0, len(before) - 1 : -1]
    for handle in handles:
        handle.remove()
    return logits.float().log_softmax(-1)


@pytest.mark.parametrize("shared", [0, 1])
def test_fitting_begins_above_only_where_hidden_states_are_all_that_goes_up(shared: int) -> None:
    """Gemma 3n carries several streams, and its last blocks may read the keys of lower ones."""
    config = small_config("gemma3n_text")
    config.num_kv_shared_layers = shared
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    passages = [Passage([*range(5, 5 + length)], 2, 1) for length in (6, 8, 9)]
    same = Distillation(model, find_blocks(model), [Lesson(each, each, each) for each in passages])
    for seed in range(2):  # student and teacher read the same, so that nothing but a mistake parts them
        _, divergence = same.improved({1: torch.zeros(HIDDEN)}, rate=0.1, seed=seed)
        assert abs(divergence) < 1e-5
