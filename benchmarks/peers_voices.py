"""What personas say beside other libraries' vectors, made from the same replies of the same model.

    python benchmarks/peers_voices.py --model NAME [--workspace FOLDER] [--personas sage ...] [-o voices.md]

It runs where persona-tui, repeng and steering-vectors are installed (`peers.py --env FOLDER` makes such an
environment); with saklas, too (`pip install --no-deps saklas`), there is a line more. The model answers
questions with each persona's system prompts and without; from these replies every library makes its vectors,
in its own way and at its own default layers:

- *persona-tui*: the calibrated persona of the workspace, at its strength (0.3), with the guide; no floor.
- *repeng*: the principal component of the differences at the last token between the same reply after a chat
  with the system prompt and without, cut in its middle; the layers and the coefficient (2.2) of its README.
- *steering-vectors*: the mean difference at the last token between prompted and plain replies to the same
  question; every layer, multiplier 1.
- *saklas*: `extract_from_corpora`, which wants replies to 48 questions of its own: prompted and plain ones;
  coefficient 0.5, its default. What it adds is no constant vector, so its own session writes.

Each is also tried at multiples of that strength. Replies are sampled alike, but for saklas by persona-tui's
engine, which adds what the library would add at every position; the first lines say how far a library's own
hooks differ.
Figures as in `checklist.py`. *Within the margin* is the most expressive of the strengths tried that loses at
most 0.3 nats; with it come the strength and what that loses.
"""

from __future__ import annotations

import copy
import importlib.util
import json
import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

import torch
from checklist import QUESTIONS, Bench, Figures
from measuring import machine, opened, persona_arguments, table
from torch import Tensor

from persona_tui.core.mix import Mix
from persona_tui.datasets.records import read_questions
from persona_tui.model import Interventions, Request, Sampling, conversation
from persona_tui.model.packed import unpack
from persona_tui.project.project import Project
from persona_tui.vectors.persona import DEFAULT_STRENGTH

MARGIN = 0.3  # nats per token
OURS = "persona-tui"
MULTIPLES = {
    OURS: (0.5, 1.0),
    "repeng": (1.0, 2.0, 4.0, 8.0),
    "steering-vectors": (0.03, 0.06, 0.125, 1.0),
    "saklas": (0.1, 0.3, 1.0),
}
README_LAYERS, README_COEFFICIENT = range(-5, -18, -1), 2.2  # repeng's
SAKLAS_COEFFICIENT = 0.5
BATCH = 16


@dataclass(frozen=True)
class Pair:
    """A question, a persona's system prompt, and the replies with and without it."""

    question: str
    system: str
    prompted: str
    plain: str


def replies(bench: Bench, name: str, count: int) -> list[Pair]:
    """Replies to questions of the data set, with the persona's system prompts in turn, and plain ones."""
    asked = [each.question for each in read_questions(bench.project.workspace)][:count]
    systems = bench.prompts(name)
    prompted = bench.ask(asked, Mix(capping=False), systems, seed=5000)
    plain = bench.ask(asked, Mix(capping=False), seed=5000)
    return [
        Pair(question, systems[row % len(systems)], prompted[row], plain[row])
        for row, question in enumerate(asked)
    ]


