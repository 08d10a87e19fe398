"""What distilling brings: the mean difference and the distilled vectors of the same personas, side by side.

    python benchmarks/distil.py [--model starter] [--workspace FOLDER] [--personas sage trickster ...]

For every persona that the workspace has (or those that are named): what either recipe recovers of the system
prompts' effect on held-out replies at its likeliest size, and expression and nats lost of generated replies
to the same questions, without the floor and with the guide, at the multiples of that size that a calibration
begins with. Personas that have no distilled vectors yet are distilled first. The last column is what
distilling costs, in thousands of tokens that pass through the model.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from measuring import machine, set_threads, table

from persona_tui.core.jobs import JobContext
from persona_tui.extraction.bench import Bench
from persona_tui.extraction.calibration import MULTIPLES
from persona_tui.extraction.distil import distil_work, distilled
from persona_tui.extraction.sizes import likeliest
from persona_tui.project.project import Project
from persona_tui.vectors.persona import DEFAULT_DOSE, DISTILLED

START = 1.6  # where the search for the size of distilled vectors begins, as in a calibration


def heard(bench: Bench, sizes: dict[float, float], guide: float) -> list[str]:
    """What is recovered at the likeliest size, and figures of replies at multiples of it."""
    size = max(sizes, key=lambda each: sizes[each])
    points = bench.sweep([size * each for each in MULTIPLES[bench.recipe].guided], guide, capped=False)
    figures = [f"{each.expression:.2f} at {each.fluency_drop:+.2f}" for each in points]
    return [f"{sizes[size]:.2f}", *figures]


def row(project: Project, name: str, guide: float) -> list[str]:
    """A persona's line of the table."""
    extractor, persona = project.studio(JobContext()).extractor, project.personas.get(name)
    bench = Bench(extractor, persona, persona.steering_layers)
    sizes = likeliest(bench.recovered, bench.coefficient(DEFAULT_DOSE))
    if DISTILLED not in persona.safe:
        persona = distilled(bench.course, max(sizes, key=lambda each: sizes[each]))
    other = bench.with_vectors(persona, DISTILLED)
    counts, prompts = persona.metadata["counts"], persona.metadata["prompts"]
    cost = distil_work(extractor, extractor.questions, prompts, counts["responses"]).tokens
    return [
        name,
        *heard(bench, sizes, guide),
        *heard(other, likeliest(other.recovered, START), guide),
        f"{cost / 1000:.0f}",
    ]


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="starter")
    parser.add_argument("--dtype", default=None)
    parser.add_argument("--workspace", type=Path, default=Path.cwd(), help="where the personas are")
    parser.add_argument("--personas", nargs="*", help="by default all that there are")
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    set_threads(options.threads)
    torch.set_grad_enabled(False)
    project = Project.open(options.workspace, options.model, dtype=options.dtype)
    print(f"{project.model.name}, {project.model.dtype}; {machine()}\n", flush=True)
    guide = project.settings.steering.plausibility
    multiples = [
        f"{'mean difference' if recipe == 'response' else recipe} ×{each:g}"
        for recipe in ("response", DISTILLED)
        for each in MULTIPLES[recipe].guided
    ]
    heads = ("persona", "recovered", *multiples[:2], "recovered", *multiples[2:], "cost")
    names = options.personas or project.personas.list_available()
    rows = []
    for name in names:
        rows.append(row(project, name, guide))
        print(rows[-1], flush=True)
    print(table(heads, rows))


if __name__ == "__main__":
    main()
