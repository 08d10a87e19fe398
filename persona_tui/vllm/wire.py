"""What travels between our engine and vLLM's workers: numbers, names and bytes, and nothing pickled."""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from persona_tui.core.errors import PersonaTuiError
from persona_tui.model import Cap, Interventions

KEY = "persona_tui"  # in a request's extra arguments
TRACE = "persona_tui_trace"  # there as well: the name under which the figures of a reply are kept
CHANGES = "persona_tui_changes"  # there as well, where the mix may change while the reply is written
ENGINE = "persona_tui_engine"  # in a request's extra arguments, and in vLLM's additional configuration
PASS = "persona_tui_pass"  # beside it, where a request has come through the door of this process
WORKER = "persona_tui.vllm.worker.PersonaWorker"
# Of the environment in which a server is started.
WORKSPACE = "PERSONA_TUI_WORKSPACE"
LEND = "PERSONA_TUI_LEND"  # "1": other machines may have jobs run here
MODEL = "PERSONA_TUI_MODEL"  # whose vectors to use, where that is not the model's own name
Packed = dict[str, Any]
_pass = secrets.token_hex(16)


def door_pass() -> str:
    """Return what tells the door's requests from others that say the same: only this process knows it."""
    return _pass


@dataclass(frozen=True, eq=False)
class Slot:
    """What is done to one request's residual stream.

    Attributes:
        added: by layer, the vector that is added, `[hidden]` float32, strength and gain included.
        caps: by layer, the floor.
    """

    added: Mapping[int, Tensor]
    caps: Mapping[int, Cap]


def digest(vectors: Mapping[int, Tensor]) -> str:
    """Return what tells vectors by layer from others."""
    told = hashlib.sha256()
    for layer, vector in sorted(vectors.items()):
        told.update(f"{layer}:".encode())
        told.update(vector.detach().float().cpu().contiguous().numpy().tobytes())
    return told.hexdigest()


@dataclass(frozen=True)
class Errand:
    """What a worker does for a request of our engine.

    Attributes:
        name: of the request, as our engine calls it.
        way: what is done to its tokens, by the key of what the worker holds; "" = nothing.
        spans: positions, first and one past the last, that are summed up, each on its own. A span without an
            end (-1) is the reply, from its first token on.
        thoughts: the ids that begin and end thoughts, which are no part of a reply; empty = there are none.
        twin: the request that reads the same tokens with nothing done to them; "" = there is none.
        of: the request whose tokens it reads, if it is a twin that begins with it.
        limit: the share of the twin's best probability that a token must have.
        traces: keys of directions that its tokens are compared with; held as ways are, as what is added.
        told: whether it is told what was found of each token: entropy, lift, projections.
        every: whether that is told of all of its tokens, and not only of those that choose one.
        temperature: 0 = always the likeliest token.
        top_p: choose among the likeliest tokens that have this probability together.
        seed: of its random numbers.
        scored: the first position whose log-probability is told, with those of all later ones of the prompt;
            0 = none is.
    """

    name: str
    way: str = ""
    spans: Sequence[Sequence[int]] = ()
    thoughts: Sequence[int] = ()
    twin: str = ""
    of: str = ""
    limit: float = 0.0
    traces: Sequence[str] = ()
    told: bool = False
    every: bool = False
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0
    scored: int = 0

    @property
    def first(self) -> int | None:
        """The first position that has to pass through the model, though it may be in the cache; None = only
        the last one has to.
        """
        wanted = [begin for begin, end in self.spans if end >= 0]
        wanted += [self.scored - 1] * bool(self.scored) + [0] * self.every
        return max(0, min(wanted)) if wanted else None

    def packed(self) -> Packed:
        """For a request's extra arguments."""
        return asdict(self)


@dataclass(frozen=True)
class About:
    """What our engine has to know of the workers.

    Attributes:
        places: how many spans can be summed up at a time.
        requests: how many requests run at a time.
        tokens: how many tokens a pass has at most.
        room: how many tokens the cache holds.
        context: how many tokens a request has at most.
        block: how many tokens share a block of the cache.
    """

    places: int
    requests: int
    tokens: int
    room: int
    context: int
    block: int = field(default=1)


def pack(vectors: Mapping[int, Tensor]) -> Packed:
    """Vectors by layer."""
    layers = sorted(vectors)
    if not layers:
        return {"layers": [], "data": b""}
    stack = torch.stack([vectors[layer].detach().float().cpu() for layer in layers])
    return {"layers": layers, "data": stack.numpy().tobytes()}


