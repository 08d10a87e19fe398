"""What distilling brings: the mean difference and the distilled vectors of the same personas, side by side.

    python benchmarks/distil.py [--model starter] [--workspace FOLDER] [--personas sage ...]
                                [--emphasis 1 2.5]

For every persona that the workspace has (or those that are named): what each kind of vectors recovers of the
system prompts' effect on held-out replies at its likeliest size; and of generated replies to the same
questions, with the floor and without the guide, the expression, nats lost and repetition beyond prompted
replies at two sizes. These are multiples of the likeliest size for the mean difference (1 and 1.6) and for a
teacher that exaggerates nothing, not the question either (`--emphasis 1`: 1.6 and 2.2), and for teachers that
do, 1 and 1.4 times the size that the vectors were fitted at. The vectors are fitted here, so that all are of
one run. The last line is what distilling costs, in thousands of tokens that pass through the model.
"""

from __future__ import annotations

from collections.abc import Iterator

from measuring import opened, persona_arguments, table

from persona_tui.core.jobs import JobContext
from persona_tui.extraction.bench import RECIPE, Bench
from persona_tui.extraction.calibration import FITTED, MULTIPLES
from persona_tui.extraction.distil import EMPHASIS, FOCUS, distil_work, distilled
from persona_tui.extraction.sizes import Point, likeliest
from persona_tui.project.project import Project
from persona_tui.vectors.files import DISTILLED
from persona_tui.vectors.persona import DEFAULT_DOSE

PLAIN_TEACHER = (1.6, 2.2)  # times the likeliest size
HEADER = ("persona", "vectors", "recovered", "size", "expression", "nats lost", "repetition")


def rows(project: Project, name: str, emphases: list[float]) -> Iterator[tuple[str, ...]]:
    """A persona's lines of the table."""
    extractor, persona = project.studio(JobContext()).extractor, project.personas.get(name)
    bench = Bench(extractor, persona, persona.steering_layers)
    found = likeliest(bench.recovered, bench.coefficient(DEFAULT_DOSE))
    size = max(found, key=lambda each: found[each])
    sizes = [size * multiple for multiple in MULTIPLES[RECIPE].unguided]
    for point in bench.sweep(sizes):
        yield (name, "mean difference", *figures(found[size], point))
    for emphasis in emphases:
        focus = 0.0 if emphasis == 1 else FOCUS
        other = bench.with_vectors(distilled(bench.course, size, emphasis, focus), DISTILLED)
        found_here = likeliest(other.recovered, FITTED)
        best = max(found_here, key=lambda each: found_here[each])
        unit, multiples = (best, PLAIN_TEACHER) if emphasis == 1 else (FITTED, MULTIPLES[DISTILLED].unguided)
        for point in other.sweep([unit * multiple for multiple in multiples]):
            yield (name, f"distilled, emphasis {emphasis:g}", *figures(found_here[best], point))


def figures(recovered: float, point: Point) -> tuple[str, ...]:
    """What was found at one size."""
    return (
        f"{recovered:.2f}",
        f"{point.coefficient:.2f}",
        f"{point.expression:.2f}",
        f"{point.fluency_drop:+.2f}",
        f"{point.repetition:+.3f}",
    )


def main() -> None:
    """Print the table."""
    parser = persona_arguments(__doc__)
    parser.add_argument("--emphasis", type=float, nargs="*", default=[1.0, EMPHASIS])
    options = parser.parse_args()
    project = opened(options)
    names, lines = options.personas or project.personas.list_available(), []
    for name in names:
        for line in rows(project, name, options.emphasis):
            lines.append(line)
            print(line, flush=True)
    print(table(HEADER, lines))
    extractor, persona = project.studio(JobContext()).extractor, project.personas.get(names[0])
    counts, prompts = persona.metadata["counts"], persona.metadata["prompts"]
    cost = distil_work(extractor, extractor.questions, prompts, counts["responses"], extractor.band).tokens
    print(f"\nDistilling costs {cost / 1000:.0f} thousand tokens.")


if __name__ == "__main__":
    main()
