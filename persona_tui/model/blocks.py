"""Where a model's decoder blocks are, whatever its architecture calls them."""

from __future__ import annotations

import torch
from torch import nn
from transformers import PretrainedConfig, PreTrainedModel

from persona_tui.core.errors import ModelLoadError


def text_config(model: PreTrainedModel) -> PretrainedConfig:
    """The config of the language part: the model's own, or the one nested in a multimodal config."""
    config: PretrainedConfig = model.config.get_text_config(decoder=True)
    return config


def n_layers(model: PreTrainedModel) -> int:
    """How many decoder blocks the model has."""
    return int(text_config(model).num_hidden_layers)


def hidden_size(model: PreTrainedModel) -> int:
    """The width of the residual stream."""
    return int(text_config(model).hidden_size)


def context_length(model: PreTrainedModel) -> int | None:
    """The most tokens that the model can see at once, or None when its positions have no limit."""
    limit = getattr(text_config(model), "max_position_embeddings", None)
    return int(limit) if limit else None


def find_decoder(model: PreTrainedModel) -> nn.Module:
    """The module that turns token ids into final hidden states, without the language-model head."""
    decoder: nn.Module = model.get_decoder()  # type: ignore[no-untyped-call]
    return decoder


def find_blocks(model: PreTrainedModel) -> nn.ModuleList:
    """The stack of decoder blocks, found by its length instead of by its name.

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
    """The device that a module computes on, also when its weights are moved there only for that."""
    parameter = next(module.parameters(), None)
    if parameter is not None and not parameter.is_meta:
        hooked = _execution_device(module)
        return parameter.device if hooked is None else hooked
    # Moved there for the computation, by a hook on the module or on each of its parts.
    devices = (_execution_device(part) for part in module.modules())
    return next((device for device in devices if device is not None), torch.device("cpu"))


def _execution_device(module: nn.Module) -> torch.device | None:
    """Where accelerate's hook has a module computed, if it has one."""
    hook = getattr(module, "_hf_hook", None)
    devices = [getattr(each, "execution_device", None) for each in (hook, *getattr(hook, "hooks", ()))]
    return next((torch.device(device) for device in devices if device is not None), None)
