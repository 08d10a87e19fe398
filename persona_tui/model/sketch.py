"""A sketch of a model's weights: few enough numbers for a vector file, near for copies, far for strangers.

Some rows of every matrix in four of the blocks, and of the embeddings, are multiplied with fixed random
signs. Such projections keep relative distances: those of a copy differ by about as much as its weights do.
Norms are left out: they are nearly the same in models that have nothing to do with each other.

Plain matrices are read in float64, so that the same weights in another precision have the same sketch. A
quantised matrix is applied instead: what it does to the signs is what counts, however it stores them.
"""

from __future__ import annotations

import hashlib

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from persona_tui.core.identity import ModelSketch, Shape
from persona_tui.model.blocks import device_of, find_blocks, text_config
from persona_tui.model.fingerprint import in_memory
from persona_tui.model.packed import plain

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
    """The numbers of inputs and outputs of a module that is a matrix, quantised or not; else None."""
    if isinstance(module, Conv1D):
        return int(module.nx), int(module.nf)
    inputs, outputs = getattr(module, "in_features", None), getattr(module, "out_features", None)
    return (inputs, outputs) if isinstance(inputs, int) and isinstance(outputs, int) else None


def _of_matrix(
    model: PreTrainedModel, module: nn.Module, name: str, inputs: int, outputs: int
) -> Tensor | None:
    """The projections of some rows, `[rows]`; None for what calls itself a matrix and is none."""
    signs, rows = _signs(name, inputs), _places(outputs, _ROWS)
    weight = module._parameters.get("weight")
    if weight is None or weight.dim() != 2 or weight.dtype not in _PLAIN:
        done = _applied(model, module, signs)
        return None if done is None or len(done) != outputs else done[rows]
    with in_memory(module):
        here = plain(dict(module.named_parameters(recurse=False))["weight"].detach())
        picked = here.T if isinstance(module, Conv1D) else here
        return picked[rows.to(here.device)].double().cpu() @ signs


def _applied(model: PreTrainedModel, module: nn.Module, signs: Tensor) -> Tensor | None:
    """What a quantised matrix makes of the signs, without its bias; None if it takes something else."""
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
