"""How much one fit of a persona differs from another, for several ways of stepping through the lessons.

    python benchmarks/fits.py [--model starter] [--dtype bfloat16] [--workspace FOLDER]
                              [--personas surgeon ...] [--ways constant falling ...] [--seeds 1 2]
                              [--nats 0.15]

Every seed has lessons of its own, and its own order of them. A dozen replies would measure little more than
their own luck, so nothing is sampled: over the tokens of given replies, prompted and plain, to questions that
no other script asks, the expected log-likelihood ratio of the *next* token is read, at a chat's temperature.
0 = as the plain model expects, 1 = as the model with the system prompt does. Likewise nats lost, and led by
the question: what a question makes likelier, beside the plain model, which has 1. The vectors of every fit
are read at three sizes, and both figures where they lose `--nats`, on straight lines between these.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator
from dataclasses import dataclass
from statistics import fmean

import numpy as np
import torch
from measuring import opened, persona_arguments, table
from torch import Tensor

from persona_tui.core.config import override
from persona_tui.core.jobs import JobContext
from persona_tui.extraction.bench import Bench
from persona_tui.extraction.distil import EMPHASIS, FOCUS, Course, _lessons, _own_lessons, undistilled
from persona_tui.extraction.sizes import likeliest
from persona_tui.model import Request, Sampling, conversation
from persona_tui.model.distil import Distillation, _added, _frozen, _project
from persona_tui.model.forced import response_logits
from persona_tui.project.project import Project
from persona_tui.vectors.files import RECIPE
from persona_tui.vectors.persona import DEFAULT_DOSE

QUESTIONS = (
    "How do I remove a coffee stain?",
    "Why do leaves change colour in autumn?",
    "Should I lend money to a relative?",
    "How does a vaccine work?",
    "What is a good present for my grandmother?",
    "How can I stop biting my nails?",
    "What do you think of city life?",
    "Explain how a rainbow forms.",
    "My flight was cancelled. What now?",
    "How do I make a simple soup?",
    "Is it ever right to lie?",
    "Tell me something about elephants.",
)
TOKENS, HOT, SIZES = 40, 0.7, (1.0, 1.4, 1.9)
HEADER = ("persona", "way", "seed", "at 1.2", "nats lost", "led", "at equal nats", "led", "size")
Vectors = dict[int, Tensor]


@dataclass(frozen=True)
class Way:
    """How far steps go in the pass over given lessons, and in that over the model's own.

    Attributes:
        given: rate of each step; after all lessons, they come in another order.
        own: the same.
        rows: lessons in a step.
        by_layer: whether the optimizer scales whole layers rather than each number of a vector.
        averaged: whether the vectors are the mean over the own steps rather than what the last one left.
    """

    given: tuple[float, ...] = (0.3,) * 4
    own: tuple[float, ...] = (0.15,) * 4
    rows: int = 3
    by_layer: bool = False
    averaged: bool = False


def falling(rate: float, steps: int) -> tuple[float, ...]:
    """Rates that fall linearly towards nothing."""
    return tuple(rate * (1 - step / steps) for step in range(steps))


WAYS = {
    "constant": Way(),
    "averaged": Way(averaged=True),
    "falling": Way(falling(0.48, 4), falling(0.24, 4)),
    "falling, steps of two": Way(falling(0.4, 6), falling(0.2, 6), rows=2),
    "falling, lessons twice": Way(falling(0.3, 8), falling(0.15, 8)),
    "scaled by layer": Way(by_layer=True),
}


def steps(
    teaching: Distillation, start: Vectors, rates: tuple[float, ...], way: Way, seed: int, without: Vectors
) -> list[Vectors]:
    """The vectors after each step."""
    learned = {layer: each.float().clone().requires_grad_() for layer, each in start.items()}
    unit = fmean(float(each.norm()) for each in start.values()) / math.sqrt(
        next(iter(start.values())).numel()
    )
    optimizer = torch.optim.Adam(list(learned.values()), betas=(0.9, 0.99))
    if teaching._first != min(learned):
        teaching._first = min(learned)
        teaching._below.clear()
    found, todo, turn = [], list[int](), 0
    scales = _ByLayer(list(learned.values())) if way.by_layer else optimizer
    with _frozen(teaching._model):
        for rate in rates:
            if not todo:
                todo = list(range(len(teaching._lessons)))
                random.Random(seed + 7919 * turn).shuffle(todo)
                turn += 1
            scales.param_groups[0]["lr"] = rate * unit
            teaching._step(todo[: way.rows], learned, scales)
            del todo[: way.rows]
            _project(learned, without)
            found.append({layer: each.detach().clone() for layer, each in learned.items()})
    return found


class _ByLayer(torch.optim.Optimizer):
    """Adam with one second moment for each vector."""

    def __init__(self, vectors: list[Tensor]) -> None:
        super().__init__(vectors, {"lr": 0.0})
        self._first = [torch.zeros_like(each) for each in vectors]
        self._second = [0.0] * len(vectors)
        self._count = 0

    @torch.no_grad()
    def step(self, closure: object = None) -> None:
        self._count += 1
        (group,) = self.param_groups
        for at, each in enumerate(group["params"]):
            self._first[at].mul_(0.9).add_(each.grad, alpha=0.1)
            self._second[at] = 0.99 * self._second[at] + 0.01 * float(each.grad.pow(2).mean())
            scale = math.sqrt(self._second[at] / (1 - 0.99**self._count))
            each.sub_(self._first[at], alpha=group["lr"] / (1 - 0.9**self._count) / max(scale, 1e-12))


class Reader:
    """Given replies, and what is expected at each of their tokens with and without the system prompt."""

    def __init__(self, project: Project, prompts: list[str], first: int) -> None:
        model = self._model = project.model
        sampling, bare = Sampling(TOKENS, HOT, 0.95), [conversation(each) for each in QUESTIONS]
        taught = [conversation(each, prompts[at % len(prompts)]) for at, each in enumerate(QUESTIONS)]
        lessons = []
        for asked in (taught, bare):
            requests = [Request(each, 50 + at) for at, each in enumerate(asked)]
            texts = [each.text.strip() or "." for each in model.generate(requests, sampling)]
            lessons += list(zip(taught, bare, texts, strict=True))
        self._teaching = model.distillation(lessons)
        self._teaching._first = first
        sides = ("taught", "bare", "strange")
        known = [self._expected([getattr(each, side) for each in self._teaching._lessons]) for side in sides]
        self._taught = [each.clamp(min=-20).half() for each in known[0]]
        self._ratio = [(one - other).half() for one, other in zip(known[0], known[1], strict=True)]
        self._led = [(one - other).half() for one, other in zip(known[1], known[2], strict=True)]
        self._ends = self._means(known[1]), self._means(known[0])

    def _expected(self, passages: list) -> list[Tensor]:
        threes = [passages[at : at + 3] for at in range(0, len(passages), 3)]
        rows = (row for three in threes for row in response_logits(self._model.model, three))
        return [row.float().log_softmax(-1) for row in rows]

    def _means(self, rows: list[Tensor]) -> tuple[float, float, float]:
        """Of the ratio of likelihoods, of the likelihood with the system prompt, of what a question does."""
        sums = []
        for what in (self._ratio, self._taught, self._led):
            pairs = zip(rows, what, strict=True)
            sums.append(fmean(float(((a / HOT).softmax(-1) * b.float()).sum(-1).mean()) for a, b in pairs))
        return sums[0], sums[1], sums[2]

    def read(self, vectors: Vectors, size: float) -> tuple[float, float, float]:
        """Expression, nats lost, and led by the question."""
        plain, prompted = self._ends
        count = len(self._teaching._lessons)
        with _added(self._model._blocks, {layer: size * each for layer, each in vectors.items()}):
            rows = [
                row
                for at in range(0, count, 3)
                for row in self._teaching._bare_logits(range(at, min(at + 3, count)))
            ]
        found = self._means(rows)
        share = (found[0] - plain[0]) / (prompted[0] - plain[0])
        return share, prompted[1] - found[1], found[2] / plain[2]


def rows(
    project: Project, name: str, ways: list[str], seeds: list[int], nats: float
) -> Iterator[tuple[object, ...]]:
    """A persona's lines of the table."""
    extractor = project.studio(JobContext()).extractor
    settings, bench = extractor.settings, Bench(extractor, undistilled(project.personas.get(name)))
    sizes = likeliest(bench.recovered, bench.coefficient(DEFAULT_DOSE))
    persona, best = bench.persona, max(sizes, key=lambda each: sizes[each])
    stack = best * persona.safe[RECIPE]
    start = {layer: stack[persona.layers.index(layer)] for layer in bench.band}
    reader = Reader(project, list(persona.metadata["prompts"]), min(bench.band))
    for seed in seeds:
        extractor.settings = override(settings, {"calibration.seed": seed})
        course: Course = bench.course
        model, given = extractor.model, _lessons(course)
        teaching = model.distillation(given, EMPHASIS, FOCUS)
        for title in ways:
            way = WAYS[title]
            fitted = steps(teaching, start, way.given, way, seed, course.without)[-1]
            own = _own_lessons(course, torch.stack([fitted[layer] for layer in bench.band]), 0)
            correcting = model.distillation(own, EMPHASIS, FOCUS, own=True)
            after = steps(correcting, fitted, way.own, way, seed + 1, course.without)
            if way.averaged:
                after = [{layer: torch.stack([e[layer] for e in after]).mean(0) for layer in bench.band}]
            curve = [reader.read(after[-1], size) for size in SIZES]
            said, lost, led = map(np.array, zip(*curve, strict=True))
            equal = [float(np.interp(nats, lost, column)) for column in (said, led, SIZES)]
            yield (name, title, seed, *reader.read(after[-1], 1.2), *equal)


