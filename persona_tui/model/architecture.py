"""What differs between architectures, and what all passes need: blocks, arguments, cache, clear errors."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Cache, DynamicCache, PretrainedConfig, PreTrainedModel, cache_utils
from transformers.cache_utils import DynamicLayer, StaticLayer

from persona_tui.core.errors import GenerationError, MemoryShortage, ModelLoadError

NOT_FINITE = (
    "The model's numbers overflowed: lower the strength, or load it with --dtype bfloat16 or float32."
)
_OUT_OF_MEMORY = re.compile(r"can't allocate memory|out of memory|ALLOC_FAILED", re.IGNORECASE)
_CACHES = ("cache", "past_key_values", "cache_params", "state")

_ROOM = 64  # tokens that a layer of a cache takes room for at a time


class RoomyLayer(DynamicLayer):
    """A growing layer of a cache that takes room for some tokens at a time.

    Its base class copies all that it has for every token.
    """

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> Any:
        """Add keys and values; all there are, as views of the room that they have."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)  # type: ignore[no-untyped-call]
            self._rooms: dict[str, tuple[Tensor, Tensor]] = {}
        self.keys = self._longer("keys", self.keys, key_states)
        self.values = self._longer("values", self.values, value_states)
        return self.keys, self.values

    def _longer(self, name: str, present: Tensor | None, new: Tensor) -> Tensor:
        assert present is not None
        there = present.shape[-2] if present.numel() else 0
        end = there + new.shape[-2]
        room, seen = self._rooms.get(name, (present, None))
        # Whoever selects or adds rows puts other tensors in place, which have no room.
        if seen is not present or room.shape[-2] < end:
            room = new.new_empty(*new.shape[:-2], end + _ROOM, new.shape[-1])
            if there:
                room[..., :there, :] = present
        room[..., there:end, :] = new
        longer = room[..., :end, :]
        self._rooms[name] = room, longer
        return longer


def new_cache(config: PretrainedConfig) -> DynamicCache:
    """Return an empty cache for a model of such a config."""
    cache = DynamicCache(config=config)
    for place, layer in enumerate(cache.layers):
        if type(layer) is DynamicLayer:
            cache.layers[place] = RoomyLayer()  # type: ignore[no-untyped-call]
    return cache


# What layers of a cache keep row by row. Others keep more, or in another shape. Older releases of
# transformers lack some of them.
_BY_ROW = (
    RoomyLayer,
    *(
        getattr(cache_utils, name)
        for name in (
            "DummyLayer",
            "DynamicLayer",
            "DynamicSlidingWindowLayer",
            "StaticLayer",
            "StaticSlidingWindowLayer",
            "LinearAttentionLayer",
            "LinearAttentionAndFullAttentionLayer",
            "LinearAttentionAndSlidingWindowAttentionLayer",
        )
        if hasattr(cache_utils, name)
    ),
)


def text_config(model: PreTrainedModel) -> PretrainedConfig:
    """Return the config of the language part: the model's own, or the one nested in a multimodal config."""
    config: PretrainedConfig = model.config.get_text_config(decoder=True)
    return config


def n_layers(model: PreTrainedModel) -> int:
    """Return how many decoder blocks the model has."""
    return int(text_config(model).num_hidden_layers)


def hidden_size(model: PreTrainedModel) -> int:
    """Return the width of the residual stream."""
    return int(text_config(model).hidden_size)


def context_length(model: PreTrainedModel) -> int | None:
    """Return the most tokens that the model can see at once, or None when its positions have no limit."""
    limit = getattr(text_config(model), "max_position_embeddings", None)
    return int(limit) if limit else None


def find_decoder(model: PreTrainedModel) -> nn.Module:
    """Return the module that turns token ids into final hidden states, without the language-model head."""
    decoder: nn.Module = model.get_decoder()  # type: ignore[no-untyped-call]
    return decoder


def find_blocks(model: PreTrainedModel) -> nn.ModuleList:
    """Return the stack of decoder blocks, found by its length instead of by its name.

    The name differs (`layers`, `h`, `blocks`, ...), but in every decoder the stack is the outermost list with
    as many modules as the config has layers.

    Raises:
        ModelLoadError: the model is not a decoder, or has no such list.
    """
    if getattr(model.config, "is_encoder_decoder", False):
        raise ModelLoadError(
            f"{type(model).__name__} is an encoder-decoder model; persona-tui works with decoder-only ones."
        )
    wanted = n_layers(model)
    found = [
        (name.count("."), module)
        for name, module in find_decoder(model).named_modules()
        if isinstance(module, nn.ModuleList) and len(module) == wanted
    ]
    if not found:
        raise ModelLoadError(f"{type(model).__name__} has no list of {wanted} decoder blocks to work on.")
    return min(found, key=lambda item: item[0])[1]


