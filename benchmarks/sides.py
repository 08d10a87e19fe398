"""What `peers.py` compares: each side as a function that does some work and returns how many units it did."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from measuring import BUILTIN, REPOSITORY, make_model

PEERS = ("steering-vectors", "repeng")
TEMPERATURE = 0.7

Side = Callable[[], float]


@dataclass(frozen=True)
class Effort:
    """How much is done at one size.

    Attributes:
        pairs: of texts to read.
        prompts: to answer, in batches of `batch`, with `tokens` tokens each.
        alone: how many of them are answered one at a time; what is compared is the cost of one.
        decoded: tokens of a single stream.
        rounds: repetitions.
    """

    pairs: int
    prompts: int
    batch: int
    tokens: int
    alone: int
    decoded: int
    rounds: int


EFFORTS = {
    BUILTIN: Effort(32, 32, 32, 64, 2, 96, 7),
    "tiny": Effort(8, 8, 4, 8, 2, 8, 3),
    "deep": Effort(16, 64, 32, 32, 2, 32, 3),
    "0.5b-8": Effort(16, 32, 32, 48, 2, 48, 4),
    "0.5b": Effort(8, 16, 16, 32, 1, 24, 3),
    "7b": Effort(64, 256, 64, 256, 4, 256, 5),
}
# Enough for every aim to be judged, with fewer repetitions.
QUICK = {
    BUILTIN: Effort(24, 32, 32, 64, 1, 64, 4),
    "0.5b-8": Effort(4, 32, 32, 32, 1, 16, 1),
    "0.5b": Effort(3, 32, 32, 32, 1, 12, 1),
}
_WARM = 2  # of everything
_COMPARED = 4  # responses whose means are compared


class Bench:
    """One model, and the sides that are run on it. Each side returns how many units of work it did."""

    def __init__(self, size: str, effort: Effort, device: str, dtype: str) -> None:
        from persona_tui.core.config import Settings, resolve_layers
        from persona_tui.model import ModelWrapper

        self.effort, self.device = effort, device
        self.judged_by = "wall" if device.startswith("cuda") else "cpu"
        self.model, self.tokenizer = make_model(size, device, dtype)
        self.wrapper = ModelWrapper(self.model, self.tokenizer, size)
        self.wrapper._end_tokens = frozenset()  # every side writes exactly as many tokens
        self.model.generation_config.eos_token_id = None
        self.layers = list(range(self.wrapper.n_layers))
        self.middle = list(resolve_layers(Settings(), self.wrapper.n_layers).target)
        self.failed: dict[str, str] = {}

    def requests(self, count: int) -> list[Any]:
        """Questions to a persona, as an extraction asks them."""
        return persona_requests(count)

    def prompts(self, count: int) -> list[str]:
        """The same as text."""
        return [self.wrapper.render(each.messages) for each in self.requests(count)]

    def usable(self, sides: Mapping[str, Side]) -> dict[str, Side]:
        """Run each side once, with little to do, to warm up; without the peers that cannot be run."""
        whole = self.effort
        self.effort = replace(whole, pairs=_WARM, tokens=_WARM, decoded=_WARM)
        try:
            return self._working(sides)
        finally:
            self.effort = whole

    def _working(self, sides: Mapping[str, Side]) -> dict[str, Side]:
        working = {}
        for name, side in sides.items():
            if not name.startswith(PEERS):
                side()
                working[name] = side
                continue
            try:
                side()
                working[name] = side
            except Exception as error:  # whatever it is: the table says so
                self.failed[name] = f"{type(error).__name__}: {str(error).splitlines()[0][:160]}"
        return working

    # From given texts

    def pairs(self) -> tuple[list[str], list[str]]:
        """Texts of many lengths."""
        found = texts(2 * self.effort.pairs)
        return found[::2], found[1::2]

    def read(self, layers: Sequence[int]) -> Any:
        """persona-tui's difference of means, `[layers, hidden]`, and of last tokens."""
        import torch

        positive, negative = self.pairs()
        read = self.wrapper.read([*positive, *negative], layers)
        last = torch.stack([each.prompt_last for each in read])
        mean = torch.stack([each.response for each in read])
        half = len(positive)
        return mean[:half].mean(0) - mean[half:].mean(0), last[:half].mean(0) - last[half:].mean(0)

    def steering_vectors(self, layers: Sequence[int], batch: int) -> Any:
        """steering-vectors' difference of means."""
        import steering_vectors

        samples = list(zip(*self.pairs(), strict=True))
        return steering_vectors.train_steering_vector(
            self.model, copy.deepcopy(self.tokenizer), samples, layers=list(layers), batch_size=batch
        )

    def repeng(self, layers: Sequence[int], batch: int) -> Any:
        """repeng's first principal component."""
        import repeng

        dataset = [repeng.DatasetEntry(a, b) for a, b in zip(*self.pairs(), strict=True)]
        return repeng.ControlVector.train(
            self.model,
            copy.deepcopy(self.tokenizer),
            dataset,
            hidden_layers=list(layers),
            batch_size=batch,
            method="pca_center",
        )

    def readers(self, layers: Sequence[int]) -> dict[str, Side]:
        """Everybody's extraction from given texts; a unit is a pair."""
        batch = self.effort.batch
        units = self.effort.pairs

        def side(work: Callable[[], object]) -> Side:
            def run() -> float:
                work()
                return units

            return run

        return {
            "persona-tui": side(lambda: self.read(layers)),
            "steering-vectors, one pair at a time (its default)": side(
                lambda: self.steering_vectors(layers, 1)
            ),
            f"steering-vectors, batches of {batch}": side(lambda: self.steering_vectors(layers, batch)),
            f"repeng, batches of {batch}": side(lambda: self.repeng(layers, batch)),
        }

    # By generating

    def extract(self, count: int) -> Any:
        """persona-tui's mean response activation, `[layers, hidden]`, of every layer."""
        effort = self.effort
        return extractor(self.wrapper, self.layers, effort.batch, effort.tokens).run(self.requests(count))

    def two_pass(self, count: int, batch: int, *, logits: bool = True, sample: bool = True) -> Any:
        """The same from transformers alone: generate, then run the model over everything again."""
        import torch

        chosen = {"do_sample": True, "temperature": TEMPERATURE, "top_k": 0, "top_p": 1.0}
        lean = {} if logits else {"logits_to_keep": 1}
        total: Any = 0
        prompts = self.prompts(count)
        for start in range(0, count, batch):
            asked = self.tokenizer(
                prompts[start : start + batch], padding=True, add_special_tokens=False, return_tensors="pt"
            ).to(self.device)
            written = self.model.generate(
                **asked, max_new_tokens=self.effort.tokens, **(chosen if sample else {"do_sample": False})
            )
            begin = asked["input_ids"].shape[1]
            mask = torch.ones_like(written)
            mask[:, :begin] = asked["attention_mask"]
            with torch.inference_mode():
                states = self.model(written, attention_mask=mask, output_hidden_states=True, **lean)
                means = [state[:, begin:].float().mean(1) for state in states.hidden_states[1:]]
            total = total + torch.stack(means, 1).sum(0).cpu()
        return total / count

    def extractions(self) -> dict[str, Side]:
        """Everybody's extraction by generating; a unit is a response token."""
        effort = self.effort

        def side(work: Callable[[], object], count: int) -> Side:
            def run() -> float:
                work()
                return count * effort.tokens

            return run

        many, few = effort.prompts, effort.alone
        return {
            "persona-tui, captured while generating": side(lambda: self.extract(many), many),
            "two passes, equal batch": side(lambda: self.two_pass(many, effort.batch), many),
            "two passes, equal batch, without logits in the second": side(
                lambda: self.two_pass(many, effort.batch, logits=False), many
            ),
            "two passes, one prompt at a time": side(lambda: self.two_pass(few, 1), few),
        }

    def agreement(self) -> float:
        """The lowest cosine, over layers, between both ways' means of the same greedy responses.

        Without the last layer: there `output_hidden_states` gives what comes after the final norm.
        """
        import torch

        from persona_tui.model import Sampling

        count = min(_COMPARED, self.effort.batch, self.effort.prompts)
        greedy = Sampling(self.effort.tokens, temperature=0)
        answers = self.wrapper.generate(self.requests(count), greedy, capture_layers=self.layers)
        ours = torch.stack([each.activations.response for each in answers if each.activations]).mean(0)
        theirs = self.two_pass(count, count, sample=False)
        return float(torch.cosine_similarity(ours[:-1], theirs[:-1], dim=-1).min())

    # Single streams

    def steering(self, *, capping: bool) -> Any:
        """Vectors at the layers, and floors, that the settings would choose."""
        import torch

        from persona_tui.core.config import Settings, resolve_layers
        from persona_tui.model import Cap, Interventions

        places = resolve_layers(Settings(), self.wrapper.n_layers)
        vectors = {layer: self.vector(layer) for layer in places.target}
        axis = torch.nn.functional.normalize(self.vector(0), dim=0)
        return Interventions(vectors, {layer: Cap(axis, 0.0) for layer in places.capping} if capping else {})

    def vector(self, layer: int) -> Any:
        """A small vector for a layer, `[hidden]`."""
        import torch

        noise = torch.Generator().manual_seed(layer)
        return torch.randn(self.wrapper.hidden_size, generator=noise) * 0.01

    def stream(self, interventions: Any = None) -> float:
        """One reply, token by token, as the chat shows it; a unit is a token."""
        from persona_tui.model import Sampling

        sampling = Sampling(self.effort.decoded, TEMPERATURE, top_p=1.0, seed=1)
        events = list(self.wrapper.stream(self.requests(1), sampling, interventions))
        assert len(events) == self.effort.decoded
        return len(events)

    def plain(self, model: Any = None) -> float:
        """One reply from transformers' own `generate`."""
        asked = self.tokenizer(self.prompts(1), add_special_tokens=False, return_tensors="pt")
        written = (model or self.model).generate(
            **asked.to(self.device),
            max_new_tokens=self.effort.decoded,
            do_sample=True,
            temperature=TEMPERATURE,
            top_k=0,
            top_p=1.0,
        )
        return float(written.shape[1] - asked["input_ids"].shape[1])

    def with_steering_vectors(self) -> float:
        """One reply steered by steering-vectors."""
        import steering_vectors

        vectors = self.steering(capping=False).steering
        vector = steering_vectors.SteeringVector(dict(vectors)).to(self.device, dtype=self.model.dtype)
        with vector.apply(self.model):
            return self.plain()

    def with_repeng(self) -> float:
        """One reply steered by repeng."""
        import repeng

        vectors = self.steering(capping=False).steering
        control = repeng.ControlModel(self.model, list(vectors))
        try:
            directions = {layer: vector.numpy() for layer, vector in vectors.items()}
            control.set_control(repeng.ControlVector(self.model.config.model_type, directions))
            return self.plain(control)
        finally:
            control.unwrap()

    def speakers(self) -> dict[str, Side]:
        """Everybody's single stream; a unit is a token."""
        return {
            "transformers' `generate`, unsteered": self.plain,
            "persona-tui, unsteered": self.stream,
            "persona-tui, steered": lambda: self.stream(self.steering(capping=False)),
            "persona-tui, steered and capped": lambda: self.stream(self.steering(capping=True)),
            "steering-vectors, steered": self.with_steering_vectors,
            "repeng, steered": self.with_repeng,
        }

    # Small differences: the same decoding in step with itself

    def decoding(
        self, rows: int, tokens: int, interventions: Any = None, capture: Sequence[int] = ()
    ) -> Callable[[], Iterator[object]]:
        """A decoding loop, one step at a time."""
        from persona_tui.model import ResidualHooks, Sampling
        from persona_tui.model.architecture import find_blocks
        from persona_tui.model.generation import decode
        from persona_tui.model.request import Batch

        prompts = [self.tokenizer(text, add_special_tokens=False).input_ids for text in self.prompts(rows)]
        batch = Batch(prompts, list(range(rows)), frozenset(), 0)
        sampling = Sampling(tokens, TEMPERATURE, top_p=1.0)

        def begin() -> Iterator[object]:
            size = self.wrapper.hidden_size
            hooks = ResidualHooks(find_blocks(self.model), size, rows, capture_layers=capture)
            if interventions is not None:
                hooks.apply(interventions)
            yield from decode(self.model, batch, sampling, hooks)

        return begin


