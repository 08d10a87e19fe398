"""What calibration finds on a model, and what it costs against the extraction of the same persona.

    python benchmarks/calibration.py --model NAME [--samples N] [--max-new-tokens N] [--axes] [--band]

For every persona: the share of its system prompts' effect on the likelihood of their replies that steering
recovers at its best size; the dose at strength 0.3 (what is added, as a share of the residual stream's size,
summed over the band); expression and nats lost at strength 0.3; what the floor leaves of the expression; the
tokens that passed through the model in calibration, as a share of those of its extraction; and CPU seconds.
Personas are made in a folder that is thrown away, unless `--workspace` names one.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from measuring import machine, table

from persona_tui.core.jobs import JobContext
from persona_tui.extraction.bench import Bench
from persona_tui.extraction.calibration import calibrated
from persona_tui.extraction.personas import PersonaStudio
from persona_tui.project.project import Project
from persona_tui.vectors.persona import DEFAULT_DOSE, PersonaVector, dose

DESCRIBED = {
    "captain": "A gruff old pirate captain who swears by the sea and calls everybody matey",
    "wizard": "A grumpy but secretly kind old wizard",
}


class Clock:
    """Seconds of all cores, and on the wall, since it was made."""

    def __init__(self) -> None:
        self._cpu, self._wall = time.process_time(), time.monotonic()

    def read(self) -> tuple[float, float]:
        """CPU seconds and wall seconds."""
        return time.process_time() - self._cpu, time.monotonic() - self._wall


def make(studio: PersonaStudio, name: str) -> tuple[PersonaVector, int, float]:
    """A persona that is not calibrated; tokens and CPU seconds of its extraction, without the baseline's."""
    studio.manager.delete(name)
    studio.extractor.assistant_baseline()
    before, clock = studio.extractor.tokens, Clock()
    if name in DESCRIBED:
        persona = studio.create_from_description(name, DESCRIBED[name])
    else:
        persona = studio.create_from_archetype(name, name)
    return persona, studio.extractor.tokens - before, clock.read()[0]


def row(studio: PersonaStudio, name: str, show: bool) -> list[Any]:
    """What calibration finds for one persona."""
    persona, tokens, seconds = make(studio, name)
    clock, before = Clock(), studio.extractor.tokens
    done = calibrated(studio.extractor, persona)
    cost, passed = clock.read()[0], studio.extractor.tokens - before
    found = done.calibration
    assert found is not None
    studio.manager.save(done)
    if show:
        for size, share in found.recovery:
            print(f"{name}: coefficient {size:.4f} recovers {share:+.3f}")
        for point in found.curve:
            print(name, point)
    strength = found.gain * found.default_strength
    return [
        name,
        found.questions,
        found.recovered,
        max(found.recovery, key=lambda each: each[1])[0] * dose(done, found.layers, found.recipe),
        strength * dose(done, found.layers, found.recipe),
        found.expression,
        f"{found.fluency_drop:+.2f}",
        "-" if found.floor_leaves is None else f"{found.floor_leaves:.2f} ({found.floor})",
        tokens,
        f"{passed} ({passed / max(1, tokens):.2f})",
        f"{seconds:.0f}",
        f"{cost:.0f}",
    ]


def uncalibrated(studio: PersonaStudio, names: list[str]) -> list[list[Any]]:
    """What the default dose comes to at strength 0.3: expression and nats, without calibration."""
    rows = []
    for name in names:
        bench = Bench(studio.extractor, studio.manager.get(name))
        point = bench.sweep([bench.coefficient(DEFAULT_DOSE)])[0]
        rows.append([name, point.expression, f"{point.fluency_drop:+.2f}", point.repetition])
    return rows


HEADER = (
    "persona",
    "questions",
    "recovered",
    "dose, likeliest",
    "dose at 0.3",
    "expression at 0.3",
    "nats lost",
    "floor leaves",
    "tokens, extraction",
    "tokens, calibration",
    "CPU s, extraction",
    "CPU s, calibration",
)


def arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="builtin")
    parser.add_argument("--dtype", default=None)
    parser.add_argument("--workspace", type=Path, help="kept; by default a folder that is thrown away")
    parser.add_argument("--samples", type=int, default=50, help="replies to each system prompt")
    parser.add_argument("--max-new-tokens", type=int, default=256)
    parser.add_argument("--personas", nargs="*", default=["captain", "sage", "trickster"])
    parser.add_argument(
        "--axes", action="store_true", help="extract the axes first, and measure with the floor"
    )
    parser.add_argument("--band", action="store_true", help="search for the model's band afterwards")
    parser.add_argument("--curve", action="store_true", help="print every size that was tried")
    return parser.parse_args()


def main() -> None:
    """Print the table."""
    options = arguments()
    torch.set_grad_enabled(False)
    with tempfile.TemporaryDirectory() as folder:
        project = Project.open(
            options.workspace or Path(folder) / "workspace", options.model, dtype=options.dtype
        )
        project.restore_datasets()
        project.override(
            {
                "extraction.num_samples_per_prompt": options.samples,
                "extraction.max_new_tokens": options.max_new_tokens,
                "calibration.enabled": False,
            }
        )
        studio = project.studio(JobContext(on_log=print))
        if options.axes and studio.extractor.axes is None:
            studio.extract_axes()
        print(f"{options.model}: layers {studio.extractor.band}; {machine()}\n")
        rows = [row(studio, name, options.curve) for name in options.personas]
        print(table(HEADER, rows))
        print(f"\nWithout calibration (dose {DEFAULT_DOSE}), at strength 0.3:\n")
        print(
            table(
                ("persona", "expression", "nats lost", "repetition"), uncalibrated(studio, options.personas)
            )
        )
        if options.band:
            project.override({"calibration.enabled": True})
            band, found = project.find_band(JobContext(on_log=print))
            print(f"\nBand: {band}\n")
            print(table(("layers", "recovered, mean"), [[f"{b[0]}-{b[-1]}", v] for b, v in found.items()]))


if __name__ == "__main__":
    main()
