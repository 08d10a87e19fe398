"""Ways to distil, side by side: what the lessons are, how many, and what the teacher exaggerates.

    python benchmarks/lessons.py [--model starter] [--workspace FOLDER] [--personas sage ...]
                                 [--ways given own ...] [--sizes 0.75 1] [--questions 24] [--tokens 48]

Every way fits the vectors of every persona from the start. Then the model answers held-out questions with
them, without the floor and the guide: expression, nats lost, repetition and on topic as in `checklist.py`,
the last as a share of plain replies'. Cost is that of distilling, in thousands of tokens through the model.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from statistics import fmean
from unittest.mock import patch

from checklist import QUESTIONS, Checklist
from measuring import opened, persona_arguments, table

from persona_tui.core.jobs import JobContext
from persona_tui.extraction import distil
from persona_tui.extraction.bench import Bench as Calibration
from persona_tui.extraction.distil import EMPHASIS, FOCUS, distilled, undistilled
from persona_tui.extraction.sizes import likeliest
from persona_tui.model import Interventions, Request, conversation
from persona_tui.vectors.files import DISTILLED
from persona_tui.vectors.persona import DEFAULT_DOSE


@dataclass(frozen=True)
class Way:
    """How vectors are fitted; see the constants of `extraction/distil.py`.

    Attributes:
        lessons: of each kind.
        rates: of the passes over given replies.
        own: of the passes over replies of its own.
        emphasis: how far the teacher goes.
        focus: how much more than the model itself it is led by the question.
    """

    lessons: int
    rates: tuple[float, ...]
    own: tuple[float, ...] = ()
    emphasis: float = EMPHASIS
    focus: float = FOCUS


WAYS = {
    "given": Way(12, (0.3, 0.15)),
    "own": Way(12, (0.3,), (0.15,)),
    "own, no focus": Way(12, (0.3,), (0.15,), focus=0.0),
    "own, no focus, emphasis 1.5": Way(12, (0.3,), (0.15,), 1.5, 0.0),
    "own, emphasis 2, focus 0.5": Way(12, (0.3,), (0.15,), 2.0, 0.5),
    "own, many": Way(24, (0.3,), (0.15,)),
}
HEADER = ("persona", "way", "cost", "size", "expression", "nats lost", "repetition", "on topic")


def rows(bench: Checklist, name: str, ways: list[str], sizes: list[float]) -> Iterator[tuple[object, ...]]:
    """A persona's lines of the table."""
    extractor = bench.project.studio(JobContext()).extractor
    persona = undistilled(bench.project.personas.get(name))
    calibration = Calibration(extractor, persona)
    found = likeliest(calibration.recovered, calibration.coefficient(DEFAULT_DOSE))
    start = max(found, key=lambda each: found[each])
    base = bench.on_topic(bench.plain())
    own = bench.figures(name, bench.prompted(name))
    topic = bench.on_topic(bench.prompted(name)) / base
    yield (name, "its system prompts", "", "", 1.0, "+0.00", f"{own.repetition:.3f}", topic)
    band = calibration.band
    for way in ways:
        before, plan = extractor.tokens, WAYS[way]
        with patch.multiple(distil, LESSONS=plan.lessons, RATES=plan.rates, OWN_RATES=plan.own):
            fitted = distilled(calibration.course, start, plan.emphasis, plan.focus)
        cost = (extractor.tokens - before) / 1000
        vectors = {layer: fitted.safe[DISTILLED][fitted.layers.index(layer)] for layer in band}
        for size in sizes:
            added = Interventions({layer: size * each for layer, each in vectors.items()})
            requests = [Request(conversation(each), 1000 + row) for row, each in enumerate(bench.asked)]
            said = [
                each.text.strip() or "."
                for each in bench.project.model.generate(requests, bench.sampling, added)
            ]
            at = bench.figures(name, said)
            share = bench.on_topic(said) / base
            yield (
                name,
                way,
                f"{cost:.0f}",
                size,
                at.expression,
                f"{at.lost:+.2f}",
                f"{at.repetition:.3f}",
                share,
            )


def means(lines: list[tuple[object, ...]]) -> Iterator[tuple[object, ...]]:
    """Every way and size, the mean over personas."""
    for key in dict.fromkeys(line[1:4:2] for line in lines):
        same = [line for line in lines if line[1:4:2] == key]
        figures = [fmean(float(str(line[column])) for line in same) for column in range(4, 8)]
        yield ("mean", key[0], same[0][2], key[1], *figures)


def main() -> None:
    """Print the table."""
    parser = persona_arguments(__doc__)
    parser.add_argument("--ways", nargs="*", choices=WAYS, default=list(WAYS), metavar="WAY")
    parser.add_argument("--sizes", type=float, nargs="*", default=[0.75, 1.0])
    parser.add_argument("--questions", type=int, default=24, help=f"at most {len(QUESTIONS)}")
    parser.add_argument("--tokens", type=int, default=48, help="in a reply")
    options = parser.parse_args()
    bench = Checklist(opened(options), options.questions, options.tokens)
    lines: list[tuple[object, ...]] = []
    for name in options.personas or bench.project.personas.list_available():
        for line in rows(bench, name, options.ways, options.sizes):
            lines.append(line)
            print(*line, flush=True)
    print(table(HEADER, [*lines, *means(lines)]))


if __name__ == "__main__":
    main()
