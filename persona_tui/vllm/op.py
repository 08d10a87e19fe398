"""The op that steers and caps inside a forward pass, and the buffers that it reads.

One op for each decoder block, opaque to the compiler, that writes into the block's output. What it reads
lies in buffers that live as long as the worker: a mix that changes is a write into them, and nothing is
compiled or captured again.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from persona_tui.vectors.axes import AXIS_NAMES
from persona_tui.vllm.bank import WORKSPACE, Slot


class SlotBuffers:
    """What is done to the tokens of a pass, by slot; slot 0 does nothing.

    Attributes:
        slot: which slot each token of the pass belongs to, `[tokens]`.
        delta: what is added, `[layers, slots, hidden]` float32.
        axes: the axes that floors are on, `[layers, axes, hidden]`; axis 0 is none.
        axis: which of them each slot's floor is on, `[slots]`.
        floor: `[layers, slots]`; -inf = none.
    """

    def __init__(self, layers: int, slots: int, hidden: int, tokens: int, device: torch.device) -> None:
        self.slot = torch.zeros(tokens, dtype=torch.long, device=device)
        self.delta = torch.zeros(layers, slots, hidden, device=device)
        self.axes = torch.zeros(layers, 1 + len(AXIS_NAMES), hidden, device=device)
        self.axis = torch.zeros(slots, dtype=torch.long, device=device)
        self.floor = torch.full((layers, slots), float("-inf"), device=device)

    def tell(self, slots: Sequence[int], counts: Sequence[int]) -> None:
        """Tell the tokens of a pass their slots: `counts[i]` tokens have `slots[i]`, one after the other."""
        told = torch.repeat_interleave(torch.tensor(slots), torch.tensor(counts))
        self.slot[: len(told)].copy_(told)
        self.slot[len(told) :].zero_()  # what fills a pass up to a size that was captured

    def fill(self, place: int, slot: Slot) -> None:
        """Write what a slot does, in place of what it did before."""
        self.delta[:, place] = 0
        self.axis[place] = 0 if slot.axis is None else 1 + AXIS_NAMES.index(slot.axis)
        self.floor[:, place] = float("-inf")
        for layer, vector in slot.added.items():
            self.delta[layer, place] = vector.to(self.delta)
        for layer, cap in slot.caps.items():
            self.axes[layer, self.axis[place]] = cap.axis.to(self.axes)
            self.floor[layer, place] = cap.floor


_buffers: SlotBuffers | None = None


def set_buffers(buffers: SlotBuffers) -> None:
    """Use these buffers in this process from now on."""
    global _buffers
    _buffers = buffers


@torch.library.custom_op("persona_tui::intervene", mutates_args=("hidden",))
def intervene(hidden: Tensor, residual: Tensor, layer: int) -> None:
    """Steer and cap a block's output, which is `hidden + residual`, by changing `hidden`.

    Args:
        hidden: `[tokens, hidden]`.
        residual: the same, or a tensor without elements: the output is `hidden` alone.
        layer: of the block.
    """
    if _buffers is None:
        return
    rows = _buffers.slot[: hidden.shape[0]]
    stream = hidden.float() + residual.float() if residual.numel() else hidden.float()
    axis = _buffers.axes[layer][_buffers.axis[rows]]
    steered = stream + _buffers.delta[layer][rows]
    lift = (_buffers.floor[layer][rows] - (steered * axis).sum(-1)).clamp_min(0)
    # What was not asked for stays bit for bit as it is.
    change = steered - stream + lift[:, None] * axis
    hidden.add_(change.to(hidden.dtype))


@intervene.register_fake
def _(hidden: Tensor, residual: Tensor, layer: int) -> None:
    return None


def watch_blocks(model: nn.Module) -> int:
    """Have every decoder block of a loaded model call the op; returns how many there are in this process.

    Raises:
        RuntimeError: there are none: a request would be answered without its persona.
    """
    classes: dict[type[nn.Module], None] = {}
    count = 0
    for name, module in model.named_modules():
        number = re.search(r"\.(\d+)$", name)
        if number is not None and type(module).__name__.endswith(("DecoderLayer", "Block")):
            module._persona_tui_layer = int(number[1])
            classes[type(module)] = None
            count += 1
    if not count:
        raise RuntimeError(
            f"persona-tui finds no decoder blocks in {type(model).__name__} and cannot steer it: unset "
            f"{WORKSPACE} to serve it without personas."
        )
    for each in classes:
        _wrap(each)
    return count


def _wrap(block: type[nn.Module]) -> None:
    """Change a class' forward, once: an instance's would be lost under the compiler."""
    if getattr(block, "_persona_tui_wrapped", False):
        return
    forward: Callable[..., Any] = block.forward

    def steered(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        output = forward(self, *args, **kwargs)
        layer = getattr(self, "_persona_tui_layer", None)
        if layer is None:
            return output
        if isinstance(output, tuple):
            torch.ops.persona_tui.intervene(output[0], output[1], layer)
        else:
            torch.ops.persona_tui.intervene(output, output.new_empty(0), layer)
        return output

    block.forward = steered
    block._persona_tui_wrapped = True  # type: ignore[attr-defined]


def slots_of(request_keys: Mapping[str, str], held: dict[str, int], free: list[int]) -> list[str]:
    """Give every running request's mix a slot.

    Args:
        request_keys: by running request, the key of its mix.
        held: by key, the slot that it has; changed.
        free: the slots that nothing has; changed.

    Returns:
        The keys that were given a slot now and have to be written.
    """
    wanted = set(request_keys.values())
    for key in [key for key in held if key not in wanted]:
        free.append(held.pop(key))
    new = [key for key in dict.fromkeys(request_keys.values()) if key not in held]
    for key in new:
        held[key] = free.pop()
    return new
