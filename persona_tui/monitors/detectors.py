"""What turns activations into a score: a few tensors each, without scikit-learn, so that checking is cheap.

Two forms are enough for all methods:

- `Cosines`: the cosine to what is safe minus the cosine to what is dangerous (tone, content).
- `Linear`: a weighted sum of the activation, averaged over layers, and for probes turned into a probability
  (projection, probe, consensus).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor

from persona_tui.vectors.files import check_direction
from persona_tui.vectors.maths import normalize

TONE, CONTENT, PROJECTION, PROBE, CONSENSUS = "tone", "content", "projection", "probe", "consensus"
METHODS = (TONE, CONTENT, PROJECTION, PROBE, CONSENSUS)


@dataclass(frozen=True, eq=False)
class Cosines:
    """Scores from -2 to 2, averaged over the layers.

    Attributes:
        safe: `[layers, hidden]`, unit length.
        dangerous: `[layers, hidden]`, unit length.
    """

    safe: Tensor
    dangerous: Tensor

    @classmethod
    def between(cls, safe: Tensor, dangerous: Tensor) -> Cosines:
        """From what the cosines are taken to, of any length."""
        return cls(normalize(safe), normalize(dangerous))

    def by_layer(self, activations: Tensor) -> Tensor:
        """`[n, layers, hidden]` to `[n, layers]`."""
        return (normalize(activations) * self.vectors).sum(-1)

    def scores(self, activations: Tensor) -> Tensor:
        """`[n, layers, hidden]` to `[n]`."""
        return self.by_layer(activations).mean(-1)

    @property
    def vectors(self) -> Tensor:
        """What activations are compared with, `[layers, hidden]`: from dangerous to safe."""
        return self.safe - self.dangerous

    def tensors(self) -> dict[str, Tensor]:
        """Return the tensors to store."""
        return {"safe": self.safe, "dangerous": self.dangerous}


@dataclass(frozen=True, eq=False)
class Linear:
    """Weighted sums, averaged over the layers.

    Attributes:
        weights: `[layers, hidden]`.
        bias: `[layers]`.
        probability: whether the average is a log-odds of which the probability is the score.
    """

    weights: Tensor
    bias: Tensor
    probability: bool

    def by_layer(self, activations: Tensor) -> Tensor:
        """`[n, layers, hidden]` to `[n, layers]`, before anything becomes a probability."""
        return (activations * self.weights).sum(-1) + self.bias

    def scores(self, activations: Tensor) -> Tensor:
        """`[n, layers, hidden]` to `[n]`."""
        mean = self.by_layer(activations).mean(-1)
        return mean.sigmoid() if self.probability else mean

    @property
    def vectors(self) -> Tensor:
        """What activations are multiplied by, `[layers, hidden]`."""
        return self.weights

    def tensors(self) -> dict[str, Tensor]:
        """Return the tensors to store."""
        return {"weights": self.weights, "bias": self.bias}


Form: TypeAlias = Cosines | Linear


@dataclass(frozen=True, eq=False)
class Detector:
    """A fitted method.

    Attributes:
        method: tone, content, projection, probe or consensus.
        position: which tokens are read: message, prompt_last or reply.
        layers: where, in the order of the form's rows.
        form: what scores.
        threshold: above it, a query is called safe.
        fit: figures of its cross-validation.
    """

    method: str
    position: str
    layers: tuple[int, ...]
    form: Form
    threshold: float
    fit: dict[str, Any]

    def agreement(self, activations: Tensor) -> float:
        """Return the share of the layers that alone say what all say together, of one `[layers, hidden]`."""
        threshold = torch.tensor(self.threshold, dtype=torch.float64)
        if isinstance(self.form, Linear) and self.form.probability:
            threshold = threshold.logit(eps=1e-9)
        alone = self.form.by_layer(activations.unsqueeze(0))[0]
        together = float(self.form.scores(activations.unsqueeze(0))[0]) > self.threshold
        return float(((alone > threshold) == together).double().mean())

    def record(self) -> dict[str, Any]:
        """Return the part that goes into the file's metadata; the rest is `tensors`."""
        return {
            "method": self.method,
            "position": self.position,
            "layers": list(self.layers),
            "form": "cosines" if isinstance(self.form, Cosines) else "linear",
            "probability": isinstance(self.form, Linear) and self.form.probability,
            "threshold": self.threshold,
            "fit": self.fit,
        }

    @classmethod
    def restore(cls, record: dict[str, Any], tensors: dict[str, Tensor]) -> Detector:
        """Undo `record` and `Form.tensors`.

        Raises:
            KeyError, ValueError: a tensor is missing or of the wrong shape.
        """
        layers = tuple(record["layers"])
        form: Form
        if record["form"] == "cosines":
            form = Cosines(tensors["safe"], tensors["dangerous"])
            _check_rows(len(layers), form.safe, form.dangerous)
        else:
            form = Linear(tensors["weights"], tensors["bias"], record["probability"])
            if form.bias.shape != (len(layers),):
                raise ValueError(f"a bias of shape {list(form.bias.shape)} does not fit {len(layers)} layers")
            _check_rows(len(layers), form.weights)
        told = form.safe - form.dangerous if isinstance(form, Cosines) else form.weights
        check_direction(f"what {record['method']} scores with", told.flatten())
        position, threshold = record["position"], float(record["threshold"])
        return cls(record["method"], position, layers, form, threshold, dict(record["fit"]))


def _check_rows(layers: int, *tensors: Tensor) -> None:
    for tensor in tensors:
        if tensor.dim() != 2 or tensor.shape != tensors[0].shape or len(tensor) != layers or not layers:
            raise ValueError(f"a tensor of shape {list(tensor.shape)} does not fit {layers} layers")


@dataclass(frozen=True, eq=False)
class Harms:
    """Which harm a dangerous query is about: one weighted sum a harm, of one layer.

    Attributes:
        names: the harms.
        position: which tokens are read.
        layer: where.
        weights: `[harms, hidden]`.
        bias: `[harms]`.
        accuracy: how often it is right in cross-validation, 0 to 1.
    """

    names: tuple[str, ...]
    position: str
    layer: int
    weights: Tensor
    bias: Tensor
    accuracy: float

    def probabilities(self, activations: Tensor) -> Tensor:
        """`[n, hidden]` to `[n, harms]`; they add up to 1."""
        return (activations @ self.weights.T + self.bias).softmax(-1)

    def likeliest(self, activation: Tensor) -> tuple[str, float]:
        """Return the likeliest harm of one `[hidden]`, and how likely it is."""
        value, place = self.probabilities(activation.unsqueeze(0))[0].max(0)
        return self.names[int(place)], float(value)
