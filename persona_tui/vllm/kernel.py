"""The op of `op` on a GPU: one Triton kernel for a block, where PyTorch's own operations would be a dozen.

Which tokens need what lies in buffers: a captured graph does in each pass what they say in that pass, and a
token of a slot that does nothing costs a look at them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import triton
import triton.language as tl
from torch import Tensor

if TYPE_CHECKING:
    from persona_tui.vllm.op import SlotBuffers


@triton.jit(do_not_specialize=["layer"])  # type: ignore[untyped-decorator]
def _intervene(  # type: ignore[no-untyped-def]
    hidden,
    residual,
    slot,
    does,
    delta,
    axis,
    axes,
    floor,
    place,
    sums,
    compared,
    traced,
    found,
    layer,
    hidden_row,
    residual_row,
    slots,
    n_axes,
    places,
    directions,
    width,
    RESIDUAL: tl.constexpr,
    SUMS: tl.constexpr,
    TRACED: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Do what one token needs at one layer."""
    token = tl.program_id(0).to(tl.int64)
    layer = layer.to(tl.int64)
    own = tl.load(slot + token)
    work = tl.load(does + layer * slots + own)
    at = tl.load(place + token) if SUMS else 0
    count = tl.load(compared + layer) if TRACED else 0
    if (work > 0) | (at > 0) | (count > 0):
        column = tl.arange(0, BLOCK)
        inside = column < width
        here = hidden + token * hidden_row + column
        output = tl.load(here, mask=inside, other=0.0).to(tl.float32)
        if RESIDUAL:
            rest = tl.load(residual + token * residual_row + column, mask=inside, other=0.0).to(tl.float32)
        else:
            rest = tl.zeros([BLOCK], dtype=tl.float32)
        if work > 0:
            if work & 1:
                output += tl.load(delta + (layer * slots + own) * width + column, mask=inside, other=0.0)
            if work & 2:
                number = tl.load(axis + own)
                along = tl.load(axes + (layer * n_axes + number) * width + column, mask=inside, other=0.0)
                below = tl.load(floor + layer * slots + own) - tl.sum((output + rest) * along, axis=0)
                lift = tl.maximum(below, 0.0)
                output += lift * along
                lifted = found + token * (1 + directions)
                tl.store(lifted, tl.load(lifted) + lift)
            rounded = output.to(hidden.dtype.element_ty)
            tl.store(here, rounded, mask=inside)
            output = rounded.to(tl.float32)
        stream = output + rest
        if at > 0:
            tl.atomic_add(sums + (layer * places + at) * width + column, stream, mask=inside)
        if TRACED:
            number = 0
            while number < count:
                direction = traced + (layer * directions + number) * width + column
                along = tl.sum(stream * tl.load(direction, mask=inside, other=0.0), axis=0)
                told = found + token * (1 + directions) + 1 + number
                tl.store(told, tl.load(told) + along)
                number += 1


def intervene(buffers: SlotBuffers, hidden: Tensor, residual: Tensor, layer: int) -> None:
    """See `op.intervene`."""
    tokens, width = hidden.shape
    sums, traced = buffers.sums, buffers.traced
    block = triton.next_power_of_2(width)
    launch: Any = _intervene[(tokens,)]
    launch(
        hidden,
        residual,
        buffers.slot,
        buffers.does,
        buffers.delta,
        buffers.axis,
        buffers.axes,
        buffers.floor,
        buffers.place,
        buffers.found if sums is None else sums,
        buffers.compared,
        buffers.found if traced is None else traced,
        buffers.found,
        layer,
        hidden.stride(0),
        residual.stride(0) if residual.numel() else 0,
        buffers.floor.shape[1],
        buffers.axes.shape[1],
        0 if sums is None else sums.shape[1],
        buffers.found.shape[1] - 1,
        width,
        RESIDUAL=residual.numel() > 0,
        SUMS=sums is not None,
        TRACED=traced is not None,
        BLOCK=block,
        num_warps=min(16, max(1, block // 512)),
    )
