"""Qwen2, whose attention has biases, answers and reads inside vLLM as it does in our own engine."""

from __future__ import annotations

from pathlib import Path

import pytest
from transformers import Qwen2Config, Qwen2ForCausalLM

from .conftest import NAME, random_model
from .test_engine import (
    inside,
    ours,
    test_a_stream_tells_the_same,
    test_likelihoods,
    test_replies_and_their_means,
    test_what_is_read_of_text,
)

__all__ = [
    "inside",
    "ours",
    "test_a_stream_tells_the_same",
    "test_likelihoods",
    "test_replies_and_their_means",
    "test_what_is_read_of_text",
]


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Qwen2."""
    return random_model(tmp_path_factory.mktemp("qwen") / NAME, Qwen2Config, Qwen2ForCausalLM)
