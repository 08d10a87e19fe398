"""Gates: whether a conversation is about a trait at all.

A trait's scale says where a reply lies between the two sides of its examples. In a talk about recipes a reply
has a score, too, but the score means nothing. So each trait has a gate: a linear probe of the user's message,
fitted on the trait's own messages against others. It reads the mean over the message's tokens and the last
token before the reply, at some layers. It needs no reply, so it can say before one is written.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Protocol

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor

from persona_tui.core.statistics import best_threshold, roc_auc
from persona_tui.model import Message, Reading
from persona_tui.model.backend import Backend

Numbers = np.ndarray[Any, Any]

FOLDS = 8
LAYERS = 5  # that a gate reads: on a small real model better than any single one
RIDGE = 0.3  # times the mean of the squared lengths: strong, for there are few messages and many dimensions
BEFORE = 6  # messages before one of the user's that it is read after


class TraitGate(BaseModel):
    """A fitted gate; stored in the trait's metadata.

    Attributes:
        layers: where messages are read.
        weights: by layer, for the mean and then the last token, each `[hidden]`.
        bias: added to the weighted sum.
        threshold: from here on, a message is one for the trait.
        auc: how well left-out messages are told from ordinary ones.
        kept: the share of left-out messages of its own that it lets in.
        let_in: the share of left-out other messages that it lets in.
        counts: messages that it was fitted on: its own, others.
        yields_to: other traits. A message that one of them is surer of is theirs.
    """

    model_config = ConfigDict(extra="ignore", frozen=True, ignored_types=(cached_property,))

    layers: tuple[int, ...]
    weights: tuple[float, ...]
    bias: float
    threshold: float
    auc: float
    kept: float
    let_in: float
    counts: tuple[int, int]
    yields_to: tuple[str, ...] = ()

    @cached_property
    def _weights(self) -> Tensor:
        return torch.tensor(self.weights)

    def reading(self, read: Reading) -> float:
        """Return what a message comes to; above the threshold it is one for the trait."""
        row = features(read, self.layers)
        return float(row @ self._weights) + self.bias


class Gated(Protocol):
    """What has a name and may have a gate: a trait."""

    @property
    def name(self) -> str:
        """The trait's name."""

    @property
    def gate(self) -> TraitGate | None:
        """Its gate, if it has one."""


class Gates:
    """Says of conversations which traits they are not about; one pass over the user's messages."""

    def __init__(self, model: Backend, traits: Sequence[Gated]) -> None:
        """
        Args:
            model: what reads.
            traits: made on that model; those without a gate apply everywhere.
        """
        self._model = model
        self._gates = {trait.name: trait.gate for trait in traits if trait.gate is not None}
        self._layers = sorted({layer for gate in self._gates.values() for layer in gate.layers})

    def outside(self, prompts: Sequence[Sequence[Message]]) -> list[frozenset[str]]:
        """Return the traits that the last message of each prompt is not about.

        A message is read after a few of the messages before it, and without a system prompt, as gates were
        fitted. Where there is no message of the user's, or one that does not fit the context, nothing is
        ruled out.
        """
        found = [frozenset[str]()] * len(prompts)
        kept = {place: each for place, prompt in enumerate(prompts) if (each := self._kept(prompt))}
        if not self._gates or not kept:
            return found
        for place, read in zip(
            kept, self._model.read_messages(list(kept.values()), self._layers), strict=True
        ):
            found[place] = self._outside(read)
        return found

    def _outside(self, read: Reading) -> frozenset[str]:
        values = {name: gate.reading(read) for name, gate in self._gates.items()}
        inside = {name for name, gate in self._gates.items() if values[name] >= gate.threshold}
        left_to_others = {
            name
            for name in inside
            if any(values[other] > values[name] for other in inside.intersection(self._gates[name].yields_to))
        }
        return frozenset(self._gates) - (inside - left_to_others)

    def _kept(self, prompt: Sequence[Message]) -> list[Message] | None:
        """Return as much of a prompt as is read; None if there is nothing to go by."""
        if not prompt or prompt[-1]["role"] != "user" or not prompt[-1]["content"].strip():
            return None
        context = self._model.context_length
        spoken = [message for message in prompt if message["role"] != "system"]
        for messages in (recent(spoken), [prompt[-1]]):
            if context is None or self._model.count_tokens(messages) <= context:
                return messages
        return None


