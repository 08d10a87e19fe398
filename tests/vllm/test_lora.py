"""LoRA beside steering: a request with an adapter and a mix is what our engine says with both."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from persona_tui.core.config import Settings
from persona_tui.model import ModelWrapper
from persona_tui.steering.engine import SteeringEngine
from persona_tui.vectors.manager import PersonaManager
from persona_tui.vllm.wire import KEY, MODEL, WORKSPACE

from .conftest import LAYERS, NAME, drawn
from .test_plugin import MIXES, TOKENS, engine, ids_of, ours, said

__all__ = ["engine"]

RANK = 4
MODULES = ("self_attn.q_proj", "self_attn.o_proj", "mlp.down_proj")


def factors(folder: Path) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """By weight of the model, the two factors of what an adapter adds to it."""
    weights = load_file(folder / "model.safetensors")
    names = [f"model.layers.{layer}.{name}" for layer in range(LAYERS) for name in MODULES]
    found = {}
    for seed, name in enumerate(names):
        out, into = weights[f"{name}.weight"].shape
        found[name] = (0.3 * drawn(RANK, into, seed=seed), 0.3 * drawn(out, RANK, seed=seed + 99))
    return found


@pytest.fixture(scope="module")
def adapter(model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("adapter")
    told = {"peft_type": "LORA", "r": RANK, "lora_alpha": RANK, "bias": "none", "task_type": "CAUSAL_LM"}
    modules = sorted({name.split(".")[-1] for name in MODULES})
    (folder / "adapter_config.json").write_text(json.dumps({**told, "target_modules": modules}))
    tensors = {}
    for name, (down, up) in factors(model_folder).items():
        tensors[f"base_model.model.{name}.lora_A.weight"] = down
        tensors[f"base_model.model.{name}.lora_B.weight"] = up
    save_file(tensors, folder / "adapter_model.safetensors")
    return folder


@pytest.fixture(scope="module")
def merged(model_folder: Path, workspace: Path, tmp_path_factory: pytest.TempPathFactory) -> SteeringEngine:
    """Our engine, with what the adapter adds in its weights."""
    folder = tmp_path_factory.mktemp("merged") / NAME
    shutil.copytree(model_folder, folder)
    weights = load_file(folder / "model.safetensors")
    for name, (down, up) in factors(model_folder).items():
        weights[f"{name}.weight"] += up @ down
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    settings = Settings.model_validate({"steering": {"capping_layers": [2, 3]}})
    model = ModelWrapper.load(str(folder), device="cpu", dtype="float32")
    return SteeringEngine(model, PersonaManager(workspace / "vectors" / NAME), settings)


@pytest.fixture(scope="module")
def llm(model_folder: Path, workspace: Path) -> Iterator[Any]:
    from vllm import LLM

    os.environ[WORKSPACE], os.environ[MODEL] = str(workspace), NAME
    yield LLM(
        model=str(model_folder),
        dtype="float32",
        enforce_eager=True,
        max_model_len=256,
        max_num_seqs=8,
        enable_lora=True,
        max_loras=2,  # on a CPU, vLLM gives requests without an adapter what is in the last place: nothing
        max_lora_rank=8,
        block_size=32,
    )
    for name in (WORKSPACE, MODEL):
        del os.environ[name]


def test_an_adapter_and_a_mix(
    llm: Any, adapter: Path, merged: SteeringEngine, engine: SteeringEngine
) -> None:
    """Beside requests without either; each from a cache that knows both."""
    from vllm import SamplingParams, TokensPrompt
    from vllm.lora.request import LoRARequest

    lora = LoRARequest("adapter", 1, str(adapter))
    question = "What is bread? " * 4
    prompt = TokensPrompt(prompt_token_ids=ids_of(engine, question))
    asked = [(mix, each) for mix in MIXES.values() for each in (lora, None)]
    for _ in range(2):  # the second time, prompts are in the cache
        outputs = llm.generate(
            [prompt] * len(asked),
            [
                SamplingParams(temperature=0, max_tokens=TOKENS, logprobs=0, extra_args={KEY: m})
                for m, _ in asked
            ],
            lora_request=[each for _, each in asked],
            use_tqdm=False,
        )
        replies = []
        for (mix, each), output in zip(asked, outputs, strict=True):
            tokens, logprobs = said(output)
            expected, wanted = ours(merged if each else engine, question, mix)
            assert tokens == expected, (mix, each)
            torch.testing.assert_close(torch.tensor(logprobs), torch.tensor(wanted), rtol=0, atol=1e-4)
            replies.append(tuple(tokens))
    assert len(set(replies)) > len(MIXES)
