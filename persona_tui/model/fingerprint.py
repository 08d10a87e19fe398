"""Telling whether two loaded models are the same one.

A fingerprint has two parts, `plain.weights`:

- *plain*, of the architecture, the embeddings, norms and biases: what quantization leaves alone. Every model
  has it, however it was loaded.
- *weights*, of all other matrices: what tells a fine-tune from its base where it left the rest alone. Only
  models that are in memory in float32 or bfloat16 have it: quantized ones have other numbers there, those in
  float16 have them rounded twice, and from the disk whole matrices would have to be read for a few numbers.

`persona_tui.vectors.files.same_model` compares what both models have. A fingerprint tells copies apart, for
replaying and for interrupted jobs; how near two models are, a sketch says (`core/identity.py`).
"""

from __future__ import annotations

import hashlib
import json
from contextlib import AbstractContextManager, nullcontext

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from persona_tui.core.identity import ModelSketch, Shape
from persona_tui.model.architecture import device_of, find_blocks, text_config
from persona_tui.model.packed import dense

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
    """Return the second part; empty if a matrix' own numbers are not at hand.

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
    """Return a tensor's shape and some of its numbers."""
    return str(list(tensor.shape)).encode() + _sample(tensor)


def _sample(tensor: torch.Tensor) -> bytes:
    # In whole numbers: as floats, places in a vocabulary of 150,000 words are off by some, also at the end.
    places = [number * (tensor.numel() - 1) // (_SAMPLES - 1) for number in range(_SAMPLES)]
    numbers = dense(tensor.detach()).flatten()[torch.tensor(places, device=tensor.device)]
    return numbers.to(torch.bfloat16).float().cpu().numpy().tobytes()


_ROWS = 16  # of each matrix
_EMBEDDINGS = 32  # rows of the embeddings
_DIGITS = 6
_PLAIN = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


def sketch(model: PreTrainedModel) -> ModelSketch:
    """Return a model's shape and the sketch of its weights. It takes milliseconds, however large it is."""
    config = text_config(model)
    shape = Shape(
        str(config.model_type),
        int(config.hidden_size),
        int(config.num_hidden_layers),
        int(config.vocab_size),
    )
    blocks = find_blocks(model)
    last = len(blocks) - 1
    numbers = {"embeddings": _of_embeddings(model)}
    for layer in sorted({0, last // 3, 2 * last // 3, last}):
        for name, module in blocks[layer].named_modules():
            size = _size(module)
            found = _of_matrix(model, module, name, *size) if size is not None else None
            if found is not None:
                numbers[f"{layer}.{name}"] = found
    return ModelSketch(shape, {name: _rounded(each) for name, each in numbers.items()})


def _size(module: nn.Module) -> tuple[int, int] | None:
    """Return the numbers of inputs and outputs of a module that is a matrix, quantised or not; else None."""
    if isinstance(module, Conv1D):
        return int(module.nx), int(module.nf)
    inputs, outputs = getattr(module, "in_features", None), getattr(module, "out_features", None)
    return (inputs, outputs) if isinstance(inputs, int) and isinstance(outputs, int) else None


def _of_matrix(
    model: PreTrainedModel, module: nn.Module, name: str, inputs: int, outputs: int
) -> Tensor | None:
    """Return the projections of some rows, `[rows]`; None for what calls itself a matrix and is none."""
    signs, rows = _signs(name, inputs), _places(outputs, _ROWS)
    weight = module._parameters.get("weight")
    if weight is None or weight.dim() != 2 or weight.dtype not in _PLAIN:
        done = _applied(model, module, signs)
        return None if done is None or len(done) != outputs else done[rows]
    with in_memory(module):
        here = dense(dict(module.named_parameters(recurse=False))["weight"].detach())
        picked = here.T if isinstance(module, Conv1D) else here
        return picked[rows.to(here.device)].double().cpu() @ signs


def _applied(model: PreTrainedModel, module: nn.Module, signs: Tensor) -> Tensor | None:
    """Return what a quantised matrix makes of the signs, without its bias; None if it takes other input."""
    given = signs.to(device_of(module), model.dtype).expand(1, 1, -1)
    try:
        with torch.no_grad():
            done = module(given) - module(torch.zeros_like(given))
    except (TypeError, ValueError, RuntimeError):  # some routers of experts, for instance
        return None
    return done.flatten().double().cpu() if isinstance(done, Tensor) else None


def _of_embeddings(model: PreTrainedModel) -> Tensor:
    module = model.get_input_embeddings()
    assert isinstance(module, nn.Embedding)
    rows = _places(module.num_embeddings, _EMBEDDINGS).to(device_of(module))
    with torch.no_grad():
        if module.weight.dtype in _PLAIN:
            with in_memory(module):
                vectors = module.weight[rows.to(module.weight.device)]
        else:
            vectors = module(rows)
    return vectors.double().cpu() @ _signs("embeddings", vectors.shape[-1])


def _places(length: int, count: int) -> Tensor:
    return torch.tensor([number * (length - 1) // (count - 1) for number in range(count)])


def _signs(name: str, length: int) -> Tensor:
    """+1 or -1, `[length]`, from a name: the same ones with every version of every library."""
    data = hashlib.shake_256(name.encode()).digest(length // 8 + 1)
    bits = np.unpackbits(np.frombuffer(data, dtype=np.uint8))[:length]
    return torch.from_numpy(bits.astype(np.float64) * 2 - 1)


def _rounded(numbers: Tensor) -> list[float]:
    """As short as a file wants them; what is not finite counts as 0, and the file stays readable."""
    whole = torch.nan_to_num(numbers, posinf=0.0, neginf=0.0)
    return [float(f"{number:.{_DIGITS}g}") for number in whole.tolist()]
