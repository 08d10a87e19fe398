"""What a persona costs: extraction, calibration with distilling and without, and what was said before.

    python benchmarks/cost.py [--model starter] [--dtype bfloat16] [--workspace FOLDER] [--persona sage]
                              [--samples 50] [--max-new-tokens 256] [--threads 2] [--only plan|parts|creation]

- *Plan*: what the estimate says of one persona, in tokens: extraction and calibration.
- *Parts*: one persona from a fifth of the replies and from all of them. Tokens that pass through the model,
  seconds of all cores, and the cosine of the vectors of both, in the band.
- *Creation*: `create` from a description with default settings, from its baseline to its calibration. What
  the estimate says before it begins, and what the remaining time says on the way, against what it takes.

Nothing is kept, unless `--workspace` names a folder; what is there already (axes, a baseline) is used.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from measuring import machine, set_threads, table

from persona_tui.core.jobs import JobContext, JobProgress
from persona_tui.datasets.records import find_archetype
from persona_tui.extraction.bench import calibration_plan
from persona_tui.extraction.calibration import calibrated
from persona_tui.extraction.extractor import ActivationExtractor
from persona_tui.project.deletion import delete
from persona_tui.project.project import FromDescription, Project
from persona_tui.vectors.files import DISTILLED
from persona_tui.vectors.maths import cosine
from persona_tui.vectors.persona import PersonaVector

NAME, DESCRIPTION = "cost_trial", "A grumpy but secretly kind old wizard who speaks in riddles"
SHARES = (0.1, 0.25, 0.5, 0.75)  # of the work, at which the remaining time is noted


@dataclass(frozen=True)
class Spent:
    """What a piece of work took: tokens through the model, seconds of all cores, and on the clock."""

    tokens: int
    cpu: float
    clock: float


def spent(extractor: ActivationExtractor, work: Callable[[], PersonaVector]) -> tuple[PersonaVector, Spent]:
    """What the work returns, and what it took."""
    tokens, cpu, clock = extractor.tokens, time.process_time(), time.monotonic()
    done = work()
    return done, Spent(extractor.tokens - tokens, time.process_time() - cpu, time.monotonic() - clock)


def plan(project: Project, name: str) -> str:
    """Tokens of a persona's extraction and of its calibration, as estimated."""
    extractor = project.studio(JobContext()).extractor
    prompts = [each.system_prompt for each in find_archetype(project.workspace, name)]
    requests = extractor.persona_requests(prompts, "persona")
    extraction = extractor.work(requests).tokens
    counts = {"passed": extraction, "responses": len(requests)}
    questions, work = calibration_plan(extractor, prompts, counts)
    row = [len(requests), f"{extraction:,}", questions, f"{work.tokens:,}", work.tokens / extraction]
    return table(("replies", "extraction", "held-out questions", "calibration", "ratio"), [row])