def extractor(wrapper: Any, layers: Sequence[int], batch: int, tokens: int) -> Any:
    """An ActivationExtractor for these layers."""
    from persona_tui.core.config import Settings, override
    from persona_tui.extraction import ActivationExtractor

    values = {"target_layers": list(layers), "batch_size": batch, "max_new_tokens": tokens}
    keys = {f"extraction.{key}": value for key, value in values.items()}
    settings = override(Settings(), {**keys, "steering.capping_layers": list(layers)})
    return ActivationExtractor(wrapper, settings)


def persona_requests(count: int) -> list[Any]:
    """What an extraction of the persona "sage" asks."""
    from persona_tui.core.workspace import Workspace
    from persona_tui.datasets.records import read_archetype, read_questions
    from persona_tui.extraction.runner import persona_requests

    workspace = Workspace(REPOSITORY)
    systems = [prompt.system_prompt for prompt in read_archetype(workspace, "sage")]
    questions = read_questions(workspace)
    found = persona_requests(systems, questions, -(-count // len(systems)), 0, "benchmark")
    return random.Random(1).sample(found, count)


def texts(count: int) -> list[str]:
    """Texts of one to six sentences."""
    from persona_tui.core.workspace import Workspace
    from persona_tui.datasets.records import read_questions

    rng = random.Random(2)
    sentences = [question.question for question in read_questions(Workspace(REPOSITORY))]
    return [" ".join(rng.sample(sentences, rng.randint(1, 12))) for _ in range(count)]
