"""The op that steers, caps and reads inside a forward pass, and the buffers that it uses.

One op for each decoder block, opaque to the compiler, that writes into the block's output. What it reads
lies in buffers that live as long as the worker: a mix that changes is a write into them, and nothing is
compiled or captured again. What it finds goes into buffers as well.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from persona_tui.vllm.wire import WORKSPACE, Slot, digest

AXES = 16  # that floors can be on at a time, the first of them none
TRACES = 32  # directions that tokens can be compared with at a time
ADD, LIFT, SUM, TRACE = 1, 2, 4, 8  # what a layer has to do in a pass


class SlotBuffers:
    """What is done to the tokens of a pass, by slot, and what is read of them; slot 0 does nothing.

    On a CPU, every pass runs this code, and a layer that has nothing to do costs a look at `work`. On a GPU,
    what runs was captured before: `kernel` looks at `does` and `compared` itself.

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
        work: by layer, what the tokens of this pass need there; on a GPU, that they need anything.
        does: what each slot needs at each layer, `ADD` and `LIFT`, `[layers, slots]`; for `kernel`.
        compared: with how many directions the tokens of this pass are compared, `[layers]`; for `kernel`.
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
        captured: bool | None = None,
    ) -> None:
        """
        Args:
            layers: of the model.
            slots: besides which none is filled; the first does nothing.
            hidden: the width of the residual stream.
            tokens: that a pass has at most.
            device: of the model.
            sums: how many spans of text can be summed up at a time.
            traces: whether tokens are compared with directions.
            captured: whether what runs is captured, so that `kernel` does it; None = on a GPU.
        """
        self.slot = torch.zeros(tokens, dtype=torch.long, device=device)
        self.delta = torch.zeros(layers, slots, hidden, device=device)
        self.axes = torch.zeros(layers, AXES, hidden, device=device)
        self.axis = torch.zeros(slots, dtype=torch.long, device=device)
        self.floor = torch.full((layers, slots), float("-inf"), device=device)
        self.place = torch.zeros(tokens, dtype=torch.long, device=device)
        self.sums = torch.zeros(layers, 1 + sums, hidden, device=device) if sums else None
        self.traced = torch.zeros(layers, TRACES, hidden, device=device) if traces else None
        self.found = torch.zeros(tokens, 1 + TRACES, device=device)
        self.does = torch.zeros(layers, slots, dtype=torch.int32, device=device)
        self.compared = torch.zeros(layers, dtype=torch.int32, device=device)
        self._graphs = device.type != "cpu" if captured is None else captured
        self.work = [int(self._graphs)] * layers
        self._kernel: Callable[[SlotBuffers, Tensor, Tensor, int], None] | None = None
        if self._graphs:
            from persona_tui.vllm.kernel import intervene

            self._kernel = intervene
        self._layers = layers
        self._compared = [0] * layers
        self._only: int | None = None  # the slot that all tokens of the pass have
        self._one_axis: int | None = None  # the axis that all their floors are on
        self._summed: Tensor | None = None  # the tokens that are summed up; None = all
        self._told = False  # whether it is told how far floors have lifted
        self._directions = TRACES  # so many of them are compared with
        self._adds: dict[int, frozenset[int]] = {}  # by slot, layers
        self._lifts: dict[int, frozenset[int]] = {}
        self._traces: dict[int, frozenset[int]] = {}  # by direction, layers
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
        used = set(slots)
        self._only = next(iter(used)) if len(used) == 1 and not self._graphs else None
        if self._only is None:
            told = torch.from_numpy(np.repeat(np.asarray(slots), np.asarray(counts)))
            self.slot[: len(told)].copy_(told)
            # What fills a pass up to a size that was captured does nothing.
            self.slot[len(told) :].zero_()
        self._tell_places(places)
        if traced or self._graphs:
            self.found[: sum(counts)].zero_()
        if self._graphs:
            self._tell_compared(traced)
        else:
            self._plan(used, places is not None, traced)

    def _tell_compared(self, traced: bool) -> None:
        told = [0] * self._layers
        for number, layers in sorted(self._traces.items()) if traced else ():
            for layer in layers:
                told[layer] = 1 + number
        if told != self._compared:
            self.compared.copy_(torch.tensor(told, dtype=torch.int32))
            self._compared = told

    def _tell_places(self, places: Tensor | None) -> None:
        self._summed = None
        if places is None:
            if self._graphs:
                self.place.zero_()
            return
        if not self._graphs:
            marked = places.nonzero().squeeze(1)
            self._summed = None if len(marked) == len(places) else marked
            places = places[marked]
        self.place[: len(places)].copy_(places)
        self.place[len(places) :].zero_()

    def _plan(self, used: set[int], summed: bool, traced: bool) -> None:
        """Say what each layer has to do in this pass."""
        work = [SUM if summed else 0] * self._layers
        wanted = [(ADD, self._adds, used), (LIFT, self._lifts, used)]
        if traced:
            wanted.append((TRACE, self._traces, set(self._traces)))
            self._directions = 1 + max((at for at, layers in self._traces.items() if layers), default=-1)
        for kind, known, keys in wanted:
            for layer in frozenset().union(*(known.get(key, ()) for key in keys)):
                work[layer] |= kind
        axes = {self._axis_of[self._axis_users[each]] for each in used if self._lifts.get(each)}
        self._one_axis = next(iter(axes)) if len(axes) == 1 else None
        self._told, self.work = traced, work

    def apply(self, hidden: Tensor, residual: Tensor, layer: int) -> None:
        """Do what a pass needs at one layer; see `intervene`."""
        if self._kernel is not None:
            self._kernel(self, hidden, residual, layer)
            return
        work, count = self.work[layer], hidden.shape[0]
        if work & ADD:
            only = self._only
            hidden.add_(
                self.delta[layer].index_select(0, self.slot[:count])
                if only is None
                else self.delta[layer, only]
            )
        if work & LIFT:
            self._lift(hidden, residual, layer)
        if work & (SUM | TRACE):
            self._read(hidden, residual, layer, work)

    def _lift(self, hidden: Tensor, residual: Tensor, layer: int) -> None:
        """Raise what lies below its floor back to it."""
        count, only = hidden.shape[0], self._only
        rows = self.slot[:count]
        floor = self.floor[layer].index_select(0, rows) if only is None else self.floor[layer, only]
        if self._one_axis is None:
            axis = self.axes[layer].index_select(0, self.axis.index_select(0, rows))
            lift = (floor - (_stream(hidden, residual) * axis).sum(-1)).clamp_min_(0)
            hidden.add_(lift[:, None] * axis)
        else:
            axis = self.axes[layer, self._one_axis]
            lift = (floor - _along(hidden, residual, axis)).clamp_min_(0)
            if lift.any():
                hidden.add_(lift[:, None] * axis)
        if self._told:
            self.found[:count, 0] += lift

    def _read(self, hidden: Tensor, residual: Tensor, layer: int, work: int) -> None:
        """Add a block's output to the sums, and compare it with the directions."""
        if work & TRACE and self.traced is not None:
            directions = self.traced[layer, : self._directions].T
            self.found[: hidden.shape[0], 1 : 1 + self._directions] += _along(hidden, residual, directions)
        if work & SUM and self.sums is not None:
            if self._summed is not None:
                hidden = hidden.index_select(0, self._summed)
                residual = residual.index_select(0, self._summed) if residual.numel() else residual
            self.sums[layer].index_add_(0, self.place[: hidden.shape[0]], _stream(hidden, residual))

    def leave(self, held: Collection[int]) -> None:
        """Keep the axes of some slots only: those that nothing has any more need no room."""
        self._axis_users = {place: key for place, key in self._axis_users.items() if place in held}

    def fill(self, place: int, slot: Slot) -> None:
        """Write what a slot does, in place of what it did before.

        Raises:
            RuntimeError: floors on more axes than there is room for.
        """
        self.delta[:, place] = 0
        self.floor[:, place] = float("-inf")
        self._axis_users.pop(place, None)
        self.axis[place] = self._axis_at(place, slot) if slot.caps else 0
        self._adds[place], self._lifts[place] = frozenset(slot.added), frozenset(slot.caps)
        if slot.added:
            layers = list(slot.added)
            self.delta[layers, place] = torch.stack([slot.added[layer] for layer in layers]).to(self.delta)
        for layer, cap in slot.caps.items():
            self.floor[layer, place] = cap.floor
        own = [ADD * (layer in slot.added) | LIFT * (layer in slot.caps) for layer in range(self._layers)]
        self.does[:, place] = torch.tensor(own, dtype=torch.int32)

    def _axis_at(self, place: int, slot: Slot) -> int:
        """Return where a slot's axis is; written there if it is new."""
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

    def trace_one(self, number: int, direction: Mapping[int, Tensor]) -> None:
        """Compare tokens with another direction, in one of the places for them."""
        if self.traced is None:
            raise RuntimeError("nothing is traced in this process")
        self.traced[:, number] = 0
        self._traces[number] = frozenset(direction)
        for layer, vector in direction.items():
            self.traced[layer, number] = vector.to(self.traced) / len(direction)


