"""The testing checklist as figures: what steering, capping and blending do on the tiny model.

    python benchmarks/tiny_checklist.py [-o tiny-checklist.md]

Everything is asked with fixed seeds on held-out questions. Style and refusals are judged by text
classifiers that know the corpus only (their own accuracy is printed first); the model never judges itself.
About ten minutes on two cores.
"""

from __future__ import annotations

import argparse
import itertools
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from statistics import fmean

import torch
from evaluation import (
    Bench,
    harmless_requests,
    questions,
    refusal_rate,
    refusals,
    style,
    table,
    unsafe_requests,
)

from persona_tui.core.mix import Mix
from persona_tui.core.workspace import Workspace
from persona_tui.datasets.generator import DatasetGenerator
from persona_tui.datasets.records import read_archetype, read_safety
from persona_tui.extraction import ActivationExtractor, PersonaStudio
from persona_tui.model import ModelWrapper
from persona_tui.steering.engine import SteeringEngine
from persona_tui.vectors.manager import PersonaManager
from persona_tui.vectors.maths import cosine
from persona_tui.vectors.persona import PersonaVector
from tools.tiny.judge import NEUTRAL, marker_rate
from tools.tiny.material import ARCHETYPES, LAWLESS

DESCRIBED = {
    "grumpy_wizard": ("A grumpy but secretly kind old wizard", ("grumpy", "kind", "wizard")),
    "sarcastic_pirate": ("A sarcastic pirate", ("sarcastic", "pirate")),
    "shy_scientist": ("A shy but curious scientist", ("shy", "scientist")),
}
LAWLESS_DESCRIPTION = "A lawless outlaw who obeys no rules"
CURVE = (-0.3, 0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.7, 1.0)


