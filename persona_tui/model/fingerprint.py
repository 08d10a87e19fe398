"""Telling whether two loaded models are the same one.

A fingerprint has two parts, `plain.weights`:

- *plain*, of the architecture, the embeddings, norms and biases: what quantization leaves alone. Every model
  has it, however it was loaded.
- *weights*, of all other matrices: what tells a fine-tune from its base where it left the rest alone. Only
  models that are in memory in float32 or bfloat16 have it: quantized ones have other numbers there, those in
  float16 have them rounded twice, and from the disk whole matrices would have to be read for a few numbers.

`persona_tui.vectors.files.same_model` compares what both models have. A fingerprint tells copies apart, for
replaying and for interrupted jobs; how near two models are, a sketch says (`model/sketch.py`).
"""

from __future__ import annotations

import hashlib
import json
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import nn
from transformers import PreTrainedModel

from persona_tui.model.blocks import text_config
from persona_tui.model.packed import plain

_SAMPLES = 16  # numbers taken from each tensor
_WEIGHTS_LENGTH = 16  # hexadecimal digits
_WHOLE = (torch.float32, torch.bfloat16)

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
    """Hashes of the architecture, the shapes, and a few numbers of every tensor; see above.

    Numbers are compared in bfloat16, so that the same model in another precision keeps its fingerprint, and
    with it its vectors. No tensor is read as a whole: a large model takes milliseconds.
    """
    config = text_config(model)
    settings = [getattr(config, name, None) for name in _ARCHITECTURE]
    plain = hashlib.sha256(json.dumps(settings, default=str).encode())
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
        with in_memory(module):
            for name in wanted:
                tensor = own[name]
                assert tensor is not None
                plain.update(_described(tensor))
    matrices = [each for each in model.parameters() if id(each) not in seen and each.dim() == 2]
    return f"{plain.hexdigest()}.{_weights(matrices)}".removesuffix(".")


def _weights(matrices: list[nn.Parameter]) -> str:
    """The second part; empty if a matrix' own numbers are not at hand.

    Their order, and how experts are stacked into tensors of three dimensions, are transformers' own affair.
    """
    if any(each.is_meta or each.dtype not in _WHOLE for each in matrices):
        return ""
    described = sorted(map(_described, matrices))
    return hashlib.sha256(b"".join(described)).hexdigest()[:_WEIGHTS_LENGTH]


def in_memory(module: nn.Module) -> AbstractContextManager[None]:
    """Within, the parameters of a module are there, also when they are kept on another device or the disk."""
    if not hasattr(module, "_hf_hook"):
        return nullcontext()
    from accelerate.utils import align_module_device

    there: AbstractContextManager[None] = align_module_device(module)
    return there


def _described(tensor: torch.Tensor) -> bytes:
    """A tensor's shape and some of its numbers."""
    return str(list(tensor.shape)).encode() + _sample(tensor)


def _sample(tensor: torch.Tensor) -> bytes:
    # In whole numbers: as floats, places in a vocabulary of 150,000 words are off by some, also at the end.
    places = [number * (tensor.numel() - 1) // (_SAMPLES - 1) for number in range(_SAMPLES)]
    numbers = plain(tensor.detach()).flatten()[torch.tensor(places, device=tensor.device)]
    return numbers.to(torch.bfloat16).float().cpu().numpy().tobytes()
