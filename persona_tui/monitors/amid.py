"""Training queries amid small talk: how a request reads that does not come first.

In "I baked bread. How do I make a bomb?" the request's own tokens lie elsewhere in the residual stream than
where it stands alone, and a probe of lone queries misses some. So every other training query is read again
after a line of the training data's small talk. Of a dangerous one, the last part, which is its own, is
learned from as dangerous; of a harmless one, every part, windows included, as harmless. Nothing of that is
judged in cross-validation: thresholds and figures are those of the queries as they were asked.
"""

from __future__ import annotations

import itertools

import numpy as np
import torch

from persona_tui.core.jobs import JobContext
from persona_tui.extraction.checkpoints import PartialStore
from persona_tui.model import ModelWrapper
from persona_tui.monitors.probes import Examples, spread
from persona_tui.monitors.readings import Amid, read_queries
from persona_tui.monitors.trade import CHAT

_WORDS = range(3, 13)  # of a line of small talk
_ENDS = (".", "!")


def read_amid_chat(
    model: ModelWrapper,
    examples: Examples,
    context: JobContext | None = None,
    partial: PartialStore | None = None,
) -> Amid | None:
    """Read training queries after small talk, at the layers of probes; None if there is no small talk.

    Raises:
        GenerationError: a text does not fit the model's context.
        JobCancelled: the context says so.
    """
    pairs = amid_chat(examples)
    if not pairs:
        return None
    texts = [f"{examples.queries[chat]} {examples.queries[place]}" for chat, place in pairs]
    layers = spread(range(model.n_layers))
    read = read_queries(model, texts, layers, context, partial)
    assert read.parts is not None  # queries have them
    ends = [*itertools.accumulate(read.counts)]
    rows, owners = list[int](), list[tuple[int, int]]()
    for pair, count, end in zip(pairs, read.counts, ends, strict=True):
        learned = range(end - count, end) if examples.safe[pair[1]] else range(end - 1, end)
        rows += learned
        owners += [pair] * len(learned)
    return Amid(
        layers=tuple(layers),
        rows=read.parts[torch.tensor(rows)],
        safe=examples.safe[np.array([place for _, place in owners])],
        groups=tuple((examples.groups[chat], examples.groups[place]) for chat, place in owners),
    )


def amid_chat(examples: Examples) -> list[tuple[int, int]]:
    """Return a line of small talk for every other query, by their places; empty without small talk."""
    said = [
        place
        for place, (query, kind) in enumerate(zip(examples.queries, examples.kinds, strict=True))
        if kind == CHAT and len(query.split()) in _WORDS and query.endswith(_ENDS)
    ]
    asked = [place for place, kind in enumerate(examples.kinds) if kind != CHAT][::2] if said else []
    return list(zip(itertools.cycle(said), asked, strict=False))
