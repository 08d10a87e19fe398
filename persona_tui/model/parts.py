"""The parts of a message: what is read of it beside the whole, so that no padding hides a part.

A mean over a whole message can be moved by whatever else is said in it: thanks, dots, a harmless question
first. So a message is also read sentence by sentence, and in windows where a sentence is long. Every part is
read where it stands, with what comes before it in the model's view, out of the same pass.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from torch import Tensor

WINDOW = 12  # tokens: about a plain request
SHORTEST = 3  # tokens of a sentence that is read on its own

_ENDS = (".", "?", "!", "…", "。", "？", "！", "।", "؟", "\n")
_CLOSING = "\"'”’)]» "


def message_parts(ids: Sequence[int], span: range, decode: Callable[[list[int]], str]) -> list[range]:
    """Return the parts of a message as places in its prompt: the whole, its sentences, windows of `WINDOW`.

    Args:
        ids: the prompt.
        span: which of its tokens are the message.
        decode: turns token ids into text.

    Returns:
        The whole first. A short message of one sentence has no other part.
    """
    found = {(span.start, span.stop): None}
    for sentence in _sentences(ids, span, decode):
        found |= dict.fromkeys([sentence, *_windows(*sentence)])
    return [range(start, stop) for start, stop in found]


def _sentences(ids: Sequence[int], span: range, decode: Callable[[list[int]], str]) -> list[tuple[int, int]]:
    """Return where sentences begin and end; what is too short for one is part of its neighbour."""
    edges = [span.start]
    for place in span:
        text = decode([ids[place]])
        ends = text.endswith("\n") or text.rstrip(_CLOSING).endswith(_ENDS)
        if ends and place + 1 - edges[-1] >= SHORTEST:
            edges.append(place + 1)
    if span.stop - edges[-1] >= SHORTEST or len(edges) == 1:
        edges.append(span.stop)
    else:
        edges[-1] = span.stop
    return list(pairwise(edges))


def _windows(start: int, stop: int) -> list[tuple[int, int]]:
    """Windows that overlap by half; the last one ends where the sentence does."""
    if stop - start <= WINDOW:
        return []
    starts = [*range(start, stop - WINDOW, WINDOW // 2), stop - WINDOW]
    return [(each, each + WINDOW) for each in starts]


def part_means(hidden: Tensor, parts: Sequence[range]) -> Tensor:
    """Return the means over some parts of one row.

    Args:
        hidden: `[positions, hidden]`.
        parts: places in it.

    Returns:
        `[parts, hidden]`, float32, where `hidden` is. Memory does not grow with the overlap of the parts.
    """
    edges = sorted({edge for part in parts for edge in (part.start, part.stop)})
    place = {edge: number for number, edge in enumerate(edges)}
    within = hidden[edges[0] : edges[-1]].float()
    bounds = torch.tensor(edges[1:], device=hidden.device)
    stretch = torch.bucketize(torch.arange(edges[0], edges[-1], device=hidden.device), bounds, right=True)
    sums = within.new_zeros(len(edges), within.shape[1])
    running = sums.index_add_(0, stretch + 1, within).cumsum(0)
    starts, stops = ([place[getattr(part, end)] for part in parts] for end in ("start", "stop"))
    lengths = torch.tensor([len(part) for part in parts], device=hidden.device)
    return (running[stops] - running[starts]) / lengths[:, None]
