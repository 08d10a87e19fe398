"""Which system prompt the replies should have that personas are compared with: the template's own, or none.

    python benchmarks/baselines.py --model NAME [--samples N] [--max-new-tokens N] [--questions N]

Some chat templates insert a system prompt where there is none; chats then have it, too. For every persona
and both baselines: the size of its vectors and the share of its system prompts' effect that steering recovers
at the best size, in chats as people have them (without a system prompt of their own); and the cosine between
the two vectors, averaged over the band.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

import torch
from measuring import machine, table

from persona_tui.core.config import override
from persona_tui.core.jobs import JobContext
from persona_tui.datasets.records import find_archetype, read_questions
from persona_tui.datasets.templates import fallback_prompts
from persona_tui.extraction import ActivationExtractor
from persona_tui.extraction.bench import Bench
from persona_tui.extraction.extractor import DEFAULT, NO_SYSTEM
from persona_tui.extraction.sizes import likeliest
from persona_tui.project.project import Project
from persona_tui.vectors.persona import DEFAULT_DOSE, PersonaVector

CAPTAIN = "A gruff old pirate captain who swears by the sea and calls everybody matey"
HEADER = ("persona", "baseline", "size", "recovered", "cosine")


def prompts_of(project: Project, name: str) -> list[str]:
    """A persona's system prompts."""
    if name == "captain":
        return [each["system_prompt"] for each in fallback_prompts(CAPTAIN, 5)]
    return [each.system_prompt for each in find_archetype(project.workspace, name)]


def stack(persona: PersonaVector, bench: Bench) -> torch.Tensor:
    """Its vectors in the band, `[layers, hidden]`."""
    return persona.safe["response"][[persona.layers.index(layer) for layer in bench.band]]


def rows(project: Project, extractors: dict[str, ActivationExtractor], name: str) -> list[list[Any]]:
    """One persona with every baseline."""
    prompts = prompts_of(project, name)
    first = extractors[DEFAULT]
    sums = first.run(first.persona_requests(prompts, "persona"), note=name)
    found: list[list[Any]] = []
    benches: list[Bench] = []
    for kind, extractor in extractors.items():
        persona = extractor.persona_from_sums(name, sums, extractor.assistant_baseline(), prompts)
        bench = Bench(extractor, persona)
        if benches:
            bench.__dict__["prompted"] = benches[0].prompted
        benches.append(bench)
        sizes = likeliest(bench.recovered, bench.coefficient(DEFAULT_DOSE))
        own, other = stack(persona, bench), stack(benches[0].persona, bench)
        cosine = torch.nn.functional.cosine_similarity(own, other, dim=-1).mean()
        found.append([name, kind, float(own.norm(dim=-1).mean()), max(sizes.values()), float(cosine)])
    return found


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="starter")
    parser.add_argument("--samples", type=int, default=12, help="replies to each system prompt")
    parser.add_argument("--max-new-tokens", type=int, default=48)
    parser.add_argument("--questions", type=int, default=12, help="held-out questions")
    parser.add_argument("--personas", nargs="*", default=["captain", "sage", "trickster"])
    options = parser.parse_args()
    torch.set_grad_enabled(False)
    with tempfile.TemporaryDirectory() as folder:
        project = Project.open(Path(folder) / "workspace", options.model)
        project.restore_datasets()
        project.override(
            {
                "extraction.num_samples_per_prompt": options.samples,
                "extraction.max_new_tokens": options.max_new_tokens,
                "calibration.questions": options.questions,
            }
        )
        context = JobContext(on_log=print)
        extractors = {
            kind: ActivationExtractor(
                project.model,
                override(project.settings, {"extraction.baseline": kind}),
                checkpoint=context.checkpoint,
                questions=read_questions(project.workspace),
            )
            for kind in (DEFAULT, NO_SYSTEM)
        }
        inserted = project.model.rendering.record().get("default_system")
        print(f"{options.model} inserts {inserted!r}; {machine()}\n", flush=True)
        print(table(HEADER, [row for name in options.personas for row in rows(project, extractors, name)]))


if __name__ == "__main__":
    main()
