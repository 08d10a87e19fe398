"""Sketches of weights: near for copies, however they are kept, and far for other models."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from accelerate import cpu_offload, disk_offload
from torch import nn
from torch.ao.quantization import quantize_dynamic
from transformers import PreTrainedModel

from persona_tui.core.identity import EQUAL, FAR, ModelSketch
from persona_tui.model import ModelWrapper
from persona_tui.model.fingerprint import sketch

from .conftest import FAMILIES, make_model


def apart(one: PreTrainedModel, other: PreTrainedModel) -> float:
    found = sketch(one).difference(sketch(other))
    assert found is not None
    return found


def with_noise(model: PreTrainedModel, share: float) -> PreTrainedModel:
    generator = torch.Generator().manual_seed(1)
    for each in model.parameters():
        each.data += share * each.data.std().nan_to_num() * torch.randn(each.shape, generator=generator)
    return model


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_tells_copies_from_other_models(family: str) -> None:
    model = make_model(family)
    assert apart(model, make_model(family)) == 0
    assert EQUAL < apart(model, make_model(family).to(torch.bfloat16)) < 0.01
    assert 0.02 < apart(model, with_noise(make_model(family), 0.05)) < 0.1
    assert apart(model, make_model(family, seed=1)) > 2 * FAR


def test_the_same_weights_in_another_precision_are_equal() -> None:
    rounded = make_model("llama").to(torch.bfloat16)
    for dtype in (torch.float32, torch.float64):
        assert apart(rounded, make_model("llama").to(torch.bfloat16).to(dtype)) == 0


@pytest.mark.filterwarnings("ignore")  # torch would have its users use another library
def test_weights_in_eight_bits_are_near() -> None:
    packed = quantize_dynamic(make_model("llama"), {nn.Linear}, torch.qint8)
    assert not isinstance(packed.model.layers[0].mlp.down_proj.weight, torch.Tensor)
    assert EQUAL < apart(make_model("llama"), packed) < 0.1
    assert apart(make_model("llama", seed=1), packed) > 2 * FAR


@pytest.mark.parametrize("how", ["memory", "disk"])
def test_weights_that_lie_elsewhere_are_equal(how: str, tmp_path: Path) -> None:
    model, cpu = make_model("llama"), torch.device("cpu")
    away = cpu_offload(model, cpu) if how == "memory" else disk_offload(model, tmp_path, cpu)
    assert any(each.is_meta for each in away.parameters())
    assert apart(make_model("llama"), away) == 0
    assert any(each.is_meta for each in away.parameters())


def test_it_fits_into_a_file_and_is_read_from_it(wrapper: ModelWrapper) -> None:
    text = json.dumps(wrapper.sketch.record())
    again = ModelSketch.from_metadata(json.loads(text))
    assert again == wrapper.sketch and len(text) < 10_000
    assert str(again.shape) == "qwen2, 3 layers of 32, 260 tokens"


@pytest.mark.parametrize("numbers", [None, 3, {"a": None}, {"a": ["x"]}, {"a": [[1]]}])
def test_an_odd_sketch_counts_as_none(numbers: object) -> None:
    shape = {"architecture": "llama", "hidden_size": 32, "layers": 3, "vocabulary": 260}
    assert ModelSketch.from_metadata({"model_shape": shape, "model_sketch": numbers}) is None
    assert ModelSketch.from_metadata({"model_shape": [shape], "model_sketch": {}}) is None
    assert ModelSketch.from_metadata({"model_sketch": {"a": [1.0]}}) is None


def test_sketches_without_enough_in_common_tell_nothing(wrapper: ModelWrapper) -> None:
    own = wrapper.sketch
    few = ModelSketch(own.shape, {"embeddings": own.numbers["embeddings"]})
    strange = ModelSketch(own.shape, {f"x{name}": each for name, each in own.numbers.items()})
    huge = ModelSketch(own.shape, {name: [1e308] * len(each) for name, each in own.numbers.items()})
    assert own.difference(few) == 0
    assert own.difference(strange) is None and own.difference(huge) is None
