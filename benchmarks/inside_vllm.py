"""What steering, capping and tracing cost inside vLLM, and what it saves in an extraction.

    python benchmarks/inside_vllm.py [--model starter] [--rows 1 16 64] [--tokens 64] [--eager] [--extraction]
    python benchmarks/inside_vllm.py --op

1. Tokens per second of the same requests plain, steered, steered and capped, and with means summed up;
   then token by token, without and with a trace. In turns; the fastest of several rounds, and its ratio to
   the first line's. Random vectors at 30-60% of the layers, small enough to change little.
2. With --extraction: replies with their means, on transformers and inside vLLM, in turns.
3. The memory of slots: computed.
4. With --op, without vLLM: processor time of the op in one pass over all layers, at the starter model's
   shape, the fastest of 200 passes.

vLLM has to be installed (`make test-vllm`); OMP_NUM_THREADS says how many cores are used.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING

from measuring import Cost, table, take_turns

if TYPE_CHECKING:
    from torch import Tensor

    from persona_tui.model import Interventions, ModelWrapper, Request, Sampling
    from persona_tui.vllm.engine import VllmModel

SHAPES = {"7B (28 x 3584)": (28, 3584), "70B (80 x 8192)": (80, 8192)}


def asked(rows: int) -> list[Request]:
    """Short questions, each with a seed of its own."""
    from persona_tui.model import Request

    topics = ("bread", "courage", "a broken chair", "the sea", "travel", "old friends", "rain", "a good map")
    return [
        Request([{"role": "user", "content": f"Tell me about {topics[at % len(topics)]}."}], at)
        for at in range(rows)
    ]


def ways(model: ModelWrapper) -> dict[str, Interventions]:
    """Nothing; vectors of 2% of a unit; the same with floors."""
    import torch

    from persona_tui.model import Cap, Interventions

    drawn = torch.Generator().manual_seed(0)
    depth, width = model.n_layers, model.hidden_size
    steering = {
        layer: 0.02 * torch.nn.functional.normalize(torch.randn(width, generator=drawn), dim=0)
        for layer in range(round(0.3 * depth), round(0.6 * depth))
    }
    caps = {
        layer: Cap(torch.nn.functional.normalize(torch.randn(width, generator=drawn), dim=0), -1e3)
        for layer in range(round(0.6 * depth), round(0.85 * depth))
    }
    return {
        "plain": Interventions(),
        "steered": Interventions(steering),
        "capped": Interventions(steering, caps),
    }


def compared(sides: Mapping[str, Callable[[], float]], repetitions: int) -> list[tuple[str, ...]]:
    """Tokens per second by side, the fastest of several rounds, and its speed over the first side's."""
    for side in sides.values():
        side()
    costs = {
        name: Cost(min(each.wall for each in own), min(each.cpu for each in own))
        for name, own in take_turns(sides, repetitions).items()
    }
    first = next(iter(costs.values()))
    return [
        (name, f"{1 / own.wall:.1f}", f"{first.wall / own.wall:.3f}", f"{first.cpu / own.cpu:.3f}")
        for name, own in costs.items()
    ]


HEADER = ("rows", "what", "tokens/s", "over the first, by the clock", "by processor time")


def costs(model: VllmModel, rows: Sequence[int], sampling: Sampling, repetitions: int) -> None:
    """Print what it costs to do something to tokens."""
    lines = []
    for count in rows:
        for sides in sides_of(model, asked(count), sampling):
            lines += [(count, *line) for line in compared(sides, repetitions)]
    print(table(HEADER, lines))


def sides_of(
    model: VllmModel, requests: list[Request], sampling: Sampling
) -> tuple[dict[str, Callable[[], float]], dict[str, Callable[[], float]]]:
    """The same requests, plain and otherwise: written in one piece, and token by token. Each side returns how
    many tokens were written."""
    known = ways(model)
    axes = {"a": known["steered"].steering}

    def written(way: Interventions) -> float:
        return sum(len(each.token_ids) for each in model.generate(requests, sampling, way))

    def streamed(traced: Mapping[str, Mapping[int, Tensor]]) -> float:
        return sum(1 for _ in model.stream(requests, sampling, known["capped"], traced))

    def summed() -> float:
        found = model.generate(requests, sampling, known["steered"], range(model.n_layers))
        return sum(len(each.token_ids) for each in found)

    sides: dict[str, Callable[[], float]] = {name: partial(written, way) for name, way in known.items()}
    streams = {"streamed": partial(streamed, {}), "streamed and traced": partial(streamed, axes)}
    return {**sides, "steered and summed up": summed}, streams