def parts(project: Project, name: str) -> str:
    """Tokens and seconds of a persona from a fifth of the replies and from all, and how alike both are."""
    many = project.settings.extraction.num_samples_per_prompt
    prompts = find_archetype(project.workspace, name)
    rows, made = [], []
    for count in (max(1, many // 5), many):
        project.override({"extraction.num_samples_per_prompt": count})
        extractor = project.studio(JobContext()).extractor
        extractor.assistant_baseline()
        records = [{"system_prompt": each.system_prompt} for each in prompts]
        persona, extraction = spent(extractor, lambda: extractor.extract_persona(name, records))  # noqa: B023
        for distil in (False, True):
            project.override({"calibration.distil": distil})
            extractor.settings = project.settings
            done, calibration = spent(extractor, lambda: calibrated(extractor, persona))  # noqa: B023
            rows.append(_row(persona, distil, extraction, calibration, done))
        made.append(done)
    header = ("replies", "distilled", "extraction", "calibration", "ratio of tokens", "recovered", "recipe")
    return f"{table(header, rows)}\n\n{_alike(*made)}"


def _row(
    persona: PersonaVector, distil: bool, extraction: Spent, calibration: Spent, done: PersonaVector
) -> list[Any]:
    assert done.calibration is not None
    return [
        persona.metadata["counts"]["responses"],
        "yes" if distil else "no",
        *(f"{each.tokens:,} tokens, {each.cpu:.0f} CPU s" for each in (extraction, calibration)),
        calibration.tokens / extraction.tokens,
        done.calibration.recovered,
        done.calibration.recipe,
    ]


def _alike(few: PersonaVector, many: PersonaVector) -> str:
    """The cosines of two versions of a persona, over the layers of the band."""
    assert many.calibration is not None
    rows = [many.layers.index(layer) for layer in many.calibration.layers]
    lines = [("mean difference", cosine(few.raw["response"], many.raw["response"]))]
    if DISTILLED in few.raw and DISTILLED in many.raw:
        lines.append(("distilled", cosine(few.raw[DISTILLED], many.raw[DISTILLED])))
    found = [
        [what, float(each[rows].mean()), float(each[rows].min()), " ".join(f"{float(v):.3f}" for v in each)]
        for what, each in lines
    ]
    return table(("cosine with five times the replies", "band, mean", "least", "layer by layer"), found)


class Watch:
    """What is said before and during a job, and when."""

    def __init__(self) -> None:
        self.began = time.monotonic()
        self.lines: list[str] = []
        self.told: dict[float, tuple[float, float]] = {}  # by share: when, and how many seconds were left

    def log(self, line: str) -> None:
        """Note a line."""
        self.lines.append(f"{time.monotonic() - self.began:.0f} s: {line}")

    def progress(self, progress: JobProgress) -> None:
        """Note the remaining time at some shares of the work."""
        for share in SHARES:
            if share not in self.told and progress.fraction >= share and progress.eta is not None:
                self.told[share] = time.monotonic(), progress.eta


def creation(project: Project) -> str:
    """`create` from a description with default settings, and what was said of it."""
    watch, cpu = Watch(), time.process_time()
    context = JobContext(watch.progress, watch.log)
    made = project.create_personas({NAME: FromDescription(DESCRIPTION)}, context)
    ended = time.monotonic()
    minutes, clock = (time.process_time() - cpu) / 60, (ended - watch.began) / 60
    rows = [
        [f"{share:.0%}", left / 60, (ended - when) / 60, left / (ended - when)]
        for share, (when, left) in sorted(watch.told.items())
    ]
    counts = made[-1].persona.metadata["counts"]
    delete(project, NAME)
    return (
        f"{counts['responses']} replies; {minutes:.1f} CPU minutes, {clock:.1f} minutes.\n\n"
        + "\n".join(f"    {line}" for line in watch.lines)
        + "\n\n"
        + table(("of the work", "minutes left, as told", "in truth", "ratio"), rows)
    )


def main() -> None:
    """Print all parts, or the one that is asked for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="starter")
    parser.add_argument("--dtype", default=None)
    parser.add_argument("--workspace", type=Path, help="kept; by default a folder that is thrown away")
    parser.add_argument("--persona", default="sage")
    parser.add_argument("--samples", type=int, help="replies to each system prompt")
    parser.add_argument("--max-new-tokens", type=int)
    parser.add_argument("--threads", type=int, help="by default as many as torch takes")
    parser.add_argument("--only", choices=("plan", "parts", "creation"))
    options = parser.parse_args()
    set_threads(options.threads)
    torch.set_grad_enabled(False)
    wanted = {
        "extraction.num_samples_per_prompt": options.samples,
        "extraction.max_new_tokens": options.max_new_tokens,
    }
    with tempfile.TemporaryDirectory() as folder:
        place = options.workspace or Path(folder) / "workspace"
        project = Project.open(place, options.model, dtype=options.dtype)
        project.restore_datasets()
        project.override({key: value for key, value in wanted.items() if value is not None})
        print(f"{project.model.name}, {project.model.dtype}; {machine()}\n", flush=True)
        if options.only in (None, "plan"):
            print(f"## Plan\n\n{plan(project, options.persona)}\n", flush=True)
        if options.only in (None, "creation"):
            print(f"## Creation\n\n{creation(project)}\n", flush=True)
        if options.only in (None, "parts"):
            print(f"## Parts\n\n{parts(project, options.persona)}")


if __name__ == "__main__":
    main()
