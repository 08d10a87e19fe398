"""Our files read by other projects' own code, and theirs by ours; each where that project is installed.

pip install --no-deps repeng saklas hotwire-vllm steering-vectors
"""

from __future__ import annotations

import importlib
import json
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from persona_tui.formats.read import read_foreign
from persona_tui.formats.write import Outgoing, write_foreign
from persona_tui.model import Cap, Interventions
from persona_tui.model.architecture import find_blocks
from persona_tui.model.residual import ResidualHooks

LAYERS, WIDTH, STRENGTH = 6, 16, 0.3


def installed(name: str) -> ModuleType:
    """A project's module; where it is missing, or does not load beside these libraries, the test skips."""
    try:
        return importlib.import_module(name)
    except Exception as error:  # an older one may fail in any way
        pytest.skip(f"{name}: {type(error).__name__}: {error}")


@pytest.fixture
def vectors() -> dict[int, Tensor]:
    noise = torch.Generator().manual_seed(0)
    return {layer: torch.randn(WIDTH, generator=noise) for layer in (1, 2, 4)}


@pytest.fixture
def leaving(vectors: dict[int, Tensor]) -> Outgoing:
    return Outgoing("sage", "persona", vectors, vectors, STRENGTH, LAYERS, "a model", "llama")


def same(found: dict[int, Any], vectors: dict[int, Tensor], scale: float = 1.0) -> None:
    assert sorted(found) == sorted(vectors)
    for layer, vector in vectors.items():
        torch.testing.assert_close(torch.as_tensor(np.asarray(found[layer]).copy()), scale * vector)


def test_repeng(leaving: Outgoing, vectors: dict[int, Tensor], tmp_path: Path) -> None:
    control = installed("repeng").ControlVector
    read = control.import_gguf(write_foreign(leaving, "gguf", tmp_path / "v.gguf").path)
    assert read.model_type == "llama"
    same(read.directions, vectors, STRENGTH)
    theirs = control(model_type="llama", directions={at: each.numpy() for at, each in vectors.items()})
    theirs.export_gguf(tmp_path / "theirs.gguf")
    (back,) = read_foreign(tmp_path / "theirs.gguf", LAYERS)
    same(dict(back.vectors), vectors)


def test_saklas(leaving: Outgoing, vectors: dict[int, Tensor], tmp_path: Path) -> None:
    files = installed("saklas.io.gguf_io")
    profile, metadata = files.read_gguf_profile(write_foreign(leaving, "gguf", tmp_path / "v.gguf").path)
    assert metadata["model_hint"] == "llama"
    same(profile, vectors, STRENGTH)
    files.write_gguf_profile(vectors, tmp_path / "theirs.gguf", model_hint="llama")
    (back,) = read_foreign(tmp_path / "theirs.gguf", LAYERS)
    same(dict(back.vectors), vectors)


def test_hotwire(leaving: Outgoing, vectors: dict[int, Tensor], tmp_path: Path) -> None:
    state = installed("hotwire._state")
    written = write_foreign(leaving, "hotwire", tmp_path / "sage.pt")
    assert written.request is not None
    slots = state.SteerState(LAYERS, WIDTH, 8, torch.device("cpu"), torch.float32, 8)
    slots.load_store(str(tmp_path))
    asked = state.parse_spec(written.request["vllm_xargs"]["hotwire"])
    assert asked == json.loads(written.request["vllm_xargs"]["hotwire"]) and len(asked) == len(vectors)
    for each in asked:
        slot = slots.slot_for(each["id"], each["layer"], each["scale"])
        added = slots.bank.bank[slot] * slots.bank.scales[slot]
        torch.testing.assert_close(added, STRENGTH * vectors[each["layer"]])


@pytest.fixture
def model() -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=32,
        hidden_size=WIDTH,
        intermediate_size=32,
        num_hidden_layers=LAYERS,
        num_attention_heads=2,
        num_key_value_heads=2,
    )
    return LlamaForCausalLM(config).eval()


IDS = torch.tensor([[3, 5, 7, 9]])


def logits(model: LlamaForCausalLM, interventions: Interventions) -> Tensor:
    """What the model says with our interventions."""
    hooks = ResidualHooks(find_blocks(model), WIDTH, 1)
    hooks.apply(interventions)
    with torch.no_grad(), hooks:
        return model(IDS).logits


def test_assistant_axis(
    leaving: Outgoing, vectors: dict[int, Tensor], model: LlamaForCausalLM, tmp_path: Path
) -> None:
    """Not on PyPI: github.com/safety-research/assistant-axis, its folder on PYTHONPATH."""
    library = installed("assistant_axis")
    unit = {layer: vector / vector.norm() for layer, vector in vectors.items()}
    axis = replace(
        leaving, name="assistant", kind="axis", vectors=unit, raw=unit, floors=dict.fromkeys(unit, 0.4)
    )
    rows = library.load_axis(str(write_foreign(axis, "assistant-axis", tmp_path / "axis.pt").path))
    same({layer: rows[layer] for layer in unit}, unit)
    role = torch.load(write_foreign(leaving, "assistant-axis", tmp_path / "r.pt").path, weights_only=True)
    steered = library.ActivationSteering(
        model,
        [role["vector"][layer] for layer in vectors],
        coefficients=[STRENGTH] * len(vectors),
        layer_indices=list(vectors),
    )
    with torch.no_grad(), steered:
        added = model(IDS).logits
    own = logits(model, Interventions({layer: STRENGTH * each for layer, each in vectors.items()}))
    torch.testing.assert_close(own, added, rtol=1e-4, atol=1e-5)
    config = library.load_capping_config(str(write_foreign(axis, "capping", tmp_path / "caps.pt").path))
    with torch.no_grad(), library.build_capping_steerer(model, config, "assistant"):
        capped = model(IDS).logits
    floors = Interventions({}, {layer: Cap(each, 0.4) for layer, each in unit.items()})
    torch.testing.assert_close(logits(model, floors), capped, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(capped, logits(model, Interventions({})))


def test_steering_vectors(model: LlamaForCausalLM, vectors: dict[int, Tensor]) -> None:
    """The same direction added by that library and by ours changes the logits alike."""
    library = installed("steering_vectors")
    with torch.no_grad(), library.SteeringVector(dict(vectors)).apply(model, multiplier=STRENGTH):
        theirs = model(IDS).logits
    ours = logits(model, Interventions({layer: STRENGTH * each for layer, each in vectors.items()}))
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
