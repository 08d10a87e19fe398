"""How far copies of a model, and models that have nothing to do with it, are from its sketch.

    python benchmarks/identity.py [--model starter] [-o identity.md]

Vectors made on one model are used on another that differs by less than `FAR`; see `core/identity.py`.
"""

from __future__ import annotations

import argparse
import copy
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedModel

from persona_tui.core.identity import EQUAL, FAR
from persona_tui.model import loader
from persona_tui.model.architecture import find_blocks
from persona_tui.model.fingerprint import sketch

BLOCK = 64  # weights that share a scale, where they are quantised in blocks

Change = Callable[[PreTrainedModel], object]


def main() -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--model", default="starter")
    parser.add_argument("-o", "--output", type=Path)
    options = parser.parse_args()
    model, _ = loader.load(options.model, device="cpu", dtype="float32")
    begun = time.perf_counter()
    own = sketch(model)
    seconds = time.perf_counter() - begun
    lines = [
        f"{options.model} ({own.shape}); its sketch has {sum(map(len, own.numbers.values()))} numbers "
        f"and takes {seconds:.2f} s.",
        "",
        "| the same model, or another | difference | vectors are |",
        "| --- | --- | --- |",
    ]
    for name, change in CHANGES:
        changed = copy.deepcopy(model)
        change(changed)
        found = own.difference(sketch(changed))
        assert found is not None
        lines.append(f"| {name} | {found:.4f} | {_told(found)} |")
        print(lines[-1], flush=True)
    if options.output is not None:
        options.output.write_text("\n".join(lines) + "\n")


def _told(difference: float) -> str:
    if difference > FAR:
        return "refused"
    return "used" if difference <= EQUAL else "used with a note"


def matrices(model: PreTrainedModel) -> Iterator[Tensor]:
    """The embeddings and all other matrices, each once, to be changed in place."""
    yield from (each.data for each in model.parameters() if each.dim() == 2)


def to_nearest(bits: int, block: int | None = None) -> Change:
    """Round to the nearest of 2**bits levels, symmetric, with one scale per row or per block."""

    def change(model: PreTrainedModel) -> None:
        for weight in matrices(model):
            rows = weight.view(-1, block) if block and weight.shape[1] % block == 0 else weight
            scale = rows.abs().amax(1, keepdim=True).clamp(min=1e-12) / (2 ** (bits - 1) - 1)
            rows.copy_((rows / scale).round() * scale)

    return change


def noise(share: float) -> Change:
    """Add Gaussian noise of a share of every matrix' own size, as a fine-tune of that size would."""

    def change(model: PreTrainedModel) -> None:
        generator = torch.Generator().manual_seed(0)
        for weight in matrices(model):
            weight += share * weight.std() * torch.randn(weight.shape, generator=generator)

    return change


def drawn_again(model: PreTrainedModel) -> None:
    """Random weights of the same size."""
    generator = torch.Generator().manual_seed(0)
    for weight in matrices(model):
        weight.copy_(weight.std() * torch.randn(weight.shape, generator=generator))


def permuted(model: PreTrainedModel) -> None:
    """The same weights in other places, as in a model that was trained separately on the same data."""
    generator = torch.Generator().manual_seed(0)
    for weight in matrices(model):
        rows, columns = (torch.randperm(size, generator=generator) for size in weight.shape)
        weight.copy_(weight[rows][:, columns])


def reversed_blocks(model: PreTrainedModel) -> None:
    """The same blocks in the opposite order, and the same embeddings."""
    blocks = find_blocks(model)
    for place, block in enumerate(reversed(list(blocks))):
        blocks[place] = block


CHANGES: tuple[tuple[str, Change], ...] = (
    ("in bfloat16", lambda model: model.to(torch.bfloat16)),
    ("in float16", lambda model: model.to(torch.float16)),
    ("rounded to 8 bits per row", to_nearest(8)),
    (f"rounded to 4 bits per {BLOCK} weights", to_nearest(4, BLOCK)),
    ("rounded to 4 bits per row", to_nearest(4)),
    (f"rounded to 3 bits per {BLOCK} weights", to_nearest(3, BLOCK)),
    ("rounded to 3 bits per row", to_nearest(3)),
    ("rounded to 2 bits per row", to_nearest(2)),
    ("noise of 0.1%", noise(1e-3)),
    ("noise of 1%", noise(1e-2)),
    ("noise of 10%", noise(1e-1)),
    ("random weights of the same size", drawn_again),
    ("the same weights in other places", permuted),
    ("its blocks in the opposite order", reversed_blocks),
)


if __name__ == "__main__":
    main()
