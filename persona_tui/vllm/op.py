"""The op that steers, caps and reads inside a forward pass, and the buffers that it uses.

One op for each decoder block, opaque to the compiler, that writes into the block's output. What it reads
lies in buffers that live as long as the worker: a mix that changes is a write into them, and nothing is
compiled or captured again. What it finds goes into buffers as well.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from persona_tui.vectors.axes import AXIS_NAMES
from persona_tui.vllm.bank import WORKSPACE, Slot

AXES = len(AXIS_NAMES) + 2  # that floors can be on at a time, the first of them none
TRACES = 32  # directions that tokens can be compared with at a time


class SlotBuffers:
    """What is done to the tokens of a pass, by slot, and what is read of them; slot 0 does nothing.

    Attributes:
        slot: which slot each token of the pass belongs to, `[tokens]`.
        delta: what is added, `[layers, slots, hidden]` float32.
        axes: the axes that floors are on, `[layers, axes, hidden]`; axis 0 is none.
        axis: which of them each slot's floor is on, `[slots]`.
        floor: `[layers, slots]`; -inf = none.
        place: which of the sums each token of the pass is added to, `[tokens]`; 0 = a sum that nobody reads.
        sums: of layer outputs, `[layers, places, hidden]` float32; None = nothing is summed in this process.
        traced: directions, `[layers, TRACES, hidden]`; None = nothing is traced in this process.
        found: by token of the pass, how far floors lifted it, and its projections, `[tokens, 1 + TRACES]`.
        busy: what the tokens of this pass need, as those that need nothing are many: "steer", "sum", "trace".
            Captured graphs do all of it.
    """

    def __init__(
        self,
        layers: int,
        slots: int,
        hidden: int,
        tokens: int,
        device: torch.device,
        sums: int = 0,
        traces: bool = False,
    ) -> None:
        self.slot = torch.zeros(tokens, dtype=torch.long, device=device)
        self.delta = torch.zeros(layers, slots, hidden, device=device)
        self.axes = torch.zeros(layers, AXES, hidden, device=device)
        self.axis = torch.zeros(slots, dtype=torch.long, device=device)
        self.floor = torch.full((layers, slots), float("-inf"), device=device)
        self.place = torch.zeros(tokens, dtype=torch.long, device=device)
        self.sums = torch.zeros(layers, 1 + sums, hidden, device=device) if sums else None
        self.traced = torch.zeros(layers, TRACES, hidden, device=device) if traces else None
        self.found = torch.zeros(tokens, 1 + TRACES, device=device)
        self.busy = frozenset({"steer", "sum", "trace"})
        self._graphs = device.type != "cpu"
        self._axis_of: dict[str, int] = {}
        self._axis_users: dict[int, str] = {}

    def tell(
        self, slots: Sequence[int], counts: Sequence[int], places: Tensor | None = None, traced: bool = False
    ) -> None:
        """Tell the tokens of a pass their slots: `counts[i]` tokens have `slots[i]`, one after the other.

        Args:
            slots: of the requests in the pass.
            counts: how many tokens each of them has there.
            places: the sum that each token is added to, `[tokens]`; None = none is.
            traced: whether any of them is compared with directions.
        """
        told = torch.repeat_interleave(torch.tensor(slots), torch.tensor(counts))
        # What fills a pass up to a size that was captured does nothing.
        self.slot[: len(told)].copy_(told)
        self.slot[len(told) :].zero_()
        self.place.zero_()
        if places is not None:
            self.place[: len(places)].copy_(places)
        if traced or self._graphs:
            self.found.zero_()
        wanted = {"steer": any(slots), "sum": places is not None, "trace": traced}
        self.busy = frozenset(name for name, needed in wanted.items() if needed or self._graphs)

    def fill(self, place: int, slot: Slot) -> None:
        """Write what a slot does, in place of what it did before.

        Raises:
            RuntimeError: floors on more axes than there is room for.
        """
        self.delta[:, place] = 0
        self.floor[:, place] = float("-inf")
        self._axis_users.pop(place, None)
        self.axis[place] = self._axis_at(place, slot) if slot.caps else 0
        for layer, vector in slot.added.items():
            self.delta[layer, place] = vector.to(self.delta)
        for layer, cap in slot.caps.items():
            self.floor[layer, place] = cap.floor

    def _axis_at(self, place: int, slot: Slot) -> int:
        """Where a slot's axis is; written there if it is new."""
        key = digest({layer: cap.axis for layer, cap in slot.caps.items()})
        self._axis_users[place] = key
        if key not in self._axis_of:
            used = set(self._axis_users.values())
            self._axis_of = {each: at for each, at in self._axis_of.items() if each in used}
            free = set(range(1, AXES)) - set(self._axis_of.values())
            if not free:
                raise RuntimeError(f"floors on more than {AXES - 1} axes at a time")
            at = self._axis_of[key] = min(free)
            self.axes[:, at] = 0
            for layer, cap in slot.caps.items():
                self.axes[layer, at] = cap.axis.to(self.axes)
        return self._axis_of[key]

    def trace(self, directions: Sequence[Mapping[int, Tensor]]) -> None:
        """Compare tokens with other directions: by layer, `[hidden]`; their mean over the layers is told."""
        if len(directions) > TRACES:
            raise RuntimeError(f"more than {TRACES} directions to compare with")
        for number in range(TRACES):
            self.trace_one(number, directions[number] if number < len(directions) else {})

    def trace_one(self, number: int, direction: Mapping[int, Tensor]) -> None:
        """Compare tokens with another direction, in one of the places for them."""
        if self.traced is None:
            raise RuntimeError("nothing is traced in this process")
        self.traced[:, number] = 0
        for layer, vector in direction.items():
            self.traced[layer, number] = vector.to(self.traced) / len(direction)