def repeng_vectors(project: Project, pairs: Sequence[Pair]) -> dict[int, Tensor]:
    """What repeng adds, by layer."""
    import repeng

    model = project.model
    dataset = []
    for pair in pairs:
        words = pair.prompted.split(" ")
        start = " ".join(words[: len(words) // 2 + 1])
        with_prompt, without = (
            model.render(conversation(pair.question, system)) + start for system in (pair.system, None)
        )
        dataset.append(repeng.DatasetEntry(with_prompt, without))
    layers = [model.n_layers + layer for layer in README_LAYERS if layer + model.n_layers >= 0]
    found = repeng.ControlVector.train(
        model.model, copy.deepcopy(model.tokenizer), dataset, hidden_layers=layers, batch_size=BATCH
    )
    return {layer: README_COEFFICIENT * torch.tensor(found.directions[layer]).float() for layer in layers}


def steering_vectors_vectors(project: Project, pairs: Sequence[Pair]) -> dict[int, Tensor]:
    """What steering-vectors adds, by layer."""
    import steering_vectors

    model = project.model
    samples = []
    for pair in pairs:
        asked = model.render(conversation(pair.question))
        samples.append((asked + pair.prompted, asked + pair.plain))
    found = steering_vectors.train_steering_vector(
        model.model, copy.deepcopy(model.tokenizer), samples, batch_size=BATCH
    )
    return {layer: vector.float().cpu() for layer, vector in found.layer_activations.items()}


class Saklas:
    """A persona in saklas: its own extraction, its own way to steer and to sample."""

    def __init__(self, bench: Bench, name: str) -> None:
        from saklas import SaklasSession

        self._bench, model = bench, bench.project.model
        found = resources.files("saklas").joinpath("data", "baseline_prompts.json")
        asked = json.loads(found.read_text(encoding="utf-8"))
        prompted, plain = (
            bench.ask(asked, Mix(capping=False), systems, seed=5000) for systems in (bench.prompts(name), ())
        )
        unpack(model.model)  # it reads weights
        self._session = SaklasSession(model.model, copy.deepcopy(model.tokenizer), probes=[])
        self._name, _ = self._session.extract_from_corpora(f"{name}_voice", prompted, plain, force=True)

    def spoken(self, multiple: float) -> list[str]:
        """Replies to the held-out questions at a multiple of its default coefficient."""
        from saklas import SamplingConfig

        sampling, texts = self._bench.sampling, []
        for row, question in enumerate(self._bench.asked):
            (found,) = self._session.generate(
                question,
                steering=f"{SAKLAS_COEFFICIENT * multiple:g} {self._name}",
                sampling=SamplingConfig(
                    temperature=sampling.temperature,
                    top_p=sampling.top_p,
                    max_tokens=sampling.max_new_tokens,
                    seed=1000 + row,
                ),
                stateless=True,
                thinking=False,
            )
            texts.append(found.text.strip() or ".")
        return texts


PEERS: dict[str, Callable[[Project, Sequence[Pair]], dict[int, Tensor]]] = {
    "repeng": repeng_vectors,
    "steering-vectors": steering_vectors_vectors,
}


def hooks_differ(project: Project, vectors: Mapping[str, Mapping[int, Tensor]]) -> str:
    """How far the libraries' own hooks are from our engine: the largest difference of log-probabilities."""
    import repeng
    import steering_vectors

    model = project.model
    asked, reply = conversation(QUESTIONS[0]), "It is a fine day for it."
    ids = torch.tensor([[*model.encode(asked), *model.tokenizer(reply, add_special_tokens=False).input_ids]])
    start = len(model.encode(asked))

    def logprob() -> float:
        logits = model.model(ids, use_cache=False).logits[0, start - 1 : -1].float()
        return float(logits.log_softmax(-1).gather(1, ids[0, start:, None]).mean())

    ours = {
        name: model.score([(asked, reply)], Interventions(dict(each)))[0].logprob
        for name, each in vectors.items()
    }
    theirs = {}
    with steering_vectors.SteeringVector(dict(vectors["steering-vectors"])).apply(model.model):
        theirs["steering-vectors"] = logprob()
    control = repeng.ControlModel(model.model, sorted(vectors["repeng"]))
    control.set_raw_control({at: each.to(model.dtype) for at, each in vectors["repeng"].items()})
    theirs["repeng"] = logprob()
    control.unwrap()
    found = (f"{name} {abs(ours[name] - theirs[name]):.4f}" for name in theirs)
    return f"Nats per token between a library's own hooks and our engine, one reply: {', '.join(found)}."


def spoken(bench: Bench, vectors: Mapping[int, Tensor]) -> list[str]:
    """Replies to the held-out questions with vectors added as they are."""
    requests = [Request(conversation(question), 1000 + row) for row, question in enumerate(bench.asked)]
    found = bench.project.model.generate(requests, bench.sampling, Interventions(dict(vectors)))
    return [each.text.strip() or "." for each in found]


def row(library: str, found: Mapping[float, Figures]) -> list[object]:
    """A library's line of the table: at its recommended strength, and within the margin."""
    own = found[1.0]
    within = {multiple: each for multiple, each in found.items() if each.lost <= MARGIN}
    best = max(within, key=lambda multiple: within[multiple].expression, default=None)
    cell = "none"
    if best is not None:
        cell = f"{within[best].expression:.2f} at {within[best].lost:+.2f} (×{best:g})"
    return [library, f"{own.expression:.2f} at {own.lost:+.2f}", f"{own.repetition:.3f}", cell]


def measured(bench: Bench, name: str, count: int) -> tuple[list[list[object]], list[str], str]:
    """One persona: the table's lines, replies to read, and how far hooks differ."""
    pairs = replies(bench, name, count)
    vectors = {library: make(bench.project, pairs) for library, make in PEERS.items()}
    own = bench.figures(name, bench.prompted(name))
    lines: list[list[object]] = [[name, "its system prompts", "1.00 at +0.00", f"{own.repetition:.3f}", ""]]
    read = [f"**{name}, by its system prompts**\n\n{bench.prompted(name)[0]}"]
    speaks: dict[str, Callable[[float], list[str]]] = {
        OURS: lambda multiple: bench.steered(name, strength=DEFAULT_STRENGTH * multiple)
    }
    for library, found in vectors.items():
        speaks[library] = lambda multiple, found=found: spoken(  # type: ignore[misc]
            bench, {layer: multiple * each for layer, each in found.items()}
        )
    hooks = hooks_differ(bench.project, vectors)
    if importlib.util.find_spec("saklas"):
        speaks["saklas"] = Saklas(bench, name).spoken
    for library, speak in speaks.items():
        multiples = MULTIPLES[library]
        texts = {multiple: speak(multiple) for multiple in multiples}
        figures = {multiple: bench.figures(name, each) for multiple, each in texts.items()}
        lines.append([name, *row(library, figures)])
        read += [f"**{name}, {library}, ×{each:g}**\n\n{texts[each][0]}" for each in multiples]
        print(
            library,
            {at: f"{each.expression:.2f} at {each.lost:+.2f}" for at, each in figures.items()},
            flush=True,
        )
    return lines, read, hooks


def main() -> None:
    """Print the table and the replies; also write them to a file if asked to."""
    parser = persona_arguments(__doc__)
    parser.add_argument("--questions", type=int, default=24, help=f"at most {len(QUESTIONS)}")
    parser.add_argument("--tokens", type=int, default=48, help="in a reply")
    parser.add_argument("--pairs", type=int, default=60, help="replies that the libraries are given")
    parser.add_argument("-o", "--output", type=Path)
    options = parser.parse_args()
    os.environ["SAKLAS_HOME"] = tempfile.mkdtemp()  # where it keeps what it makes
    project = opened(options)
    bench = Bench(project, options.questions, options.tokens)
    bench.sampling = Sampling(options.tokens, temperature=0.7, top_p=0.95)
    head = f"{project.model.name}, {project.model.dtype}; {machine()}; {len(bench.asked)} questions"
    lines: list[list[object]] = []
    parts: list[str] = [f"> {bench.asked[0]}"]
    notes: list[str] = []
    for name in options.personas or project.personas.list_available():
        more, read, note = measured(bench, name, options.pairs)
        lines, parts, notes = [*lines, *more], [*parts, *read], [*notes, f"{name}: {note}"]
    header = ("persona", "by", "expression at nats lost", "repetition", f"within {MARGIN:g} nats")
    report = "\n\n".join([head, table(header, lines), *notes, *parts]) + "\n"
    print(report)
    if options.output:
        options.output.write_text(report, encoding="utf-8")


if __name__ == "__main__":
    main()