def means(lines: list[tuple[object, ...]]) -> Iterator[tuple[object, ...]]:
    """Every way: the mean over personas and seeds, and how far seeds lie from their persona's mean."""
    for way in dict.fromkeys(line[1] for line in lines):
        same = [line for line in lines if line[1] == way]
        yield ("mean", way, "", *(fmean(float(str(line[at])) for line in same) for at in range(3, 9)))
        names = {line[0] for line in same}
        spreads = []
        for at in range(3, 9):
            groups = [[float(str(line[at])) for line in same if line[0] == name] for name in names]
            squares = sum((each - fmean(group)) ** 2 for group in groups for each in group)
            spreads.append(math.sqrt(squares / max(1, len(same) - len(names))))
        yield ("spread", way, "", *spreads)


def main() -> None:
    """Print the table."""
    parser = persona_arguments(__doc__)
    parser.add_argument("--ways", nargs="*", choices=WAYS, default=list(WAYS), metavar="WAY")
    parser.add_argument("--seeds", type=int, nargs="*", default=[1, 2])
    parser.add_argument("--nats", type=float, default=0.15)
    options = parser.parse_args()
    project = opened(options)
    lines: list[tuple[object, ...]] = []
    for name in options.personas or project.personas.list_available():
        for line in rows(project, name, options.ways, options.seeds, options.nats):
            lines.append(line)
            print(*line, flush=True)
    print(table(HEADER, [*lines, *means(lines)]))


if __name__ == "__main__":
    main()
