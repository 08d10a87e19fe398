"""Sums of activations, the same to the last digit in whatever order they are added up; and the baseline.

The assistant baseline of one model is ordinary replies, before anything else is known of it. A persona needs
nothing but this; the axes are made from it later, and keep it from then on.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from persona_tui.core.errors import GenerationError, VectorFileError
from persona_tui.extraction.checkpoints import Tally
from persona_tui.model import Activations
from persona_tui.model.pool import UNIT, Pool
from persona_tui.vectors.files import (
    FORMAT_VERSION,
    RECIPES,
    SUFFIX,
    by_recipe,
    check_kind,
    check_layers,
    check_stacks,
    explain_fault,
    load_tensors,
    save_tensors,
)


@dataclass
class ActivationSums:
    """Running sums of response activations.

    The sums are whole numbers of a small unit, so that the same responses come to the same sums in any order,
    also when several processes or several runs share them; see `Pool`.

    Attributes:
        layers: where they were read, ascending.
        totals: by recipe, the sum over responses, `[layers, hidden]` int64.
        count: how many responses are in it. A response without a token is in none.
        tokens: how many response tokens they had.
        kept: by request, the `response` activation of the requests that were asked to be kept, `[layers,
            hidden]`.
    """

    layers: tuple[int, ...]
    totals: dict[str, Tensor] = field(default_factory=dict)
    count: int = 0
    tokens: int = 0
    kept: dict[int, Tensor] = field(default_factory=dict)

    def add(self, activations: Activations) -> None:
        """Count in one response.

        Raises:
            GenerationError: an activation is not a number, or too large to be one of a working model.
        """
        pool = Pool(self.layers)
        pool.add(activations)
        self.join(pool)

    def join(self, pool: Pool) -> None:
        """Count in responses that were summed up already."""
        if pool.totals is None:
            return
        for recipe, whole in zip(RECIPES, pool.totals, strict=True):
            self.totals[recipe] = self.totals[recipe] + whole if recipe in self.totals else whole
        self.count += pool.count
        self.tokens += pool.tokens

    def mean(self, recipe: str) -> Tensor:
        """Return the mean over the responses, `[layers, hidden]` float32.

        Raises:
            GenerationError: the model said nothing to any request.
        """
        if not self.count:
            raise GenerationError("the model gave only empty responses: there is nothing to extract from")
        return (self.totals[recipe].double() * UNIT / self.count).float()

    def means(self) -> dict[str, Tensor]:
        """Return the mean of every recipe."""
        return {recipe: self.mean(recipe) for recipe in RECIPES}

    def tally(self, items: Sequence[int]) -> Tally:
        """Return these sums as the result of some requests."""
        counts = {"responses": self.count, "tokens": self.tokens}
        return Tally(frozenset(items), dict(self.totals), counts, rows=dict(self.kept))

    @classmethod
    def of(cls, layers: tuple[int, ...], tally: Tally) -> ActivationSums:
        """Return the sums that a tally holds."""
        count, tokens = tally.counts.get("responses", 0), tally.counts.get("tokens", 0)
        return cls(layers, dict(tally.sums), count, tokens, dict(tally.rows))


def joined(kinds: Mapping[bool, ActivationSums], items: Sequence[int]) -> Tally:
    """Return the sums of two kinds as one tally."""
    sums = {
        f"{kind}.{recipe}": total for kind, each in kinds.items() for recipe, total in each.totals.items()
    }
    counts = {f"{kind}.responses": each.count for kind, each in kinds.items()}
    counts |= {f"{kind}.tokens": each.tokens for kind, each in kinds.items()}
    return Tally(frozenset(items), sums, counts)


def parted(layers: tuple[int, ...], tally: Tally) -> tuple[ActivationSums, ActivationSums]:
    """Return what `joined` has joined."""
    first, second = (
        ActivationSums(
            layers,
            {
                recipe: total
                for recipe in RECIPES
                if (total := tally.sums.get(f"{kind}.{recipe}")) is not None
            },
            tally.counts.get(f"{kind}.responses", 0),
            tally.counts.get(f"{kind}.tokens", 0),
        )
        for kind in (True, False)
    )
    return first, second


def together(first: ActivationSums, second: ActivationSums) -> ActivationSums:
    """Return the sums of both kinds as one."""
    both = [each.totals for each in (first, second) if each.count]
    totals = {recipe: torch.stack([each[recipe] for each in both]).sum(0) for recipe in RECIPES if both}
    return ActivationSums(first.layers, totals, first.count + second.count, first.tokens + second.tokens)


BASELINE_FILE = f"baseline{SUFFIX}"


@dataclass(frozen=True, eq=False)
class Baseline:
    """Ordinary replies.

    Attributes:
        layers: where they were read, ascending.
        mean: by recipe, `[layers, hidden]` float32.
        kept: the `response` activations of some replies, `[replies, layers, hidden]`, for the floors.
        count: how many replies the mean is of.
        metadata: where they come from.
    """

    layers: tuple[int, ...]
    mean: dict[str, Tensor]
    kept: Tensor
    count: int
    metadata: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, sums: ActivationSums, metadata: Mapping[str, Any]) -> Baseline:
        """Return what the replies' sums come to."""
        kept = torch.stack([sums.kept[index] for index in sorted(sums.kept)])
        return cls(sums.layers, sums.means(), kept, sums.count, dict(metadata))

    def serves(self, layers: Sequence[int], metadata: Mapping[str, Any]) -> bool:
        """Return whether it was read at these layers, from as many replies or more, sampled in the same way.

        Args:
            layers: where it is needed.
            metadata: what a new one would have.
        """
        if self.layers != tuple(layers) or self.metadata.get("asked", 0) < metadata["asked"]:
            return False
        return _sampled(self.metadata) == _sampled(metadata)

    def save(self, path: Path, *, inside: Path | None = None) -> None:
        """Write it to one file; see `files.save_tensors` for `inside` and the errors."""
        tensors = {f"baseline.{recipe}": mean for recipe, mean in self.mean.items()} | {"kept": self.kept}
        metadata = {
            **self.metadata,
            "kind": "baseline",
            "format_version": FORMAT_VERSION,
            "layers": list(self.layers),
            "count": self.count,
        }
        save_tensors(path, tensors, metadata, inside=inside)

    @classmethod
    def load(cls, path: Path) -> Baseline:
        """Read a model's baseline.

        Raises:
            VectorFileError: the file is missing, damaged, or holds something else.
        """
        tensors, metadata = load_tensors(path)
        check_kind(path, metadata, "baseline")
        try:
            layers = tuple(metadata["layers"])
            mean, kept = by_recipe(tensors, "baseline"), tensors["kept"]
            check_layers(layers)
            check_stacks(len(layers), {"baseline": mean})
            expected = next(iter(mean.values())).shape
            if kept.ndim != 3 or kept.shape[1:] != expected:
                raise ValueError(f'its "kept" replies are {list(kept.shape)}, not [n, {list(expected)}]')
            return cls(layers, mean, kept, metadata["count"], metadata)
        except (KeyError, ValueError, TypeError) as error:
            raise VectorFileError(f"{path} cannot be used: {explain_fault(error)}.") from error


def _sampled(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """Return how replies were sampled, but not how many of them to which questions."""
    extraction = metadata.get("extraction") or {}
    asked = {key: extraction.get(key) for key in ("max_new_tokens", "temperature", "top_p", "seed")}
    return {**asked, "baseline": extraction.get("baseline", "default")}
