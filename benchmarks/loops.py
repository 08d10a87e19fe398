"""How much long replies repeat themselves: steered without the guide and with it, prompted, and plain.

    python benchmarks/loops.py [--model starter] [--workspace FOLDER] [--personas sage creator ...]

Printed is the mean share of three-word phrases that repeat an earlier one, over replies of up to 200 tokens
to eight held-out questions, with the floor as it is by default. At half the strength, too: where a reply
loops at any strength, it is not the loudness.
"""

from __future__ import annotations

from dataclasses import replace
from statistics import fmean

from checklist import GUIDE, QUESTIONS
from measuring import opened, persona_arguments, table

from persona_tui.core.mix import Mix
from persona_tui.extraction.bench import repetition
from persona_tui.model import Request, Sampling, conversation
from persona_tui.project.project import Project
from persona_tui.vectors.persona import DEFAULT_STRENGTH


def repeated(
    project: Project, mix: Mix, questions: int, tokens: int, systems: tuple[str | None, ...] = (None,)
) -> float:
    """How much replies repeat themselves, on average."""
    requests = [
        Request(conversation(question, systems[row % len(systems)]), 300 + row)
        for row, question in enumerate(QUESTIONS[:questions])
    ]
    sampling = Sampling(max_new_tokens=tokens, temperature=0.7, top_p=0.95)
    found = project.engine.generate_batch(requests, mix, sampling)
    return fmean(repetition(each.text) for each in found)


def main() -> None:
    """Print the table."""
    parser = persona_arguments(__doc__)
    parser.add_argument("--questions", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=200)
    options = parser.parse_args()
    project = opened(options)
    size = (options.questions, options.tokens)
    print(f"plain: {repeated(project, Mix(capping=False), *size):.2f}\n", flush=True)
    usual, rows = project.default_mix(), []
    for name in options.personas or project.personas.list_available():
        prompts = tuple(project.personas.get(name).metadata["prompts"])
        mixes = [
            replace(usual, weights={name: 1.0}, strength=strength, plausibility=guide)
            for strength in (DEFAULT_STRENGTH, DEFAULT_STRENGTH / 2)
            for guide in (0.0, GUIDE)
        ]
        figures = [repeated(project, Mix(capping=False), *size, prompts)]
        figures += [repeated(project, mix, *size) for mix in mixes]
        rows.append((name, *(f"{each:.2f}" for each in figures)))
        print(rows[-1], flush=True)
    heads = ("persona", "prompted", "0.3", f"0.3, guide {GUIDE:g}", "0.15", f"0.15, guide {GUIDE:g}")
    print(table(heads, rows))


if __name__ == "__main__":
    main()
