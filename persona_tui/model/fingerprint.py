"""Telling whether two loaded models are the same one."""

from __future__ import annotations

import hashlib
import json
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import nn
from transformers import PreTrainedModel

from persona_tui.model.blocks import text_config

_SAMPLES = 16  # numbers taken from each tensor

# Only what cannot change with the version of transformers or with the way a model is loaded.
_ARCHITECTURE = (
    "model_type",
    "vocab_size",
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "intermediate_size",
)


def fingerprint(model: PreTrainedModel) -> str:
    """A hash of the architecture, the shapes, and a few numbers of the embeddings, norms and biases.

    Those are the tensors that quantization leaves alone, and they are compared in bfloat16, so that the same
    model in another precision keeps its fingerprint, and with it its vectors.
    """
    config = text_config(model)
    settings = [getattr(config, name, None) for name in _ARCHITECTURE]
    digest = hashlib.sha256(json.dumps(settings, default=str).encode())
    embeddings = model.get_input_embeddings()
    seen: dict[int, torch.Tensor] = {}  # kept, so that no other tensor gets one's number
    for module in model.modules():
        own = module._parameters
        wanted = [
            name
            for name, each in own.items()
            if each is not None and id(each) not in seen and (each.dim() == 1 or module is embeddings)
        ]
        seen.update((id(each), each) for name in wanted if (each := own[name]) is not None)
        if not wanted:
            continue
        with _in_memory(module):
            for name in wanted:
                tensor = own[name]
                assert tensor is not None
                digest.update(str(list(tensor.shape)).encode())
                digest.update(_sample(tensor))
    return digest.hexdigest()


def _in_memory(module: nn.Module) -> AbstractContextManager[None]:
    """Within, the parameters of a module are there, also when they are kept on another device or the disk."""
    if not hasattr(module, "_hf_hook"):
        return nullcontext()
    from accelerate.utils import align_module_device

    there: AbstractContextManager[None] = align_module_device(module)
    return there


def _sample(tensor: torch.Tensor) -> bytes:
    places = torch.linspace(0, tensor.numel() - 1, _SAMPLES).long().to(tensor.device)
    numbers = tensor.detach().flatten()[places].to(torch.bfloat16).float()
    return numbers.cpu().numpy().tobytes()
