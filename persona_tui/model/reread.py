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

from persona_tui.model.blocks import device_of, find_decoder
from persona_tui.model.forward import cache_argument, clear_memory_errors
from persona_tui.model.interventions import Interventions
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


@torch.inference_mode()
def read_positions(model: PreTrainedModel, text: Rereading, hooks: ResidualHooks) -> Tensor:
    """What the hooks trace at the positions asked about, `[positions, 1 + axes]`, on the CPU.

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
