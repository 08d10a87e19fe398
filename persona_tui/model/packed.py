"""Linear layers on a CPU that multiply with oneDNN, their weights kept in its own layout.

torch multiplies float32 matrices with MKL, which reorders the weight in every call and leaves half the speed
of processors that are not Intel's unused. oneDNN reorders a weight once. The reordered one takes the place of
the plain one, so that nothing is held twice; whoever reads it gets the plain numbers back, bit for bit
(`dense`, `state_dict`). Sums are taken in another order: in float32, products differ by rounding.

A head that shares its weight with the embeddings keeps the plain one and only multiplies with oneDNN.
"""

from __future__ import annotations

import platform
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

# torch compiles its own models to these; they are no public interface, so that a version may lack them.
_NEEDED = ("_linear_pointwise", "_reorder_linear_weight", "_is_mkldnn_bf16_supported")


class PackedLinear(nn.Linear):
    """A linear layer that multiplies with oneDNN; made of one that is there, by `pack`."""

    def forward(self, input: Tensor) -> Tensor:
        """Multiply; gradients reach the input, and not the weight."""
        if torch.is_grad_enabled() and input.requires_grad:
            product: Tensor = _Product.apply(input, self.weight, self.bias)  # type: ignore[no-untyped-call]
            return product
        return _product(input, self.weight, self.bias)

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        destination[f"{prefix}weight"] = dense(destination[f"{prefix}weight"])


class _Product(torch.autograd.Function):
    """oneDNN's product has no gradient of its own in torch."""

    @staticmethod
    def forward(ctx: Any, given: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.weight = weight
        return _product(given, weight, bias)

    @staticmethod
    def backward(ctx: Any, *slopes: Tensor) -> tuple[Tensor, None, None]:
        return _product(slopes[0], dense(ctx.weight).T.contiguous(), None), None, None


def _product(given: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    product: Tensor = torch.ops.mkldnn._linear_pointwise(given, weight, bias, "none", [], "")
    return product


def dense(weight: Tensor) -> Tensor:
    """Return a weight in the usual layout: itself, or a copy if it is packed."""
    return weight.to_dense() if weight.is_mkldnn else weight


def pack(model: PreTrainedModel) -> None:
    """Have a model's linear layers multiply with oneDNN; those that something else acts on are left alone.

    Nothing is done where that was not measured to be faster: other processors than x86-64, GPUs, float16,
    quantised models, layers that are moved to where they compute, and models with adapters.
    """
    if not _can(model):
        return
    owners = Counter(id(each) for module in model.modules() for each in module._parameters.values())
    for module in model.modules():
        if type(module) is not nn.Linear or not _fits(module):
            continue
        module.__class__ = PackedLinear
        if owners[id(module.weight)] == 1:
            packed = torch.ops.mkldnn._reorder_linear_weight(module.weight.detach(), None)
            module.weight = nn.Parameter(packed, requires_grad=False)


def unpack(model: PreTrainedModel) -> None:
    """Undo `pack`."""
    for module in model.modules():
        if isinstance(module, PackedLinear):
            if module.weight.is_mkldnn:
                module.weight = nn.Parameter(dense(module.weight.detach()), requires_grad=False)
            module.__class__ = nn.Linear  # type: ignore[assignment]


@contextmanager
def packed(model: PreTrainedModel) -> Iterator[None]:
    """Within, the model is packed."""
    pack(model)
    try:
        yield
    finally:
        unpack(model)


def _can(model: PreTrainedModel) -> bool:
    return (
        platform.machine() in ("x86_64", "AMD64")
        and torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
        and all(hasattr(torch.ops.mkldnn, name) for name in _NEEDED)
        and not getattr(model, "hf_device_map", None)
        and not getattr(model, "is_quantized", False)
        and not getattr(model, "_hf_peft_config_loaded", False)
    )


def _fits(linear: nn.Linear) -> bool:
    weight, acted = linear.weight, linear._forward_hooks or linear._forward_pre_hooks
    known = weight.dtype == torch.float32 or (
        weight.dtype == torch.bfloat16 and torch.ops.mkldnn._is_mkldnn_bf16_supported()
    )
    return known and weight.device.type == "cpu" and not weight.requires_grad and not acted
