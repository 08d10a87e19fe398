"""How the time and memory of an extraction grow, as tables, fitted exponents and a plot.

    python benchmarks/growth.py -o growth.md --plot growth.svg      about five minutes
    python benchmarks/growth.py --rounds 3                          the medians of three: a quarter of an hour
    python benchmarks/growth.py --quick                             two small points of each curve

Every point is a process of its own, so that its peak memory is its own, too. All points take turns, and a
point is the median over the rounds. Each process has one thread, so that its CPU seconds are the time that it
takes on a machine without other work; growth is judged by them. The exponent is the slope of a straight line
through the points on logarithmic scales: 1 is linear growth. The slope of the last three points is given
as well, since a fixed cost hides growth at the small end. Whatever is worse than linear is marked.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
from collections.abc import Sequence
from dataclasses import asdict, astuple, dataclass, replace
from pathlib import Path
from statistics import fmean, median

from measuring import (
    BUILTIN,
    SIZE_NAMES,
    child,
    forget_peak,
    machine,
    peak_memory,
    set_threads,
    short,
    table,
    timed,
)
from plotting import Curve, plot
from sides import EFFORTS, Bench, extractor, persona_requests

_UNITS = ("CPU seconds", "MiB above the loaded model")
_SMALL = 16  # MiB; less than that is the allocator's
_END = 3  # points: two would say more about their noise
TOLERANCE = 0.1  # how much an exponent may be off before it counts as worse


@dataclass(frozen=True)
class Work:
    """One extraction.

    Attributes:
        size: which model.
        prompts: how many responses are written.
        tokens: in each.
        layers: how many are captured.
        batch: responses that are written together.
        processes: that share the batches.
    """

    size: str = BUILTIN
    prompts: int = 128
    tokens: int = 32
    layers: int = 8
    batch: int = 32
    processes: int = 1


@dataclass(frozen=True)
class Sweep:
    """One thing that is varied.

    Attributes:
        field: of `Work`.
        title: what it is called.
        values: of that field; the last two tell most.
        base: everything else.
        most: the exponents of time and memory that linear growth has.
    """

    field: str
    title: str
    values: tuple[int, ...]
    base: Work = Work()
    most: tuple[float, float] = (1, 1)

    def works(self, quick: bool) -> dict[int, Work]:
        """What is measured, by value."""
        values = self.values[:2] if quick else self.values
        base = replace(self.base, prompts=8, tokens=4, batch=4) if quick else self.base
        return {value: replace(base, **{self.field: value}) for value in values}


@dataclass(frozen=True)
class Point:
    """What one extraction took.

    Attributes:
        cpu: seconds of this process, the first one if there are several.
        seconds: on the clock.
        memory: the most above what it began with, in MiB.
    """

    cpu: float
    seconds: float
    memory: float


SWEEPS = (
    Sweep("prompts", "number of prompts", (100, 200, 400, 800), Work(tokens=16), (1, 0)),
    Sweep("tokens", "response length in tokens", (16, 32, 64, 128, 256, 512), Work(prompts=32)),
    Sweep("layers", "layers captured", (1, 2, 4, 8, 16, 24), Work("deep", 64, batch=32)),
    # Twice the batch halves the number of passes, so that time must not grow at all.
    Sweep("batch", "responses in a batch", (2, 4, 8, 16, 32, 64, 128), Work(prompts=128), (0, 1)),
    Sweep("processes", "processes", (1, 2, 4, 8), Work(prompts=256), (-1, 0)),
)


# Points -----------------------------------------------------------------------------------------------------


def measure_here(work: Work) -> Point | None:
    """Do one extraction in this process; None in a process that is not the main one."""
    from persona_tui.core.processes import processes

    bench = Bench(work.size, EFFORTS[BUILTIN], "cpu", "float32")
    requests = persona_requests(work.prompts)
    layers = range(min(work.layers, bench.wrapper.n_layers))
    extractor(bench.wrapper, layers, 2, 2).run(persona_requests(2 * work.processes))  # to warm up
    runner = extractor(bench.wrapper, layers, work.batch, work.tokens)
    processes().wait()
    forget_peak()
    before = peak_memory()

    def extract() -> float:
        runner.run(requests)
        processes().wait()
        return 1

    cost = timed(extract)
    return Point(cost.cpu, cost.wall, peak_memory() - before) if processes().is_main else None


def measure(work: Work) -> Point:
    """Do one extraction in a process, or several, of its own."""
    command = [__file__, "--child", json.dumps(asdict(work))]
    if work.processes > 1:
        launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node"]
        command = [*launcher, str(work.processes), *command]
    output = child([sys.executable, *command], {"OMP_NUM_THREADS": "1"})
    return Point(**json.loads(output.strip().splitlines()[-1]))


def measure_all(works: Sequence[Work], rounds: int) -> dict[Work, Point]:
    """Every point, in turns."""
    found: dict[Work, list[Point]] = {work: [] for work in works}
    for turn in range(rounds):
        for work in works if turn % 2 == 0 else reversed(works):
            found[work].append(measure(work))
            print(f"  {turn + 1}/{rounds} {work}: {found[work][-1]}", file=sys.stderr, flush=True)
    return {work: _middle(points) for work, points in found.items()}


def _middle(points: Sequence[Point]) -> Point:
    return Point(*(median(values) for values in zip(*map(astuple, points), strict=True)))


# Exponents --------------------------------------------------------------------------------------------------


def exponent(xs: Sequence[float], ys: Sequence[float]) -> float:
    """The slope of the straight line through points on logarithmic scales, by least squares."""
    logs_x, logs_y = [math.log(x) for x in xs], [math.log(max(y, 1e-9)) for y in ys]
    mean_x, mean_y = fmean(logs_x), fmean(logs_y)
    above = sum((x - mean_x) * (y - mean_y) for x, y in zip(logs_x, logs_y, strict=True))
    return above / sum((x - mean_x) ** 2 for x in logs_x)


def section(sweep: Sweep, works: dict[int, Work], points: dict[Work, Point]) -> tuple[str, list[Curve]]:
    """The table of one sweep, what is to be said of it, and its curves."""
    values = list(works)
    found = [points[work] for work in works.values()]
    rows = [
        (f"{value:,}", short(point.cpu), short(point.memory), short(point.seconds))
        for value, point in zip(values, found, strict=True)
    ]
    time_taken, memory = [each.cpu for each in found], [max(_SMALL, each.memory) for each in found]
    curves = [
        Curve(sweep.title, unit, values, measured, exponent(values, measured), most)
        for unit, measured, most in zip(_UNITS, (time_taken, memory), sweep.most, strict=True)
    ]
    text = table((sweep.title, *_UNITS, "seconds"), rows)
    return text + "\n\n" + "\n".join(_judged(curve) for curve in curves), curves


def _judged(curve: Curve) -> str:
    last = exponent(curve.xs[-_END:], curve.ys[-_END:])
    worse = max(curve.exponent, last) > curve.linear + TOLERANCE
    verdict = "**worse than linear**" if worse else "not worse than linear"
    return (
        f"- {curve.unit}: exponent {curve.exponent:.2f}, at the end {last:.2f}; "
        f"linear would be {curve.linear:g}: {verdict}"
    )


# All of it --------------------------------------------------------------------------------------------------


def parser() -> argparse.ArgumentParser:
    """The options."""
    result = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    result.add_argument("--only", nargs="+", choices=[each.field for each in SWEEPS])
    result.add_argument("--rounds", type=int, default=1)
    result.add_argument("--quick", action="store_true", help="little of everything, to see that it works")
    result.add_argument("-o", "--output", type=Path)
    result.add_argument("--plot", type=Path, help="file for the curves, an SVG")
    result.add_argument("--child", help=argparse.SUPPRESS)
    return result


def main() -> None:
    """Print every curve."""
    options = parser().parse_args()
    if options.child:
        work = Work(**json.loads(options.child))
        set_threads(1)
        point = measure_here(work)
        if point is not None:
            print(json.dumps(asdict(point)))
        return
    sweeps = [_possible(sweep) for sweep in SWEEPS if not options.only or sweep.field in options.only]
    works = list(dict.fromkeys(work for sweep in sweeps for work in sweep.works(options.quick).values()))
    points = measure_all(works, 1 if options.quick else options.rounds)
    set_threads(1)
    texts, curves = [f"Measured on {machine()}.\n"], []
    for sweep in sweeps:
        text, found = section(sweep, sweep.works(options.quick), points)
        texts.append(f"## {sweep.title.capitalize()}\n\n{SIZE_NAMES[sweep.base.size]}\n\n{text}\n")
        curves += found
    print("\n".join(texts))
    if options.output:
        options.output.write_text("\n".join(texts), encoding="utf-8")
    if options.plot:
        options.plot.write_text(plot(curves), encoding="utf-8")


def _possible(sweep: Sweep) -> Sweep:
    """With no more processes than there are cores, but two."""
    most = max(2, os.cpu_count() or 1)
    values = tuple(value for value in sweep.values if sweep.field != "processes" or value <= most)
    return replace(sweep, values=values)


if __name__ == "__main__":
    main()
