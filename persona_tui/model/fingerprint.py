"""Telling whether two loaded models are the same one."""

from __future__ import annotations

import hashlib
import json

import torch
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
    embeddings = list(model.get_input_embeddings().parameters())
    for tensor in model.parameters():
        if tensor.is_meta or (tensor.dim() != 1 and not any(tensor is each for each in embeddings)):
            continue
        digest.update(str(list(tensor.shape)).encode())
        digest.update(_sample(tensor))
    return digest.hexdigest()


def _sample(tensor: torch.Tensor) -> bytes:
    places = torch.linspace(0, tensor.numel() - 1, _SAMPLES).long().to(tensor.device)
    numbers = tensor.detach().flatten()[places].to(torch.bfloat16).float()
    return numbers.cpu().numpy().tobytes()
