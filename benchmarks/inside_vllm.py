"""What steering, capping and tracing cost inside vLLM, and what it saves in an extraction.

    python benchmarks/inside_vllm.py [--model starter] [--rows 1 16 64] [--tokens 64] [--eager] [--extraction]

1. Tokens per second of the same requests plain, steered, steered and capped, and with means summed up;
   then token by token, without and with a trace. In turns; the fastest of several rounds, and its ratio to
   the first line's. Random vectors at 30-60% of the layers, small enough to change little.
2. With --extraction: replies with their means, on transformers and inside vLLM, in turns.
3. The memory of slots: computed.

vLLM has to be installed (`make test-vllm`); OMP_NUM_THREADS says how many cores are used.
"""

from __future__ import annotations

import argparse
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
    options = parser.parse_args()

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
