"""How near the engine comes to what this machine can do: memory bandwidth for few rows, arithmetic for many.

    python benchmarks/roofline.py --model NAME [--rows 1 4 16 64] [--threads N] [--packed]

A step reads every weight once and multiplies it with every row. So it takes at least the time to read the
weights, and at least that of the multiplications; what is nearer to a step's time is its limit. Bandwidth is
measured by summing up an array larger than any cache, the matrix rate by multiplying square matrices of the
same precision. `steered` steps add vectors in the band and read every captured layer, as in extraction.
`--packed` also measures the same steps with linear weights in oneDNN's own layout (except a head that is tied
to the embeddings), to see what packing them would bring; `difference` is the largest of the logits.

Steps of all kinds take turns; the fastest one of each kind counts, as other work only ever slows a step down.
"""

from __future__ import annotations

import argparse
import gc
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import pairwise
from typing import Any

import torch
from measuring import machine, rotated, set_threads, table
from torch import Tensor, nn

from persona_tui.core.config import Settings, band_layers, capture_layers
from persona_tui.model import Interventions, ModelWrapper, Sampling, conversation
from persona_tui.model.request import Request

QUESTION = "Tell me what you did today, from the morning to the night, and what you thought about it."
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
_ARRAY = 1 << 28  # bytes
_SQUARE = 1024
HEADER = ("precision", "rows", "steered", "packed", "step, ms", "tokens/s", "limit", "share of the limit")


def best(work: Callable[[], object], repetitions: int) -> float:
    """Seconds of the fastest run; the first one only warms up."""
    work()
    times = []
    for _ in range(repetitions):
        began = time.perf_counter()
        work()
        times.append(time.perf_counter() - began)
    return min(times)


def bandwidth(repetitions: int) -> float:
    """Bytes per second that are read from memory."""
    array = torch.ones(_ARRAY // 4)
    return _ARRAY / best(array.sum, repetitions)


def matrix_rate(dtype: torch.dtype, repetitions: int) -> float:
    """Floating-point operations per second in a product of matrices."""
    left, right = (torch.randn(_SQUARE, _SQUARE, dtype=dtype) for _ in range(2))
    return 2 * _SQUARE**3 / best(lambda: left @ right, repetitions)


def weights(model: ModelWrapper) -> int:
    """How many numbers a step reads and multiplies: of all linear layers, the head included."""
    return sum(each.weight.numel() for each in model.model.modules() if isinstance(each, nn.Linear))


class PackedLinear(nn.Module):
    """A linear layer whose weight is in oneDNN's layout."""

    def __init__(self, linear: nn.Linear, rows: int) -> None:
        super().__init__()
        self.bias = linear.bias
        self.packed = torch.ops.mkldnn._reorder_linear_weight(linear.weight.detach(), rows)

    def forward(self, inputs: Tensor) -> Tensor:
        """Multiply."""
        product: Tensor = torch.ops.mkldnn._linear_pointwise(inputs, self.packed, self.bias, "none", [], "")
        return product


@contextmanager
def packed(model: ModelWrapper, rows: int) -> Iterator[None]:
    """Within, the model's linear layers are packed; a head that is tied to the embeddings is not."""
    tied = model.model.get_input_embeddings().weight
    replaced: list[tuple[nn.Module, str, nn.Linear]] = []
    for parent in list(model.model.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.Linear) and child.weight is not tied:
                replaced.append((parent, name, child))
                setattr(parent, name, PackedLinear(child, rows))
    try:
        yield
    finally:
        for parent, name, child in replaced:
            setattr(parent, name, child)


def step_times(model: ModelWrapper, rows: int, steered: bool, tokens: int) -> list[float]:
    """Seconds of every step after the first, which reads the prompt."""
    settings = Settings()
    layers = capture_layers(settings, model.n_layers) if steered else []
    ways = Interventions.none()
    if steered:
        generator = torch.Generator().manual_seed(0)
        band = band_layers(settings, model.n_layers)
        ways = Interventions({layer: torch.randn(model.hidden_size, generator=generator) for layer in band})
    requests = [Request(conversation(QUESTION), seed=row) for row in range(rows)]
    marks: list[float] = []
    model.generate(
        requests,
        Sampling(tokens, 0.7, 1.0),
        ways,
        layers,
        on_step=lambda: marks.append(time.perf_counter()),
    )
    return [later - earlier for earlier, later in pairwise(marks)]


def difference(model: ModelWrapper) -> float:
    """The largest difference that packing makes to a logit."""
    ids = torch.tensor([model.encode(conversation(QUESTION))])
    plain = model.model(ids).logits
    with packed(model, ids.shape[1]):
        return float((model.model(ids).logits - plain).abs().max())


def measured(
    model: ModelWrapper, rows: list[int], tokens: int, repetitions: int, packing: bool
) -> dict[tuple[int, bool, bool], float]:
    """The fastest step of every kind: rows, whether steered, whether packed."""
    kinds = [
        (count, steered, pack)
        for count in rows
        for steered in (False, True)
        for pack in ((False, True) if packing else (False,))
    ]
    found: dict[tuple[int, bool, bool], float] = {}
    for turn in range(repetitions):
        for name in rotated([str(place) for place in range(len(kinds))], turn):
            kind = count, steered, pack = kinds[int(name)]
            if pack:
                with packed(model, count):
                    times = step_times(model, count, steered, tokens)
            else:
                times = step_times(model, count, steered, tokens)
            found[kind] = min([*times, found.get(kind, float("inf"))])
    return found


def main() -> None:
    """Print the machine's limits and the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="starter")
    parser.add_argument("--rows", nargs="*", type=int, default=[1, 4, 16, 64])
    parser.add_argument("--dtypes", nargs="*", choices=list(DTYPES), default=list(DTYPES))
    parser.add_argument("--tokens", type=int, default=24)
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--threads", type=int, help="by default as many as torch takes")
    parser.add_argument("--packed", action="store_true", help="also with weights in oneDNN's layout")
    options = parser.parse_args()
    torch.set_grad_enabled(False)
    lines: list[list[Any]] = []
    for name in options.dtypes:
        model = ModelWrapper.load(options.model, "cpu", name)
        set_threads(options.threads)
        dtype, numbers = DTYPES[name], weights(model)
        found = measured(model, options.rows, options.tokens, options.repetitions, options.packed)
        # After the steps, when the machine is as busy as it was for them.
        read, rate = bandwidth(10), matrix_rate(dtype, 10)
        print(
            f"{name}: {numbers / 1e6:.0f} million weights; memory {read / 1e9:.1f} GB/s, matrices "
            f"{rate / 1e9:.0f} GFLOP/s"
            + (f"; packed, logits differ by {difference(model):.1e}" if options.packed else ""),
            flush=True,
        )
        for (count, steered, pack), seconds in sorted(found.items()):
            limits = {
                "memory": numbers * dtype.itemsize / read,
                "arithmetic": 2 * numbers * count / rate,
            }
            limit = max(limits, key=lambda each: limits[each])
            lines.append(
                [
                    name,
                    count,
                    "yes" if steered else "no",
                    "yes" if pack else "no",
                    seconds * 1e3,
                    count / seconds,
                    limit,
                    limits[limit] / seconds,
                ]
            )
        del model
        gc.collect()
    print(f"\n{options.model}; {machine()}\n")
    print(table(HEADER, lines))


if __name__ == "__main__":
    main()
