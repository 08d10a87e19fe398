"""Packed weights compute what plain ones do, are the same to whoever reads them, and are held once."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from transformers import Cache, DynamicCache, PreTrainedModel

from persona_tui.model import Interventions, ModelWrapper, Request, Sampling, conversation
from persona_tui.model.architecture import append_rows, new_cache
from persona_tui.model.distil import Distillation, Lesson
from persona_tui.model.fingerprint import fingerprint, sketch
from persona_tui.model.forced import Passage
from persona_tui.model.packed import PackedLinear, pack, packed, unpack
from persona_tui.model.trial import try_model

from .conftest import FAMILIES, make_model, make_tokenizer

pytestmark = pytest.mark.skipif(
    not torch.backends.mkldnn.is_available() or torch.backends.cpu.get_cpu_capability() == "DEFAULT",
    reason="there is no oneDNN",
)
REQUESTS = [Request(conversation(text), seed=3) for text in ("Hi", "Tell me about the sea.", "And you?")]


def frozen(family: str, **changes: object) -> PreTrainedModel:
    """As `loader.load` leaves a model."""
    return make_model(family, **changes).requires_grad_(False)


def packed_layers(model: PreTrainedModel) -> list[PackedLinear]:
    return [each for each in model.modules() if isinstance(each, PackedLinear)]


@pytest.mark.parametrize("family", FAMILIES)
def test_the_same_logits(family: str) -> None:
    model = frozen(family)
    ids = torch.randint(4, 250, (3, 20), generator=torch.Generator().manual_seed(0))
    plain = model(ids).logits
    with packed(model):
        assert (
            packed_layers(model) or family == "gpt2"
        )  # which has none of torch's linear layers but its head
        torch.testing.assert_close(model(ids).logits, plain, rtol=1e-5, atol=1e-5 * float(plain.abs().max()))
    assert torch.equal(model(ids).logits, plain) and not packed_layers(model)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_same_replies_and_activations(dtype: torch.dtype, random_vector: Callable[..., Tensor]) -> None:
    model = frozen("llama").to(dtype)
    wrapper = ModelWrapper(model, make_tokenizer(), "tiny")
    way = Interventions({1: random_vector(1)}, plausibility=0.1)

    def written() -> tuple[list[list[int]], list[list[float]]]:
        events = list(wrapper.stream(REQUESTS, Sampling(24, 0.9, 0.95), way))
        rows = [[each.token_id for each in events if each.row == row] for row in range(len(REQUESTS))]
        done = wrapper.generate(REQUESTS, Sampling(24, 0.9, 0.95), way, [0, 2])
        assert all(each.activations is not None for each in done)
        return rows, [each.activations.response.flatten().tolist() for each in done if each.activations]

    plain = written()
    with packed(model):
        found = written()
    assert found[0] == plain[0]
    close = 1e-4 if dtype == torch.float32 else 0.05
    for one, other in zip(found[1], plain[1], strict=True):
        assert one == pytest.approx(other, rel=close, abs=close)


def test_whoever_reads_the_weights_finds_them() -> None:
    model = frozen("qwen2", tie_word_embeddings=False)
    plain = {name: each.clone() for name, each in model.state_dict().items()}
    told, drawn = fingerprint(model), sketch(model)
    numbers = sum(each.numel() for each in model.parameters())
    pack(model)
    assert fingerprint(model) == told and sketch(model) == drawn
    assert sum(each.numel() for each in model.parameters()) == numbers
    found = model.state_dict()
    assert found.keys() == plain.keys() and all(torch.equal(found[name], plain[name]) for name in plain)
    unpack(model)
    assert all(torch.equal(each, plain[name]) for name, each in model.named_parameters())


def test_nothing_is_held_twice() -> None:
    model = frozen("qwen2", tie_word_embeddings=True)
    pack(model)
    head, embedding = model.get_output_embeddings(), model.get_input_embeddings()
    assert isinstance(head, PackedLinear) and head.weight is embedding.weight
    assert not head.weight.is_mkldnn
    others = [each for each in packed_layers(model) if each is not head]
    assert others and all(each.weight.is_mkldnn and not each._buffers for each in others)


def test_what_something_else_acts_on_is_left_alone() -> None:
    model = make_model("llama")
    layers = model.model.layers
    model.requires_grad_(False)
    layers[0].mlp.up_proj.weight.requires_grad_(True)
    layers[0].mlp.down_proj.register_forward_hook(lambda module, args, output: output)
    layers[1].mlp.up_proj.to(torch.float16)
    pack(model)
    left = {name for name, each in model.named_modules() if type(each) is nn.Linear}
    assert left == {f"model.layers.{name}" for name in ("0.mlp.up_proj", "0.mlp.down_proj", "1.mlp.up_proj")}


@pytest.mark.parametrize("family", ["qwen2", "gemma2"])
def test_gradients_go_through(family: str, random_vector: Callable[..., Tensor]) -> None:
    model = frozen(family)
    ids = torch.randint(4, 250, (6, 20), generator=torch.Generator().manual_seed(0)).tolist()
    lessons = [Lesson(Passage(row, 12, 11), *[Passage(row[4:], 8, 7)] * 2) for row in ids]
    start = {1: 0.1 * random_vector(1), 2: 0.1 * random_vector(2)}

    def learned() -> tuple[dict[int, Tensor], float]:
        return Distillation(model, model.model.layers, lessons).improved(start, 0.3, seed=0)

    plain, met = learned()
    with packed(model):
        found, again = learned()
    assert again == pytest.approx(met, rel=1e-4)
    for layer in start:
        assert not torch.equal(found[layer], start[layer])
        torch.testing.assert_close(found[layer], plain[layer], rtol=1e-3, atol=1e-4)


def test_an_architecture_that_does_more_with_its_weights_is_not_packed() -> None:
    tokenizer = make_tokenizer()
    assert try_model(frozen("llama"), tokenizer).packs
    odd = frozen("llama")
    layer = odd.model.layers[0].mlp.up_proj
    odd.model.norm.register_forward_hook(lambda module, args, out: out + (out @ layer.weight.T)[..., :1])
    trial = try_model(odd, tokenizer)
    assert trial.reason == "" and not trial.packs and not packed_layers(odd)


@pytest.mark.parametrize("family", ["llama", "qwen2-sliding"])
def test_a_cache_with_room_is_like_one_without(family: str) -> None:
    model = frozen(family)
    caches: list[Cache] = [new_cache(model.config), DynamicCache(config=model.config)]
    ids = torch.randint(4, 250, (4, 100), generator=torch.Generator().manual_seed(0))
    seen: list[list[Tensor]] = [[], []]
    for cache, logits in zip(caches, seen, strict=True):
        rows = torch.arange(4)
        for start, stop in ((0, 7), *((at, at + 1) for at in range(7, 100))):
            if start in (20, 80):
                rows = rows[1:]
                cache.reorder_cache(torch.arange(1, len(rows) + 1))
            if start == 60:
                other = DynamicCache(config=model.config)
                model(ids[:1, :60], cache=other, use_cache=True)
                append_rows(cache, other)
                rows = torch.cat([rows, torch.tensor([0])])
            logits.append(model(ids[rows, start:stop], cache=cache, use_cache=True).logits[:, -1])
    for one, other in zip(*seen, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)