_buffers: SlotBuffers | None = None


def set_buffers(buffers: SlotBuffers) -> None:
    """Use these buffers in this process from now on."""
    global _buffers
    _buffers = buffers


def _stream(hidden: Tensor, residual: Tensor) -> Tensor:
    """Return a block's output, in float32."""
    return hidden.float() + residual if residual.numel() else hidden.float()


def _along(hidden: Tensor, residual: Tensor, directions: Tensor) -> Tensor:
    """Return a block's output times directions, `[hidden]` or `[hidden, directions]`."""
    found = hidden.float() @ directions
    return found + residual.float() @ directions if residual.numel() else found


def intervene(hidden: Tensor, residual: Tensor, layer: int) -> None:
    """Steer, cap and read a block's output, which is `hidden + residual`, by changing `hidden`.

    Args:
        hidden: `[tokens, hidden]`.
        residual: the same, or a tensor without elements: the output is `hidden` alone.
        layer: of the block.
    """
    if _buffers is not None and _buffers.work[layer]:
        _buffers.apply(hidden, residual, layer)


# `torch.library.custom_op` would look at its arguments on every call, at several times the cost.
_library: Any = torch.library.Library("persona_tui", "FRAGMENT")  # type: ignore[no-untyped-call]
_library.define("intervene(Tensor(a!) hidden, Tensor residual, int layer) -> ()")
for _key in ("CPU", "CUDA"):
    _library.impl("intervene", intervene, _key)


def _fake(hidden: Tensor, residual: Tensor, layer: int) -> None:
    return None


torch.library.register_fake("persona_tui::intervene", _fake, lib=_library)


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
