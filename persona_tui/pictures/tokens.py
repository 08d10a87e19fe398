"""What a direction means to the model itself: the tokens that it raises and lowers most."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from persona_tui.core.documents import printable
from persona_tui.core.errors import GenerationError
from persona_tui.model.packed import dense

if TYPE_CHECKING:
    from persona_tui.model import ModelWrapper
    from persona_tui.vectors.manager import PersonaManager

_TOKENS = 10  # of either side
_NORMS = ("norm", "ln_f", "final_layernorm", "final_layer_norm", "norm_f", "ln_out", "output_norm")


@dataclass(frozen=True)
class TokenShift:
    """What a direction does to the next token at one layer, read through the unembedding.

    Attributes:
        layer: where the direction is added.
        raised: tokens whose logit rises most, each with by how much, the largest first.
        lowered: those whose logit falls most.
    """

    layer: int
    raised: tuple[tuple[str, float], ...]
    lowered: tuple[tuple[str, float], ...]


def token_shifts(model: ModelWrapper, personas: PersonaManager, name: str) -> list[TokenShift]:
    """Read a direction through the model's unembedding, layer by layer.

    The unit direction is scaled by the final norm's weight and multiplied with the unembedding: what adding
    it would do to the logits if no later layer answered (the logit lens, of a difference). The mean over the
    vocabulary is taken off, since it changes no probability.

    Args:
        model: whose vocabulary it is.
        personas: those of the model, with its axes.
        name: an axis, a persona, or a trait as `trait:NAME`.

    Raises:
        GenerationError: the model has no unembedding.
        PersonaNotFoundError: there is no such direction.
    """
    model.need_weights("Reading a direction as tokens")
    head: object = model.model.get_output_embeddings()  # type: ignore[no-untyped-call]
    weight = getattr(head, "weight", None)
    if not isinstance(weight, Tensor):
        raise GenerationError(f"{model.name} has no unembedding to read a direction through.")
    weight = dense(weight).float()
    scale = _final_scale(model.model)
    found = []
    with torch.no_grad():
        for layer, direction in _directions(personas, name).items():
            unit = direction / direction.norm().clamp(min=1e-12)
            unit = unit.to(weight.device, torch.float32) * (scale if scale is not None else 1.0)
            shifts = weight @ unit
            found.append(_shift(model, layer, shifts - shifts.mean()))
    return found


def _directions(personas: PersonaManager, name: str) -> Mapping[int, Tensor]:
    """Return what is read, by layer: of a persona or a trait, what is added of it."""
    axes = personas.axes
    if axes is not None and name in axes.names:
        return {layer: axes.axis(name, layer) for layer in axes.layers}
    return personas.get(name).direction()


def _shift(model: ModelWrapper, layer: int, shifts: Tensor) -> TokenShift:
    """Return the ends of the vocabulary's shifts, as text."""
    sides = []
    for largest in (True, False):
        top = shifts.topk(min(_TOKENS, len(shifts)), largest=largest)
        pairs = zip(top.values.tolist(), top.indices.tolist(), strict=True)
        told = ((str(model.tokenizer.decode([at])), float(value)) for value, at in pairs)
        sides.append(tuple((printable(token), value) for token, value in told))
    return TokenShift(layer, sides[0], sides[1])


def _final_scale(model: nn.Module) -> Tensor | None:
    """Return the weight of the norm before the unembedding; None if the model has none that is found."""
    for module in (model, getattr(model, "model", None), getattr(model, "transformer", None)):
        for name in _NORMS:
            weight = getattr(getattr(module, name, None), "weight", None)
            if isinstance(weight, Tensor):
                return weight.detach().float()
    return None
