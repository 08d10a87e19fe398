"""How near the engine comes to what this machine can do: memory bandwidth for few rows, arithmetic for many.

    python benchmarks/roofline.py --model NAME [--rows 1 4 16 64] [--threads N] [--plain]

A step reads every weight once and multiplies it with every row. So it takes at least the time to read the
weights, and at least that of the multiplications; what is nearer to a step's time is its limit. Bandwidth is
measured by summing up an array larger than any cache, the matrix rate by multiplying square matrices of the
same precision (in torch's way or oneDNN's, whichever is faster). `steered` steps add vectors in the band and
read every captured layer, as in extraction. `--plain` also measures the same steps with weights that are not
packed (`persona_tui/model/packed.py`), to see what packing them brings.

Steps of all kinds take turns; the fastest one of each kind counts, as other work only ever slows a step down.
With `--threads 1`, time is that of the processor, which other work lengthens little.
"""

from __future__ import annotations

import argparse
import gc
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from itertools import pairwise
from typing import Any

import torch
from measuring import machine, rotated, set_threads, table
from torch import nn

from persona_tui.core.config import Settings, band_layers, capture_layers
from persona_tui.model import Interventions, ModelWrapper, Sampling, conversation
from persona_tui.model.packed import pack, unpack
from persona_tui.model.request import Request

QUESTION = "Tell me what you did today, from the morning to the night, and what you thought about it."
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
_ARRAY = 1 << 28  # bytes
_SQUARE = 1024
HEADER = ("precision", "rows", "steered", "packed", "step, ms", "tokens/s", "limit", "share of the limit")


def clock() -> float:
    """Seconds: of the processor, if there is one thread to count."""
    return time.thread_time() if torch.get_num_threads() == 1 else time.perf_counter()


def best(work: Callable[[], object], repetitions: int) -> float:
    """Seconds of the fastest run; the first one only warms up."""
    work()
    times = []
    for _ in range(repetitions):
        began = clock()
        work()
        times.append(clock() - began)
    return min(times)


def bandwidth(repetitions: int) -> float:
    """Bytes per second that are read from memory."""
    array = torch.ones(_ARRAY // 4)
    return _ARRAY / best(array.sum, repetitions)


def matrix_rate(dtype: torch.dtype, repetitions: int) -> float:
    """Floating-point operations per second in a product of matrices, by torch or by oneDNN."""
    left, right = (torch.randn(_SQUARE, _SQUARE, dtype=dtype) for _ in range(2))
    ways = [
        lambda: left @ right,
        lambda: torch.ops.mkldnn._linear_pointwise(left, right, None, "none", [], ""),
    ]
    return 2 * _SQUARE**3 / min(best(way, repetitions) for way in ways)


def weights(model: ModelWrapper) -> int:
    """How many numbers a step reads and multiplies: of all linear layers, the head included."""
    return sum(each.weight.numel() for each in model.model.modules() if isinstance(each, nn.Linear))


@contextmanager
def unpacked(model: ModelWrapper) -> Iterator[None]:
    """Within, the model's weights are not packed."""
    unpack(model.model)
    try:
        yield
    finally:
        pack(model.model)


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
        on_step=lambda: marks.append(clock()),
    )
    return [later - earlier for earlier, later in pairwise(marks)]


def difference(model: ModelWrapper) -> float:
    """The largest difference that packing makes to a logit, as a share of the largest logit."""
    ids = torch.tensor([model.encode(conversation(QUESTION))])
    found = model.model(ids).logits
    with unpacked(model):
        plain = model.model(ids).logits
    return float((found - plain).abs().max() / plain.abs().max())


def measured(
    model: ModelWrapper, rows: list[int], tokens: int, repetitions: int, plain_too: bool
) -> dict[tuple[int, bool, bool], float]:
    """The fastest step of every kind: rows, whether steered, whether packed."""
    kinds = [
        (count, steered, packs)
        for count in rows
        for steered in (False, True)
        for packs in ((False, True) if plain_too else (True,))
    ]
    found: dict[tuple[int, bool, bool], float] = {}
    for turn in range(repetitions):
        for name in rotated([str(place) for place in range(len(kinds))], turn):
            kind = count, steered, packs = kinds[int(name)]
            with nullcontext() if packs else unpacked(model):
                times = step_times(model, count, steered, tokens)
            found[kind] = min([*times, found.get(kind, float("inf"))])
    return found


def arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="starter")
    parser.add_argument("--rows", nargs="*", type=int, default=[1, 4, 16, 64])
    parser.add_argument("--dtypes", nargs="*", choices=list(DTYPES), default=list(DTYPES))
    parser.add_argument("--tokens", type=int, default=24)
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--threads", type=int, help="by default as many as torch takes")
    parser.add_argument("--plain", action="store_true", help="also with weights that are not packed")
    return parser.parse_args()


def lines_of(
    name: str, numbers: int, found: Mapping[tuple[int, bool, bool], float], read: float, rate: float
) -> Iterator[list[Any]]:
    """The table's lines of one type of numbers: what was measured, and what the machine's limits allow."""
    for (count, steered, packs), seconds in sorted(found.items()):
        limits = {
            "memory": numbers * DTYPES[name].itemsize / read,
            "arithmetic": 2 * numbers * count / rate,
        }
        limit = max(limits, key=lambda each: limits[each])
        words = ["yes" if steered else "no", "yes" if packs else "no"]
        yield [name, count, *words, seconds * 1e3, count / seconds, limit, limits[limit] / seconds]


def main() -> None:
    """Print the machine's limits and the table."""
    options = arguments()
    torch.set_grad_enabled(False)
    lines: list[list[Any]] = []
    for name in options.dtypes:
        model = ModelWrapper.load(options.model, "cpu", name)
        set_threads(options.threads)
        dtype, numbers = DTYPES[name], weights(model)
        found = measured(model, options.rows, options.tokens, options.repetitions, options.plain)
        # After the steps, when the machine is as busy as it was for them.
        read, rate = bandwidth(10), matrix_rate(dtype, 10)
        print(
            f"{name}: {numbers / 1e6:.0f} million weights; memory {read / 1e9:.1f} GB/s, matrices "
            f"{rate / 1e9:.0f} GFLOP/s"
            f"; packing changes logits by {difference(model):.1e} of the largest",
            flush=True,
        )
        lines += lines_of(name, numbers, found, read, rate)
        del model
        gc.collect()
    print(f"\n{options.model}; {machine()}\n")
    print(table(HEADER, lines))


if __name__ == "__main__":
    main()