def recent(messages: Sequence[Message]) -> list[Message]:
    """Return the last message, after the system prompt and the few before it that it is read after."""
    opening = [message for message in messages[:1] if message["role"] == "system"]
    start = max(len(opening), len(messages) - 1 - BEFORE)
    while start < len(messages) - 1 and messages[start]["role"] != "user":
        start += 1  # a conversation begins with its user
    return [*opening, *messages[start:]]


def features(read: Reading, layers: Sequence[int]) -> Tensor:
    """Return a message as a gate reads it, `[layers * 2 * hidden]`: unit vectors, so all weigh the same."""
    assert read.last is not None  # a message's reading has it
    rows = [each[read.layers.index(layer)].float() for layer in layers for each in (read.mean, read.last)]
    return torch.cat([row / row.norm().clamp(min=1e-12) for row in rows])


def gate_layers(n_layers: int) -> tuple[int, ...]:
    """Return where gates read: a few layers spread over the middle and late ones."""
    ends = n_layers / 3, max(n_layers / 3, n_layers * 0.87)
    return tuple(sorted({min(n_layers - 1, round(each)) for each in np.linspace(*ends, LAYERS)}))


@dataclass(frozen=True)
class FittedGate:
    """A gate, and what it reads in the messages that it was fitted on, each left out of the fit.

    Attributes:
        gate: with a threshold that separates both kinds best.
        own: by message that the trait is about.
        other: by message that it is not about.
    """

    gate: TraitGate
    own: Numbers
    other: Numbers

    def at(self, threshold: float) -> TraitGate:
        """Return the gate with another threshold."""
        shares = {
            "kept": float((self.own >= threshold).mean()),
            "let_in": float((self.other >= threshold).mean()),
        }
        return self.gate.model_copy(update={"threshold": threshold, **shares})


def fit_gate(own: Sequence[Reading], other: Sequence[Reading], yields_to: Sequence[str] = ()) -> FittedGate:
    """Fit a gate at all layers that were read.

    Args:
        own: messages that the trait is about, at least two.
        other: messages that it is not about, at least two.
        yields_to: other traits, whose messages are among those.
    """
    layers = own[0].layers
    rows = torch.stack([features(each, layers) for each in (*own, *other)]).double().numpy()
    sides = np.array([1.0] * len(own) + [-1.0] * len(other))
    left_out = _left_out(rows, sides)
    inside, outside = left_out[sides > 0], left_out[sides < 0]
    weights, bias = _ridge(rows, sides)
    gate = TraitGate(
        layers=layers,
        weights=tuple(float(f"{each:.4g}") for each in weights),
        bias=bias,
        threshold=0.0,
        auc=roc_auc(inside, outside),
        kept=0.0,
        let_in=0.0,
        counts=(len(own), len(other)),
        yields_to=tuple(yields_to),
    )
    fitted = FittedGate(gate, inside, outside)
    return replace(fitted, gate=fitted.at(best_threshold(inside, outside)))


def _left_out(rows: Numbers, sides: Numbers) -> Numbers:
    """Return each row's value under weights fitted without it; folds have a like share of either side."""
    values = np.zeros(len(rows))
    folds = np.zeros(len(rows), dtype=int)
    for side in (1.0, -1.0):
        folds[sides == side] = np.arange(int((sides == side).sum())) % min(FOLDS, int((sides == side).sum()))
    for fold in range(folds.max() + 1):
        weights, bias = _ridge(rows[folds != fold], sides[folds != fold])
        values[folds == fold] = rows[folds == fold] @ weights + bias
    return values


def _ridge(rows: Numbers, sides: Numbers) -> tuple[Numbers, float]:
    """Fit a ridge regression on the side, both sides with the same weight; solved among the rows."""
    share = np.where(sides > 0, 0.5 / (sides > 0).sum(), 0.5 / (sides < 0).sum()) * len(sides)
    mean, middle = (rows * share[:, None]).mean(0), float((sides * share).mean())
    scaled = (rows - mean) * np.sqrt(share)[:, None]
    gram = scaled @ scaled.T
    ridge = RIDGE * np.trace(gram) / len(rows)
    solved = np.linalg.solve(gram + ridge * np.eye(len(rows)), (sides - middle) * np.sqrt(share))
    weights = scaled.T @ solved
    return weights, middle - float(mean @ weights)
