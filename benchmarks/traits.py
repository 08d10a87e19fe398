"""Traits on the tiny model: how well they separate what they never saw, and what scoring costs.

    python benchmarks/traits.py [--only quality|prompts|steering|speed|memory] [-o traits.md]

- quality, prompts: held-out conversations, by the vectors of either recipe; beside them what the length of a
  reply alone, and a classifier of words trained on the same conversations, make of the test.
- steering: what replies to held-out situations score when the trait is added, and how fluent they stay.
- speed: `TraitScorer` against a plain batched forward pass of the same texts, tokenised beforehand.
- memory: the peak of `trait curate` over more and more lines, each in a process of its own.

Everything is seeded. About five minutes on two cores; `--lines 1000,10000` makes it shorter.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean, median
from typing import TYPE_CHECKING

from measuring import (
    child,
    forget_peak,
    machine,
    make_model,
    middle,
    peak_memory,
    set_threads,
    table,
    take_turns,
)

from persona_tui.core.config import Settings, override
from persona_tui.core.workspace import Workspace, packaged_root
from persona_tui.traits.definition import TraitDefinition, find_definition, list_definitions

if TYPE_CHECKING:
    from persona_tui.steering import SteeringEngine
    from persona_tui.traits.vector import TraitVector

AIM_AUC = 0.95
AIM_SPEED = 0.9
TURNS_PER_CHAT = 4
STRENGTHS = (-0.6, -0.3, 0.0, 0.3, 0.6, 1.0)


def definitions() -> list[TraitDefinition]:
    """The shipped traits."""
    workspace = Workspace(packaged_root())
    return [find_definition(workspace, name) for name in list_definitions(workspace)]


# Quality ----------------------------------------------------------------------------------------------------


def quality(recipe: str) -> str:
    """Areas under the ROC curve: left out in cross-validation, and held out."""
    from persona_tui.model import ModelWrapper
    from persona_tui.traits.extract import PersonaVectorExtractor

    settings = override(Settings(), {"extraction.max_new_tokens": 64})
    extractor = PersonaVectorExtractor(ModelWrapper.load("builtin"), settings)
    rows, areas = [], []
    for definition in definitions():
        trait = extractor.extract(definition, recipe)  # type: ignore[arg-type]
        reading = trait.reading
        assert reading.held_out is not None
        areas.append(reading.held_out.auc.value)
        rows.append(
            (
                definition.name,
                reading.layer,
                reading.strength,
                reading.separation,
                _interval(reading.auc),
                _interval(reading.held_out.auc),
                reading.held_out.accuracy,
                f"{reading.counts['high']}+{reading.counts['low']}, "
                f"{reading.held_out.high}+{reading.held_out.low}",
                f"{by_length(definition):.2f}",
                f"{by_words(definition):.2f}",
            )
        )
    header = "trait|layer|strength|separation|AUC left out|AUC held out|right|n|length alone|words alone"
    reached = sum(area >= AIM_AUC for area in areas)
    verdict = f"held-out AUC of at least {AIM_AUC}: {reached} of {len(areas)} traits"
    return f"{table(header.split('|'), rows)}\n\n{verdict}"


def _interval(figure: object) -> str:
    value, low, high = (getattr(figure, key) for key in ("value", "low", "high"))
    return f"{value:.3f} [{low:.3f}, {high:.3f}]"


def _texts(definition: TraitDefinition, split: str) -> tuple[list[str], list[str]]:
    high, low = (
        [messages[-1]["content"] for _, messages in definition.conversations(split, side)]  # type: ignore[arg-type]
        for side in ("high", "low")
    )
    return high, low


def by_length(definition: TraitDefinition) -> float:
    """What the number of words alone tells about the test replies; 0.5 is nothing, whichever way it leans."""
    from persona_tui.core.statistics import roc_auc

    high, low = ([len(text.split()) for text in side] for side in _texts(definition, "test"))
    area = roc_auc(high, low)
    return max(area, 1 - area)


def by_words(definition: TraitDefinition) -> float:
    """What words and pairs of words tell about the test, learnt from the same replies as the vectors."""
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline

    from persona_tui.core.statistics import roc_auc

    high, low = _texts(definition, "train")
    classifier = make_pipeline(
        TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True), LogisticRegression(C=10)
    )
    classifier.fit([*high, *low], [1] * len(high) + [0] * len(low))
    test_high, test_low = _texts(definition, "test")
    return roc_auc(classifier.decision_function(test_high), classifier.decision_function(test_low))


# Speed ------------------------------------------------------------------------------------------------------


def speed(repetitions: int) -> str:
    """Conversations a CPU second, ours and of plain passes over the same tokens."""
    from persona_tui.datasets.transcripts import Transcript
    from persona_tui.model import ModelWrapper
    from persona_tui.traits.extract import PersonaVectorExtractor
    from persona_tui.traits.score import TraitScorer

    model = ModelWrapper.load("builtin")
    extractor = PersonaVectorExtractor(model, Settings())
    scorer = TraitScorer(model, [extractor.extract(each) for each in definitions()])
    single = [
        Transcript(messages, definition.name)
        for definition in definitions()
        for side in ("high", "low")
        for _, messages in definition.conversations("test", side)  # type: ignore[arg-type]
    ]
    longer = [
        Transcript([each for one in single[at : at + TURNS_PER_CHAT] for each in one.messages], "chat")
        for at in range(0, len(single), TURNS_PER_CHAT)
    ]
    rows, worst = [], float("inf")
    for name, said in (("one reply each", single), (f"{TURNS_PER_CHAT} replies each", longer)):
        share, row = _speed_of(scorer, [each.messages for each in said], said, repetitions)
        rows.append((name, len(said), *row))
        worst = min(worst, share)
    header = "conversations|n|ours, /CPU s|plain|without the head|ours / plain|ours / without the head"
    verdict = "reached" if worst >= AIM_SPEED else "not reached"
    verdict = f"four traits at once; at least {AIM_SPEED} of the plain pass: {verdict}"
    return f"{table(header.split('|'), rows)}\n\n{verdict}"


def _speed_of(scorer: object, messages: list, said: list, repetitions: int) -> tuple[float, tuple]:  # type: ignore[type-arg]
    import torch

    from persona_tui.model import text
    from persona_tui.model.batching import batches
    from persona_tui.model.forced import token_budget

    model = scorer.model  # type: ignore[attr-defined]
    ids = [
        text.encode_prompt(model.tokenizer, each[:-1])
        + text.encode_response(model.tokenizer, each[-1]["content"])
        for each in messages
    ]
    padded = []
    for batch in batches([len(each) for each in ids], most_tokens=token_budget(model.model)):
        width = max(len(ids[index]) for index in batch)
        padded.append(torch.tensor([ids[index] + [0] * (width - len(ids[index])) for index in batch]))

    def ours() -> float:
        scorer.score(said)  # type: ignore[attr-defined]
        return len(said)

    @torch.inference_mode()
    def plain() -> float:
        for tokens in padded:
            model.model(input_ids=tokens, use_cache=False)
        return len(said)

    @torch.inference_mode()
    def headless() -> float:
        for tokens in padded:
            model.model.get_decoder()(input_ids=tokens, use_cache=False)
        return len(said)

    sides = {"ours": ours, "plain": plain, "headless": headless}
    for side in sides.values():
        side()
    costs = take_turns(sides, repetitions)
    shares = {
        name: median(theirs.cpu / own.cpu for theirs, own in zip(costs[name], costs["ours"], strict=True))
        for name in ("plain", "headless")
    }
    rates = [1 / middle(costs[name]).cpu for name in sides]
    return shares["plain"], (*(f"{rate:.1f}" for rate in rates), *shares.values())


# Steering ---------------------------------------------------------------------------------------------------


def steering(asked: int) -> str:
    """How replies to held-out situations score when the trait is added, and how probable they still are."""
    from persona_tui.model import ModelWrapper
    from persona_tui.steering import SteeringEngine
    from persona_tui.traits.extract import PersonaVectorExtractor
    from persona_tui.traits.vector import TraitStore
    from persona_tui.vectors.manager import PersonaManager

    model = ModelWrapper.load("builtin")
    with tempfile.TemporaryDirectory() as folder:
        engine = SteeringEngine(
            model, PersonaManager(Path(folder), model.fingerprint, model.name), Settings()
        )
        store = TraitStore(Path(folder) / "traits", model.fingerprint, model.name)
        rows = []
        for definition in definitions():
            trait = PersonaVectorExtractor(model, Settings()).extract(definition)
            store.save(trait)
            rows.append((definition.name, *_steered(engine, trait, definition, asked)))
    header = ["trait", *(f"{strength:+.1f}" for strength in STRENGTHS)]
    return f"{table(header, rows)}\n\nmean score (mean log-probability per token without steering)"


def _steered(
    engine: SteeringEngine, trait: TraitVector, definition: TraitDefinition, asked: int
) -> list[str]:
    from persona_tui.model import Request, Sampling
    from persona_tui.steering import Mix
    from persona_tui.traits.compare import held_out_prompts
    from persona_tui.traits.score import TraitScorer

    prompts = held_out_prompts([definition])[:asked]
    scorer, cells = TraitScorer(engine.model, [trait]), []
    for strength in STRENGTHS:
        requests = [Request(prompt, seed=place) for place, prompt in enumerate(prompts)]
        mix = Mix({f"trait:{trait.name}": 1.0}, strength, capping=False)
        said = [each.text or "." for each in engine.generate_batch(requests, mix, Sampling(48, 0.7, 0.95))]
        scores = [
            scorer.score_text(prompt[-1]["content"], reply).scores[trait.name]
            for prompt, reply in zip(prompts, said, strict=True)
        ]
        logprobs = [each.logprob for each in engine.model.score(list(zip(prompts, said, strict=True)))]
        cells.append(f"{fmean(scores):+.2f} ({fmean(logprobs):.2f})")
    return cells


# Memory -----------------------------------------------------------------------------------------------------


def memory(counts: Sequence[int], size: str) -> str:
    """The peak memory of curating files of these many lines."""
    rows = []
    for count in counts:
        found = json.loads(child([sys.executable, __file__, "--curate", str(count), "--size", size]))
        rows.append(
            (f"{count:,}", f"{found['megabytes']:.1f}", f"{found['rate']:,.0f}", f"{found['peak']:.1f}")
        )
    peaks = [float(row[-1]) for row in rows]
    header = ("lines", "file, MB", "lines/s", "peak memory, MiB")
    grown = peaks[-1] - peaks[0]
    return f"{table(header, rows)}\n\nfrom {rows[0][0]} to {rows[-1][0]} lines: {grown:+.1f} MiB"


def curate_here(count: int, size: str) -> None:
    """Curate so many lines in this process and print what it took."""
    from persona_tui.model import ModelWrapper
    from persona_tui.traits.curate import Curation
    from persona_tui.traits.extract import PersonaVectorExtractor
    from persona_tui.traits.policy import Policy
    from persona_tui.traits.score import TraitScorer

    set_threads(None)
    model = ModelWrapper(*make_model(size), size)
    known = definitions()
    trait = PersonaVectorExtractor(model, Settings()).extract(known[0])
    lines = [
        json.dumps({"messages": messages, "id": identity})
        for definition in known
        for side in ("high", "low")
        for identity, messages in definition.conversations("test", side)  # type: ignore[arg-type]
    ]
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "data.jsonl"
        with data.open("w") as file:
            for number in range(count):
                file.write(lines[number % len(lines)] + "\n")
        policy = Policy.from_rules([f"{trait.name}>0"])
        forget_peak()
        done = Curation(TraitScorer(model, [trait]), policy, data, Path(folder) / "flagged.jsonl").run()
        found = {
            "megabytes": data.stat().st_size / 1e6,
            "rate": done.lines / done.seconds,
            "peak": peak_memory(),
        }
    print(json.dumps(found))


def main(arguments: Sequence[str] | None = None) -> None:
    """Print all tables, or some."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", choices=["quality", "prompts", "steering", "speed", "memory"])
    parser.add_argument("--repetitions", type=int, default=7)
    parser.add_argument("--asked", type=int, default=16, help="situations per trait, for steering")
    parser.add_argument("--lines", default="1000,10000,100000", help="for the memory of curating")
    parser.add_argument("--size", default="tiny", help="of the model that curates; see measuring.SHAPES")
    parser.add_argument("--curate", type=int, help=argparse.SUPPRESS)
    parser.add_argument("-o", "--output", type=Path)
    options = parser.parse_args(arguments)
    if options.curate is not None:
        curate_here(options.curate, options.size)
        return
    sections = {
        "quality": lambda: quality("conversations"),
        "prompts": lambda: quality("prompts"),
        "steering": lambda: steering(options.asked),
        "speed": lambda: speed(options.repetitions),
        "memory": lambda: memory([int(each) for each in options.lines.split(",")], options.size),
    }
    report = [machine()]
    for name, make in sections.items():
        if options.only in (None, name):
            report.append(f"## {name}\n\n{make()}")
            print(report[-1], flush=True)
    if options.output is not None:
        options.output.write_text("\n\n".join(report) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
