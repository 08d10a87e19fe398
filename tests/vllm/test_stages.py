"""Two pipeline stages, each with half of the layers, say and read what one process does."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from persona_tui.core.sections import VllmSettings
from persona_tui.vllm.engine import VllmModel

from .test_engine import (
    ours,
    test_a_mix_that_changes_while_it_speaks,
    test_a_reply_is_read_again,
    test_a_stream_tells_the_same,
    test_a_watch_reads_in_the_same_passes,
    test_likelihoods,
    test_replies_and_their_means,
    test_replies_are_added_up_where_they_were_written,
    test_text_is_read_in_the_middle_of_a_stream,
    test_the_same_seed_has_the_same_reply,
    test_what_is_read_of_text,
)

__all__ = [
    "ours",
    "test_a_mix_that_changes_while_it_speaks",
    "test_a_reply_is_read_again",
    "test_a_stream_tells_the_same",
    "test_a_watch_reads_in_the_same_passes",
    "test_likelihoods",
    "test_replies_and_their_means",
    "test_replies_are_added_up_where_they_were_written",
    "test_text_is_read_in_the_middle_of_a_stream",
    "test_the_same_seed_has_the_same_reply",
    "test_what_is_read_of_text",
]

pytestmark = pytest.mark.skipif(
    os.environ.get("VLLM_USE_V2_MODEL_RUNNER") != "1",
    reason="on a CPU, only vLLM's second runner has stages: `make test-vllm` runs these with it",
)


@pytest.fixture(scope="module")
def inside(model_folder: Path) -> Iterator[VllmModel]:
    settings = VllmSettings(requests=16, context=256, eager=True, pipeline_parallel=2, cache=0.1)
    model = VllmModel.start(str(model_folder), dtype="float32", settings=settings)
    yield model
    model.driver.shut_down()