def extraction(model: VllmModel, name: str, dtype: str, rows: int, sampling: Sampling, repeats: int) -> None:
    """Print what an extraction gains: replies with the means of all layers."""
    from persona_tui.model import ModelWrapper

    requests = asked(rows)

    def extracted(each: ModelWrapper) -> float:
        found = each.generate(requests, sampling, capture_layers=range(each.n_layers))
        return sum(len(one.token_ids) for one in found)

    other = ModelWrapper.load(name, dtype=dtype)
    sides = {"transformers": partial(extracted, other), "vLLM": partial(extracted, model)}
    print(table(HEADER, [(rows, *line) for line in compared(sides, repeats)]))


OP_SHAPE = (30, 576)  # the starter model's layers and width


def op_alone(rows: Sequence[int]) -> None:
    """Print what the op costs in a pass that writes one token for each of some requests."""
    import torch

    from persona_tui.model import Cap
    from persona_tui.vllm import op
    from persona_tui.vllm.wire import Slot

    layers, hidden = OP_SHAPE
    torch.set_num_threads(1)
    buffers = op.SlotBuffers(layers, 4, hidden, max(rows), torch.device("cpu"), max(rows), traces=True)
    op.set_buffers(buffers)
    added = {layer: 0.02 * torch.randn(hidden) for layer in range(9, 18)}
    caps = {
        layer: Cap(torch.nn.functional.normalize(torch.randn(hidden), dim=0), -1e3) for layer in range(18, 26)
    }
    buffers.fill(1, Slot(added, {}))
    buffers.fill(2, Slot(added, caps))
    buffers.trace_one(0, added)

    def microseconds(slots: list[int], places: torch.Tensor | None = None, traced: bool = False) -> float:
        stream, residual = torch.randn(len(slots), hidden), torch.randn(len(slots), hidden)
        buffers.tell(slots, [1] * len(slots), places, traced)
        best = float("inf")
        with torch.inference_mode():
            for _ in range(200):
                begun = time.process_time()
                for layer in range(layers):
                    torch.ops.persona_tui.intervene(stream, residual, layer)
                best = min(best, time.process_time() - begun)
        return 1e6 * best

    def costs(count: int) -> dict[str, float]:
        half = [1] * (count // 2) + [0] * (count - count // 2)
        return {
            "plain": microseconds([0] * count),
            "steered alike": microseconds([1] * count),
            "half of them steered": microseconds(half),
            "steered and capped": microseconds([2] * count),
            "steered and summed up": microseconds([1] * count, torch.arange(1, count + 1)),
            "steered, capped and traced": microseconds([2] * count, traced=True),
        }

    lines = [(count, what, f"{cost:.0f}") for count in rows for what, cost in costs(count).items()]
    print(table(("rows", "what", "microseconds a pass"), lines))


def memory() -> None:
    """Print the memory of slots."""
    lines = [
        (name, slots, f"{slots * layers * hidden * 4 / 1e6:,.0f} MB")
        for name, (layers, hidden) in SHAPES.items()
        for slots in (33, 65, 257, 1025)
    ]
    print(table(("model", "slots", "computed"), lines))


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="starter")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 16, 64])
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--eager", action="store_true")
    parser.add_argument("--extraction", action="store_true")
    parser.add_argument("--op", action="store_true")
    options = parser.parse_args()
    if options.op:
        op_alone(options.rows)
        return

    from persona_tui.core.sections import VllmSettings
    from persona_tui.model import Sampling
    from persona_tui.vllm.engine import VllmModel

    settings = VllmSettings(requests=64, context=1024, eager=options.eager)
    model = VllmModel.start(options.model, dtype=options.dtype, settings=settings)
    sampling = Sampling(options.tokens, 0.7, 0.95)
    costs(model, options.rows, sampling, options.repeats)
    if options.extraction:
        extraction(model, options.model, options.dtype, 32, sampling, options.repeats)
    memory()
    model.driver.shut_down()


if __name__ == "__main__":
    main()
