"""Reading again what was written: the projections at every position of a text, in a pass or a few.

A text that was written with one mix takes a single pass. Where the mix changed, another pass goes on from the
keys and values of the one before, as the writing did.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from persona_tui.core.errors import GenerationError
from persona_tui.model.architecture import (
    NOT_FINITE,
    accepted_arguments,
    cache_argument,
    clear_memory_errors,
    device_of,
    find_decoder,
)
from persona_tui.model.request import Interventions
from persona_tui.model.residual import ResidualHooks, StopForward


@dataclass(frozen=True)
class Rereading:
    """A text to be read.

    Attributes:
        ids: its tokens.
        places: the positions that are asked about, without a gap.
        changes: by position: the interventions from there on. Before the first, there are none.
    """

    ids: Sequence[int]
    places: range
    changes: Mapping[int, Interventions]


@dataclass(frozen=True)
class Choice:
    """How probable a token was where it was chosen.

    Attributes:
        token: its id.
        logprob: under the model, in nats.
        rank: 1 = none was likelier.
        likeliest: the likeliest tokens there with their log-probabilities, the best first.
    """

    token: int
    logprob: float
    rank: int
    likeliest: Sequence[tuple[int, float]]


@torch.inference_mode()
def read_choices(
    model: PreTrainedModel, text: Rereading, chosen: Sequence[int], hooks: ResidualHooks, likeliest: int
) -> list[Choice]:
    """Return how probable tokens are after the positions asked about, as the hooks leave the model.

    Args:
        model: any decoder-only causal language model.
        text: what is read.
        chosen: the token that follows each of its places.
        hooks: for one row.
        likeliest: how many of the likeliest tokens are told.

    Raises:
        GenerationError: a vector does not fit this model, or memory ran out.
    """
    device, edges = device_of(model.get_input_embeddings()), sorted({0, *text.changes, len(text.ids)})
    cached: dict[str, object] = (
        {cache_argument(model): DynamicCache(config=model.config), "use_cache": True}
        if len(edges) > 2
        else {"use_cache": False}
    )
    narrows = "logits_to_keep" in accepted_arguments(model)
    found: list[Choice] = []
    for start, stop in pairwise(edges):
        if start in text.changes:
            hooks.apply(text.changes[start])
        asked = range(max(start, text.places.start), min(stop, text.places.stop))
        keep = torch.tensor([place - start for place in asked] or [0], device=device)
        ids = torch.tensor([list(text.ids[start:stop])], device=device)
        with hooks, clear_memory_errors():
            if narrows:
                logits = model(input_ids=ids, **cached, logits_to_keep=keep).logits[0]
            else:
                logits = model(input_ids=ids, **cached).logits[0, keep]
            tokens = [chosen[place - text.places.start] for place in asked]
            found += _choices(logits[: len(tokens)], tokens, likeliest)
    return found


def _choices(logits: Tensor, tokens: Sequence[int], likeliest: int) -> list[Choice]:
    found = []
    for row, token in zip(logits, tokens, strict=True):  # one at a time: a vocabulary is large
        logprobs = row.float().log_softmax(-1)
        if logprobs.isnan().any():
            raise GenerationError(NOT_FINITE)
        best = logprobs.topk(min(likeliest, len(logprobs)))
        rank = int((logprobs > logprobs[token]).sum()) + 1
        pairs = list(zip(best.indices.tolist(), best.values.tolist(), strict=True))
        found.append(Choice(token, float(logprobs[token]), rank, pairs))
    return found


@torch.inference_mode()
def read_positions(model: PreTrainedModel, text: Rereading, hooks: ResidualHooks) -> Tensor:
    """Return what the hooks trace at the positions asked about, `[positions, 1 + axes]`, on the CPU.

    The language-model head is not run, nor the layers after the last one that the hooks want.

    Args:
        model: any decoder-only causal language model.
        text: what is read.
        hooks: for one row, tracing everywhere.

    Raises:
        GenerationError: a vector does not fit this model, or memory ran out.
    """
    decoder, device = find_decoder(model), device_of(model.get_input_embeddings())
    edges = sorted({0, *text.changes, len(text.ids)})
    # A single stretch needs no cache.
    cached = (
        {cache_argument(decoder): DynamicCache(config=model.config), "use_cache": True}
        if len(edges) > 2
        else {"use_cache": False}
    )
    seen: list[Tensor] = []
    for start, stop in pairwise(edges):
        if start in text.changes:
            hooks.apply(text.changes[start])
        ids = torch.tensor([list(text.ids[start:stop])], device=device)
        try:
            with hooks, clear_memory_errors():
                decoder(input_ids=ids, **cached)
        except StopForward:
            pass
        seen.append(hooks.traces_everywhere(torch.device("cpu"), 1, stop - start)[0])
    return torch.cat(seen)[text.places.start : text.places.stop]
