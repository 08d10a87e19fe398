"""What the guide costs: tokens per second with and without a twin for every steered row.

    python benchmarks/guide.py [--model starter] [--rows 1 4 16] [--tokens 64] [--repetitions 5] [--threads 2]

Every way writes the same number of tokens, steered over the default band; the two take turns.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial

import torch
from measuring import machine, middle, set_threads, table, take_turns

from persona_tui.core.config import Settings, band_layers
from persona_tui.model import Interventions, ModelWrapper, Request, Sampling, conversation

ASKED = conversation("Tell me a long story about a lighthouse.")
ALPHA = 0.02


def steering(model: ModelWrapper) -> Interventions:
    """A direction of random numbers, a tenth as long as the residual stream: what it says does not matter."""
    band = band_layers(Settings(), model.n_layers)
    ordinary = model.read([ASKED], band)[0].response.norm(dim=-1)
    unit = torch.nn.functional.normalize(torch.randn(model.hidden_size), dim=0)
    return Interventions({layer: 0.1 * size * unit for layer, size in zip(band, ordinary, strict=True)})


def written(model: ModelWrapper, way: Interventions, rows: int, tokens: int) -> float:
    """Write replies; how many tokens that were."""
    requests = [Request(ASKED, seed) for seed in range(rows)]
    return sum(1 for _ in model.stream(requests, Sampling(tokens), way))


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="starter")
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 4, 16])
    parser.add_argument("--tokens", type=int, default=64, help="in a reply")
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    set_threads(options.threads)
    torch.manual_seed(0)
    model = ModelWrapper.load(options.model, device="cpu")
    model._end_tokens = frozenset()  # all replies are equally long
    free = steering(model)
    guided = Interventions(free.steering, plausibility=ALPHA)
    print(f"{machine()} {model.name}, {model.dtype}")
    lines = []
    for rows in options.rows:
        ways: dict[str, Callable[[], float]] = {
            name: partial(written, model, way, rows, options.tokens)
            for name, way in (("free", free), ("guided", guided))
        }
        for way in ways.values():
            way()
        costs = {name: middle(each) for name, each in take_turns(ways, options.repetitions).items()}
        without, under = costs["free"], costs["guided"]
        lines.append(
            (rows, 1 / without.wall, 1 / under.wall, under.wall / without.wall, under.cpu / without.cpu)
        )
    heads = ("rows", "tokens/s without", "tokens/s with", "times the time", "times the CPU time")
    print(table(heads, lines))


if __name__ == "__main__":
    main()
