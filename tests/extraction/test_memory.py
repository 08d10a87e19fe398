"""Extraction where memory is short."""

from __future__ import annotations

import pytest
import torch

from persona_tui.core.config import Settings, override
from persona_tui.extraction import ActivationExtractor
from persona_tui.model import ModelWrapper, conversation
from tests.model.conftest import make_model, make_tokenizer

PROMPTS = [{"system": None, "user": "word " * count} for count in (1, 9, 4, 2, 7, 3, 8, 5)]


@pytest.mark.slow
@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:121] . DefaultCPUAllocator: can't allocate memory: you"),
        MemoryError(),
    ],
    ids=["cuda", "cpu", "python"],
)
def test_extraction_goes_on_after_running_out_of_memory(settings: Settings, error: Exception) -> None:
    wrapper = ModelWrapper(make_model("qwen2", max_position_embeddings=512), make_tokenizer(), "small")
    own = override(settings, {"extraction.batch_size": 8})
    expected = ActivationExtractor(wrapper, own).extract_batch(PROMPTS)
    lines: list[str] = []

    def refuse(module: torch.nn.Module, args: tuple[torch.Tensor, ...]) -> None:
        if len(args[0]) > 3:
            raise error

    handle = wrapper.model.get_input_embeddings().register_forward_pre_hook(refuse)
    extractor = ActivationExtractor(wrapper, own, log=lines.append)
    vectors = extractor.extract_batch(PROMPTS)
    handle.remove()
    for layer, vector in vectors.items():
        torch.testing.assert_close(vector, expected[layer], atol=1e-4, rtol=1e-4)
    assert lines[0] == "Not enough memory for 8 responses at a time: continuing with 4."
    assert wrapper.score([(conversation("Hi"), "Yes")])