def digest(vectors: Mapping[int, Tensor]) -> str:
    """What tells vectors by layer from others."""
    told = hashlib.sha256()
    for layer, vector in sorted(vectors.items()):
        told.update(f"{layer}:".encode())
        told.update(vector.detach().float().cpu().contiguous().numpy().tobytes())
    return told.hexdigest()


_buffers: SlotBuffers | None = None


def set_buffers(buffers: SlotBuffers) -> None:
    """Use these buffers in this process from now on."""
    global _buffers
    _buffers = buffers


@torch.library.custom_op("persona_tui::intervene", mutates_args=("hidden",))
def intervene(hidden: Tensor, residual: Tensor, layer: int) -> None:
    """Steer, cap and read a block's output, which is `hidden + residual`, by changing `hidden`.

    Args:
        hidden: `[tokens, hidden]`.
        residual: the same, or a tensor without elements: the output is `hidden` alone.
        layer: of the block.
    """
    buffers = _buffers
    if buffers is None or not buffers.busy:
        return
    count = hidden.shape[0]
    stream = hidden.float() + residual.float() if residual.numel() else hidden.float()
    if "steer" in buffers.busy:
        rows = buffers.slot[:count]
        axis = buffers.axes[layer][buffers.axis[rows]]
        steered = stream + buffers.delta[layer][rows]
        lift = (buffers.floor[layer][rows] - (steered * axis).sum(-1)).clamp_min(0)
        # What was not asked for stays bit for bit as it is.
        change = steered - stream + lift[:, None] * axis
        hidden.add_(change.to(hidden.dtype))
        stream = stream + change
        if "trace" in buffers.busy:
            buffers.found[:count, 0] += lift
    if "sum" in buffers.busy and buffers.sums is not None:
        buffers.sums[layer].index_add_(0, buffers.place[:count], stream)
    if "trace" in buffers.busy and buffers.traced is not None:
        buffers.found[:count, 1:] += stream @ buffers.traced[layer].T


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
