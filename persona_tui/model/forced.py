"""Running a model over text that is already there: activations and log-likelihoods, batched by length.

Rows are padded on the right. Every position looks only backwards, so no real token ever sees the padding, and
neither a mask nor position ids are needed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import PreTrainedModel

from persona_tui.core.errors import GenerationError
from persona_tui.model.architecture import (
    NOT_FINITE,
    accepted_arguments,
    clear_memory_errors,
    device_of,
    find_decoder,
    text_config,
)
from persona_tui.model.batching import MemoryLimit, batches
from persona_tui.model.residual import ResidualHooks, StopForward

T = TypeVar("T")

# Tokens in one forward pass, padding included. On a CPU, what a layer computes for more of them does not fit
# into its caches: on the tiny model and at Qwen2.5-0.5B's shape, 8192 took half as long again as 512.
_TOKEN_BUDGET = 8192
_TOKEN_BUDGET_ON_CPU = 512
_LOGIT_BUDGET = 2**28  # numbers in one pass' logits: 1 GiB in float32


@dataclass(frozen=True)
class Passage:
    """Token ids, and which of them the question is about.

    Attributes:
        ids: the whole text.
        start: the first token that counts.
        pick: the position to read on its own.
        stop: the token after the last one that counts; None = all up to the end of the text do.
        parts: stretches that are read on their own.
    """

    ids: list[int]
    start: int
    pick: int
    stop: int | None = None
    parts: Sequence[range] = ()


def in_batches(
    passages: Sequence[Passage], most_tokens: int, do: Callable[[list[int]], T]
) -> Iterator[tuple[list[int], T]]:
    """Do passages of like length together; the numbers of each piece, and its result.

    Raises:
        MemoryShortage: a single passage does not fit.
    """
    lengths = [len(passage.ids) for passage in passages]
    memory = MemoryLimit()
    for batch in batches(lengths, most_tokens=most_tokens):
        yield from memory.run(batch, lengths, do)


def padded(passages: Sequence[Passage], device: torch.device) -> Tensor:
    """Return the passages as one batch, `[rows, tokens]`, each filled up on the right with its last token."""
    width = max(len(passage.ids) for passage in passages)
    rows = [passage.ids + [passage.ids[-1]] * (width - len(passage.ids)) for passage in passages]
    return torch.tensor(rows, device=device)


@torch.inference_mode()
def read_passages(
    model: PreTrainedModel, passages: Sequence[Passage], hooks: ResidualHooks
) -> tuple[Tensor, Tensor]:
    """Return the mean over the counted tokens, and the picked token, of one batch.

    Both are `[rows, layers, hidden]`, float32, on the CPU. The language-model head is not run, nor the layers
    after the last one that the hooks want.
    """
    assert hooks.capture is not None
    decoder = find_decoder(model)
    tokens = padded(passages, device_of(model.get_input_embeddings()))
    weights = torch.zeros(tokens.shape)
    for row, passage in enumerate(passages):
        weights[row, passage.start : passage.stop or len(passage.ids)] = 1
    parts = [each.parts for each in passages] if any(each.parts for each in passages) else ()
    picked = torch.tensor([each.pick for each in passages])
    hooks.capture.watch(torch.arange(len(passages)), weights, picked, parts)
    try:
        with hooks, clear_memory_errors():
            decoder(input_ids=tokens, use_cache=False)
    except StopForward:
        pass
    return hooks.capture.means(), hooks.capture.picked()


@torch.inference_mode()
def response_logprobs(
    model: PreTrainedModel, passages: Sequence[Passage], hooks: ResidualHooks
) -> list[float]:
    """Each passage's sum of the log-probabilities of its counted tokens, in nats, for one batch.

    The hooks steer and cap every position, the prompt's included, as they do while a reply is written.
    """
    with hooks, clear_memory_errors():
        sums = [
            _sum(logits, passage)
            for logits, passage in zip(response_logits(model, passages), passages, strict=True)
        ]
    summed = torch.stack(sums)
    if summed.isnan().any():
        raise GenerationError(NOT_FINITE)
    result: list[float] = summed.tolist()
    return result


def response_logits(model: PreTrainedModel, passages: Sequence[Passage]) -> list[Tensor]:
    """Return what the model expects at every counted token of a batch: by passage `[tokens, vocabulary]`."""
    tokens = padded(passages, device_of(model.get_input_embeddings()))
    first = min(passage.start for passage in passages) - 1
    keep = torch.arange(first, tokens.shape[1] - 1, device=tokens.device)
    if "logits_to_keep" in accepted_arguments(model):
        logits = model(input_ids=tokens, use_cache=False, logits_to_keep=keep).logits
    else:
        logits = model(input_ids=tokens, use_cache=False).logits[:, keep]
    return [
        row[passage.start - 1 - first : len(passage.ids) - 1 - first]
        for row, passage in zip(logits, passages, strict=True)
    ]


def _sum(logits: Tensor, passage: Passage) -> Tensor:
    chosen = torch.tensor(passage.ids[passage.start :], device=logits.device)
    return -cross_entropy(logits.float(), chosen, reduction="sum")


def token_budget(model: PreTrainedModel) -> int:
    """Return how many tokens a pass should hold, padding included."""
    on_cpu = device_of(model.get_input_embeddings()).type == "cpu"
    return _TOKEN_BUDGET_ON_CPU if on_cpu else _TOKEN_BUDGET


def logit_token_budget(model: PreTrainedModel) -> int:
    """Return how many tokens a pass may hold when it computes logits."""
    return max(1, min(token_budget(model), _LOGIT_BUDGET // int(text_config(model).vocab_size)))
