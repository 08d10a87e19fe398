"""What the guide allows, and what it costs.

    python benchmarks/guide.py [--model starter] [--workspace FOLDER] [--personas sage trickster ...]
    python benchmarks/guide.py --speed [--rows 1 4 16] [--tokens 64] [--repetitions 5] [--threads 2]

The first prints, for every persona that the workspace has (or those that are named), expression and nats lost
on held-out questions (as in `checklist.py`, without the floor), and how much phrases repeat: at multiples of
the size that makes prompted replies likeliest, without the guide and with it. The default of
`steering.plausibility` and the sizes that a calibration tries are read off there.

The second prints tokens per second with and without a twin for every steered row. Every way writes the same
number of tokens, steered over the default band; the two take turns.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from statistics import median

import torch
from checklist import QUESTIONS, Bench
from measuring import machine, middle, opened, persona_arguments, set_threads, table, take_turns

from persona_tui.core.config import Settings, band_layers
from persona_tui.core.jobs import JobContext
from persona_tui.extraction.bench import Bench as Calibration
from persona_tui.extraction.sizes import likeliest
from persona_tui.model import Interventions, ModelWrapper, Request, Sampling, conversation
from persona_tui.project.project import Project
from persona_tui.vectors.persona import DEFAULT_DOSE, dose

ASKED = conversation("Tell me a long story about a lighthouse.")
WAYS = {0.0: (1.0, 1.6), 0.001: (1.6, 2.5), 0.005: (1.6, 2.5, 4.0), 0.02: (1.6, 2.5, 4.0), 0.1: (2.5, 4.0)}


def allowed(project: Project, names: list[str], questions: int, tokens: int) -> str:
    """A table of what each persona expresses, and what that costs, by plausibility and size."""
    bench, extractor = Bench(project, questions, tokens), project.studio(JobContext()).extractor
    sizes, heads = {}, []
    for name in names:
        persona = project.personas.get(name)
        trial = Calibration(extractor, persona, persona.steering_layers)
        tried = likeliest(trial.recovered, trial.coefficient(DEFAULT_DOSE))
        sizes[name] = max(tried, key=lambda size: tried[size])
        own = sizes[name] * dose(persona, trial.band, persona.recipe)
        heads.append(f"{name} (recovers {tried[sizes[name]]:.2f} at dose {own:.3f})")
    prompted = [bench.figures(name, bench.prompted(name)).repetition for name in names]
    rows: list[tuple[object, ...]] = [("prompted", "", *(f"{each:.3f}" for each in prompted), "")]
    for plausibility, multiples in WAYS.items():
        for multiple in multiples:
            found = []
            for name in names:
                strength = sizes[name] * multiple / project.personas.get(name).gain(plausibility > 0)
                texts = bench.steered(name, strength=strength, plausibility=plausibility)
                found.append(bench.figures(name, texts))
            cells = [f"{each.expression:.2f} at {each.lost:+.2f}, {each.repetition:.3f}" for each in found]
            typical = f"{median(e.expression for e in found):.2f} at {median(e.lost for e in found):+.2f}"
            rows.append((plausibility or "off", f"×{multiple:g}", *cells, typical))
            print(rows[-1], flush=True)
    return table(("guide", "size", *heads, "median"), rows)


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


def speed(model: ModelWrapper, counts: list[int], tokens: int, repetitions: int) -> str:
    """A table of tokens per second, by how many rows are written together."""
    torch.manual_seed(0)
    model._end_tokens = frozenset()  # all replies are equally long
    free = steering(model)
    guided = Interventions(free.steering, plausibility=Settings().steering.plausibility)
    lines = []
    for rows in counts:
        ways: dict[str, Callable[[], float]] = {
            name: partial(written, model, way, rows, tokens)
            for name, way in (("free", free), ("guided", guided))
        }
        for way in ways.values():
            way()
        costs = {name: middle(each) for name, each in take_turns(ways, repetitions).items()}
        without, under = costs["free"], costs["guided"]
        lines.append(
            (rows, 1 / without.wall, 1 / under.wall, under.wall / without.wall, under.cpu / without.cpu)
        )
    heads = ("rows", "tokens/s without", "tokens/s with", "times the time", "times the CPU time")
    return table(heads, lines)


def main() -> None:
    """Print one of the tables."""
    parser = persona_arguments(__doc__)
    parser.add_argument("--questions", type=int, default=16, help=f"at most {len(QUESTIONS)}")
    parser.add_argument("--tokens", type=int, default=48, help="in a reply")
    parser.add_argument("--speed", action="store_true")
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 4, 16])
    parser.add_argument("--repetitions", type=int, default=5)
    options = parser.parse_args()
    if options.speed:
        set_threads(options.threads)
        torch.set_grad_enabled(False)
        model = ModelWrapper.load(options.model, device="cpu")
        print(f"{model.name}, {model.dtype}; {machine()}\n")
        print(speed(model, options.rows, options.tokens, options.repetitions))
        return
    project = opened(options)
    names = options.personas or project.personas.list_available()
    print(allowed(project, names, options.questions, options.tokens))


if __name__ == "__main__":
    main()