def device_of(module: nn.Module) -> torch.device:
    """Return the device that a module computes on, also when its weights are moved there only for that."""
    parameter = next(module.parameters(), None)
    if parameter is not None and not parameter.is_meta:
        hooked = _execution_device(module)
        return parameter.device if hooked is None else hooked
    # Moved there for the computation, by a hook on the module or on each of its parts.
    devices = (_execution_device(part) for part in module.modules())
    return next((device for device in devices if device is not None), torch.device("cpu"))


def _execution_device(module: nn.Module) -> torch.device | None:
    """Return where accelerate's hook has a module computed, if it has one."""
    hook = getattr(module, "_hf_hook", None)
    devices = [getattr(each, "execution_device", None) for each in (hook, *getattr(hook, "hooks", ()))]
    return next((torch.device(device) for device in devices if device is not None), None)


def check_fits(prompt_tokens: int, context: int | None) -> None:
    """Raise a GenerationError when a prompt leaves no room for a single token."""
    if context is not None and prompt_tokens >= context:
        raise GenerationError(
            f"The prompt has {prompt_tokens} tokens, but the model's context holds {context}: "
            "shorten the conversation."
        )


@contextmanager
def clear_memory_errors() -> Iterator[None]:
    """Turn running out of memory into a MemoryShortage that says what to do."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not isinstance(error, (torch.OutOfMemoryError, MemoryError)) and not _OUT_OF_MEMORY.search(
            str(error)
        ):
            raise
        # Without its cause, whose traceback would hold on to what must be freed before the next attempt.
        problem = MemoryShortage(
            "Out of memory: use a smaller batch, a shorter conversation or quantization."
        )
    else:
        return
    raise problem


def accepted_arguments(model: PreTrainedModel) -> frozenset[str]:
    """Return the names that a model's forward pass takes; they differ a little between architectures."""
    return frozenset(inspect.signature(model.forward).parameters)


def cache_argument(module: nn.Module) -> str:
    """Return the name under which a forward pass takes its cache; newer transformers has one for all."""
    names = inspect.signature(module.forward).parameters
    return next((name for name in _CACHES if name in names), _CACHES[0])


def returned_cache(output: Any) -> Any:
    """Return the cache that a forward pass made by itself; None if there is none."""
    known = output.keys() if isinstance(output, Mapping) else ()
    return next((output[name] for name in _CACHES if name in known and output[name] is not None), None)


class Overflow(GenerationError):
    """The numbers of some rows of a batch overflowed.

    Attributes:
        rows: which.
    """

    def __init__(self, rows: Sequence[int]) -> None:
        super().__init__(NOT_FINITE)
        self.rows = tuple(rows)


def check_finite(logits: Tensor) -> None:
    """Raise an Overflow if no token can be chosen by some row of logits, `[rows, vocabulary]`."""
    # A token that cannot come has -inf; NaN is found by both. Where a norm met infinity, all are equal.
    low, high = logits.amin(-1), logits.amax(-1)  # on a CPU ten times as fast as `aminmax`
    good = high.isfinite() & (low < high)
    if not bool(good.all()):
        raise Overflow([place for place, each in enumerate(good.tolist()) if not each])


def append_rows(cache: Cache, other: Cache) -> None:
    """Add another cache's rows, of as many positions, to a cache."""
    for own, more in zip(cache.layers, other.layers, strict=True):
        for name in ("keys", "values"):
            if (tensor := getattr(own, name, None)) is not None:
                joined = torch.cat([tensor, getattr(more, name)])
                if isinstance(own, StaticLayer):
                    torch._dynamo.mark_static_address(joined)  # as the layer does, for CUDA graphs
                setattr(own, name, joined)
        for name in ("conv_states", "recurrent_states"):
            states, others = getattr(own, name, {}), getattr(more, name, {})
            states |= {
                key: torch.cat([each, others[key]]) for key, each in states.items() if each is not None
            }


def grows(cache: Cache) -> bool:
    """Return whether rows can be added to a cache: all that it keeps, it keeps row by row."""
    return all(type(layer) in _BY_ROW for layer in cache.layers)