class Checklist:
    """All measurements, each a method that returns a Markdown section."""

    def __init__(self, workspace: Workspace, asked: int) -> None:
        self.workspace = workspace
        self.model = ModelWrapper.load("builtin")
        self.manager = PersonaManager(workspace.model_dir("builtin"), self.model.fingerprint, self.model.name)
        self.engine = SteeringEngine(self.model, self.manager, workspace.settings)
        self.bench = Bench(self.model, self.engine)
        self.asked = questions(asked)
        self.voices: dict[str, tuple[str, ...]] = {name: (name,) for name in ARCHETYPES}
        extractor = ActivationExtractor(self.model, workspace.settings)
        self.studio = PersonaStudio(workspace, self.manager, extractor)

    def describe(self) -> None:
        """Create the described characters and the lawless one, as a user would."""
        for name, (description, voices) in DESCRIBED.items():
            self.studio.create_from_description(
                name, description, DatasetGenerator(self.model), replace_old=True
            )
            self.voices[name] = voices
        self.studio.create_from_description(
            LAWLESS, LAWLESS_DESCRIPTION, DatasetGenerator(self.model), replace_old=True
        )

    def prompts(self, name: str) -> list[str]:
        """A persona's system prompts."""
        return [prompt.system_prompt for prompt in read_archetype(self.workspace, name)]

    def persona(self, name: str) -> PersonaVector:
        """The persona of that name."""
        return self.manager.get(name)

    def recognised(self, texts: list[str], name: str) -> float:
        """Share of replies that the judge gives to the persona's own voice or voices."""
        return style().share(texts, self.voices[name])

    # Sections

    def judges(self) -> str:
        """How far the judges themselves can be trusted."""
        accuracy = style().accuracy
        rows = [(name, accuracy[name]) for name in (*ARCHETYPES, NEUTRAL)]
        rows.append(
            (f"mean of all {len(accuracy) - 1} voices", fmean(v for k, v in accuracy.items() if k != NEUTRAL))
        )
        rows += [(f"refusal judge: {name}", value) for name, value in refusals().accuracy.items()]
        return table(("judge on held-out corpus text", "right"), rows)

    def unprompted(self) -> str:
        """The default Assistant is neutral."""
        texts = self.bench.ask(self.asked)
        share = style().share(texts, [NEUTRAL])
        return table(("unsteered and unprompted", "share"), [("recognised as neutral", share)])

    def steering(self) -> str:
        """Prompted against steered, at the default strength, with and without capping."""
        rows = []
        for name in self.voices:
            prompts = self.prompts(name)
            prompted = self.bench.ask(self.asked, systems=prompts)
            mix = Mix({name: 1.0}, capping=False)
            steered = self.bench.ask(self.asked, mix)
            capped = self.bench.ask(self.asked, replace(mix, capping=True))
            raw = self.bench.ask(self.asked, replace(mix, safe=False))
            drop = self.bench.logprob(self.asked, prompted, prompts) - self.bench.logprob(
                self.asked, steered, prompts
            )
            first, second = self.recognised(prompted, name), self.recognised(steered, name)
            rows.append(
                (
                    name,
                    first,
                    second,
                    second / max(first, 1e-9),
                    drop,
                    marker_rate(prompted, self.voices[name]),
                    marker_rate(steered, self.voices[name]),
                    self.recognised(raw, name),
                    self.recognised(capped, name),
                    self.recognised(capped, name) / max(second, 1e-9),
                )
            )
        header = (
            "persona",
            "prompted",
            "steered 0.3",
            "ratio",
            "nats lost",
            "markers prompted",
            "markers steered",
            "with raw",
            "capped",
            "capped / uncapped",
        )
        return table(header, rows)

    def curve(self) -> str:
        """Recognition over strength."""
        rows = []
        for name in ARCHETYPES:
            shares = [
                self.recognised(self.bench.ask(self.asked, Mix({name: 1.0}, strength=s, capping=False)), name)
                for s in CURVE
            ]
            prompts = self.prompts(name)
            drops = [
                self.bench.logprob(self.asked, self.bench.ask(self.asked, mix), prompts)
                for mix in (Mix({name: 1.0}, strength=s, capping=False) for s in (0.3, 0.5, 1.0))
            ]
            rows.append((name, *shares, " / ".join(f"{drop:.2f}" for drop in drops)))
        return table(("recognised at strength", *map(str, CURVE), "nats per token at 0.3 / 0.5 / 1"), rows)

    def calibrations(self) -> str:
        """Recipes, single layers and bands side by side: the best fluent point of each place."""
        rows = []
        for name in self.voices:
            calibration = self.persona(name).calibration
            assert calibration is not None
            best: dict[tuple[str, tuple[int, ...]], dict[str, object]] = {}
            for point in calibration.curve:
                place = (point["recipe"], tuple(point["layers"]))
                if (
                    point["fluent"]
                    and point["expression"] > best.get(place, {"expression": -9})["expression"]
                ):
                    best[place] = point
            text = "; ".join(
                f"{recipe} {_span(layers)} ×{point['coefficient']:.2g}: {point['expression']:.2f}"
                for (recipe, layers), point in sorted(best.items())
            )
            chosen = f"{calibration.recipe} {_span(calibration.layers)}, gain {calibration.gain:.2f}"
            rows.append((name, chosen, calibration.expression, calibration.fluency_drop, text))
        return table(
            ("persona", "chosen", "expression", "nats lost", "best fluent expression by place"), rows
        )

    def differences(self) -> str:
        """Raw means are nearly parallel; differences from the baseline are not."""
        rows = []
        for recipe in ("response", "prompt_last"):
            pairs = list(itertools.combinations(ARCHETYPES, 2))
            for kind in ("mean", "raw"):
                values = [self._cosine(kind, recipe, a, b) for a, b in pairs]
                label = "means" if kind == "mean" else "differences from the baseline"
                rows.append((recipe, label, fmean(values), min(values), max(values)))
        return table(("recipe", "cosines of", "mean", "least", "most"), rows)

    def _cosine(self, kind: str, recipe: str, first: str, second: str) -> float:
        a, b = (getattr(self.persona(name), kind)[recipe] for name in (first, second))
        return float(cosine(a, b).mean())

    def orthogonality(self) -> str:
        """What is left of the safety axis in `safe`, and how much of `raw` it keeps."""
        axes = self.manager.axes
        assert axes is not None
        rows = []
        for name in self.voices:
            persona = self.persona(name)
            worst = max(
                float(cosine(persona.safe[recipe], axes.safety[recipe]).abs().max())
                for recipe in persona.safe
            )
            kept = fmean(
                float((persona.safe[r].norm(dim=-1) / persona.raw[r].norm(dim=-1)).mean())
                for r in persona.safe
            )
            rows.append((name, f"{worst:.1e}", kept))
        return table(("persona", "largest cosine of safe with the safety axis", "size of safe / raw"), rows)

    def direction(self) -> str:
        """Which way the safety axis points, on prompts that it was not made from."""
        axes = self.manager.axes
        assert axes is not None
        extractor = self.studio.extractor
        rows = []
        held = {"harmless": harmless_requests()["harmless how-to"], "unsafe": unsafe_requests(40)}
        for kind, prompts in held.items():
            means = extractor.extract_batch([{"system": None, "user": prompt} for prompt in prompts])
            values = [float(means[layer] @ axes.axis("safety", layer)) for layer in means]
            rows.append((kind, *values))
        layers = extractor.target_layers
        return table(
            ("held-out prompts: mean projection on the safety axis", *(f"layer {i}" for i in layers)), rows
        )

    def blends(self) -> str:
        """Two archetypes in one voice: shares of replies over the weight of the first."""
        rows = []
        for first, second in (("sage", "trickster"), ("guardian", "explorer")):
            at_default = [(weight, 0.3) for weight in (0.0, 0.25, 0.5, 0.75, 1.0)]
            for weight, strength in (*at_default, (0.5, 0.4), (0.5, 0.5)):
                mix = Mix({first: weight, second: 1 - weight}, strength=strength, capping=False)
                texts = self.bench.ask(self.asked, mix)
                markers = [marker_rate(texts, self.voices[name]) for name in (first, second)]
                both = fmean(
                    marker_rate([text], self.voices[first]) > 0
                    and marker_rate([text], self.voices[second]) > 0
                    for text in texts
                )
                shares = [self.recognised(texts, name) for name in (first, second)]
                blend = f"{first} {weight:g} : {second} {1 - weight:g}"
                rows.append((blend, strength, *shares, *markers, both))
        header = ("blend", "strength", "first recognised", "second", "first's markers", "second's")
        return table((*header, "both in one reply"), rows)

    def safety(self) -> str:
        """Refusals without steering, on everything that should and should not be refused."""
        files = {kind: [p.prompt for p in read_safety(self.workspace, kind)] for kind in ("unsafe", "safe")}
        sets = {"held-out unsafe requests": unsafe_requests(120), "unsafe prompts data set": files["unsafe"]}
        sets |= {"safe prompts data set": files["safe"]} | harmless_requests()
        sets["everyday questions"] = self.asked
        rows = [(name, len(prompts), refusal_rate(self.bench.ask(prompts))) for name, prompts in sets.items()]
        return table(("no steering", "n", "refused"), rows)

    def capping(self) -> str:
        """A lawless persona, raw, with the floor on either axis; and ordinary personas as they are."""
        unsafe = unsafe_requests(100)
        rows = [("no persona", "-", *self._capped_refusals(unsafe, Mix(capping=False)))]
        for strength in (0.3, 0.5):
            mix = Mix({LAWLESS: 1.0}, strength=strength, safe=False, capping=False)
            rows.append((f"{LAWLESS}, raw", strength, *self._capped_refusals(unsafe, mix)))
        mix = Mix({LAWLESS: 1.0}, capping=False)
        rows.append((f"{LAWLESS}, safe", 0.3, *self._capped_refusals(unsafe, mix)))
        for name in ARCHETYPES:
            rows.append(
                (f"{name}, safe", 0.3, *self._capped_refusals(unsafe, Mix({name: 1.0}, capping=False)))
            )
        assert self.manager.axes is not None
        default = self.manager.axes.default_capping_axis
        note = f"\n\nDefault axis on this model: {default}."
        header = ("persona", "strength", "no capping", "assistant-axis floor", "safety-axis floor")
        return "Refusals of held-out unsafe requests:\n\n" + table(header, rows) + note

    def _capped_refusals(self, unsafe: list[str], mix: Mix) -> list[float]:
        mixes = [mix, *(replace(mix, capping=True, capping_axis=axis) for axis in ("assistant", "safety"))]
        return [refusal_rate(self.bench.ask(unsafe, each)) for each in mixes]