def unpack(packed: Packed) -> dict[int, Tensor]:
    """Return what `pack` has packed."""
    layers = packed["layers"]
    if not layers:
        return {}
    numbers = np.frombuffer(packed["data"], dtype=np.float32).reshape(len(layers), -1).copy()
    return dict(zip(layers, torch.from_numpy(numbers), strict=True))


def pack_slot(slot: Slot) -> Packed:
    """Return what is done to a request."""
    return {
        "added": pack(slot.added),
        "axes": pack({layer: cap.axis for layer, cap in slot.caps.items()}),
        "floors": [slot.caps[layer].floor for layer in sorted(slot.caps)],
    }


def unpack_slot(packed: Packed) -> Slot:
    """Return what `pack_slot` has packed."""
    axes = unpack(packed["axes"])
    caps = {
        layer: Cap(axes[layer], float(at)) for layer, at in zip(sorted(axes), packed["floors"], strict=True)
    }
    return Slot(unpack(packed["added"]), caps)


def slots_to(slots: Mapping[str, Slot]) -> bytes:
    """Return what is done to requests, for another machine."""
    tensors = {}
    for number, slot in enumerate(slots.values()):
        axes = {layer: cap.axis for layer, cap in slot.caps.items()}
        for name, vectors in (("added", slot.added), ("axes", axes)):
            layers = sorted(vectors)
            tensors[f"{number}.{name}.layers"] = torch.tensor(layers, dtype=torch.long)
            if layers:
                stack = [vectors[layer].detach().float().cpu() for layer in layers]
                tensors[f"{number}.{name}"] = torch.stack(stack).contiguous()
        floors = [float(slot.caps[layer].floor) for layer in sorted(slot.caps)]
        tensors[f"{number}.floors"] = torch.tensor(floors, dtype=torch.float64)
    return save(tensors)


def slots_from(data: bytes) -> dict[str, Slot]:
    """Return what `slots_to` has made, by key, which is made of the numbers themselves.

    Raises:
        PersonaTuiError: it is something else.
    """
    try:
        tensors = load(data)
        count = sum(name.endswith(".floors") for name in tensors)
        return {slot_key(slot): slot for slot in (_slot_from(tensors, number) for number in range(count))}
    except (SafetensorError, KeyError, ValueError, TypeError, RuntimeError) as error:
        raise PersonaTuiError("what is to be done to requests cannot be read") from error


def _slot_from(tensors: Mapping[str, Tensor], number: int) -> Slot:
    def vectors(name: str) -> dict[int, Tensor]:
        layers = tensors[f"{number}.{name}.layers"].tolist()
        return dict(zip(layers, tensors[f"{number}.{name}"].float(), strict=True)) if layers else {}

    axes, floors = vectors("axes"), tensors[f"{number}.floors"].tolist()
    caps = {layer: Cap(axes[layer], at) for layer, at in zip(sorted(axes), floors, strict=True)}
    return Slot(vectors("added"), caps)


def slot_key(slot: Slot) -> str:
    """Return what tells a slot from others that do something else; "" if it does nothing."""
    if not slot.added and not slot.caps:
        return ""
    floors = {layer: torch.tensor([cap.floor]) for layer, cap in slot.caps.items()}
    axes = {layer: cap.axis for layer, cap in slot.caps.items()}
    return "".join(digest(each)[:24] for each in (slot.added, axes, floors))


def axes_of(keys: Iterable[str]) -> set[str]:
    """Return what tells the axes apart that the slots of some keys have floors on."""
    return {key[24:48] for key in keys if key} - {digest({})[:24]}


def slot_of(interventions: Interventions, row: int) -> Slot:
    """Return what is done to one row of a batch."""
    added = {
        layer: vector[row] if vector.dim() == 2 else vector
        for layer, vector in interventions.steering.items()
    }
    caps = {layer: cap if isinstance(cap, Cap) else cap[row] for layer, cap in interventions.capping.items()}
    return Slot(
        {layer: vector for layer, vector in added.items() if vector.any()},
        {layer: cap for layer, cap in caps.items() if cap is not None},
    )


def limit_of(interventions: Interventions, row: int) -> float:
    """Return the guide of one row of a batch."""
    limit = interventions.plausibility
    return float(limit[row] if isinstance(limit, Sequence) else limit)