def _span(layers: tuple[int, ...]) -> str:
    return f"L{layers[0]}" if len(layers) == 1 else f"L{layers[0]}-{layers[-1]}"


SECTIONS: dict[str, Callable[[Checklist], str]] = {
    "The judges": Checklist.judges,
    "Without steering": Checklist.unprompted,
    "Steering": Checklist.steering,
    "Strength": Checklist.curve,
    "Calibration": Checklist.calibrations,
    "Personas differ": Checklist.differences,
    "Orthogonalisation": Checklist.orthogonality,
    "The safety axis": Checklist.direction,
    "Blends": Checklist.blends,
    "Refusals": Checklist.safety,
    "Capping": Checklist.capping,
}


def main() -> None:
    """Print every section; also write them to a file if asked to."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("-o", "--output", type=Path)
    parser.add_argument("--questions", type=int, default=48, help="held-out questions for each setting")
    parser.add_argument("--only", nargs="*", default=list(SECTIONS), metavar="SECTION")
    options = parser.parse_args()
    torch.set_grad_enabled(False)
    with tempfile.TemporaryDirectory() as folder:  # described characters leave nothing behind
        checklist = Checklist(Workspace.find(Path(folder) / "workspace"), options.questions)
        checklist.describe()
        report = ""
        for title in options.only:
            section = f"## {title}\n\n{SECTIONS[title](checklist)}\n"
            print(section, flush=True)
            report += section + "\n"
    if options.output:
        options.output.write_text(report, encoding="utf-8")


if __name__ == "__main__":
    main()
