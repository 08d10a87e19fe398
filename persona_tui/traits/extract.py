"""From a definition to a trait of one model: vectors, a layer to measure at, a threshold, and how good it is.

1. Replies of both sides are read: those of the definition (recipe "conversations"), or those that the model
   gives under opposed system prompts (recipe "prompts"). One pass each, over all layers that matter.
2. The vector of each layer is the mean of the high side minus the mean of the low side.
3. The layer is chosen among the middle and late ones by cross-validation: replies are scored with vectors
   that were made without their situation, and the layer that separates the sides best wins. There a probe is
   fitted (`traits.probe`); threshold and figures come from scores of replies that it was made without.
4. The gate is fitted on the trait's own messages against ordinary ones, and a healthy range that is
   "calibrated" is set where few good and few ordinary replies leave it.
5. The test conversations are measured last. Nothing is chosen by them.

The second recipe is that of the persona-vectors paper (Chen et al. 2025, arXiv:2507.21509), without a judge:
a pair of replies counts if each is likelier under its own system prompt than under the opposite one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from persona_tui.core.config import Settings, capture_layers, resolve_layers
from persona_tui.core.errors import DatasetError, GenerationError
from persona_tui.core.processes import processes
from persona_tui.core.statistics import (
    Estimate,
    auc_estimate,
    best_threshold,
    roc_auc,
    separation,
)
from persona_tui.extraction.checkpoints import PartialStore, Tally
from persona_tui.extraction.runner import dataset_hash, item_seed
from persona_tui.model import Message, ModelWrapper, Request, Sampling
from persona_tui.model.spans import read_replies
from persona_tui.traits.definition import FEWEST, SIDES, Side, Split, TraitDefinition
from persona_tui.traits.health import Elsewhere, Health, LeftOut, Surroundings, good_side
from persona_tui.traits.probe import Sample, left_out_scores
from persona_tui.traits.readings import Readings
from persona_tui.traits.thresholds import balanced_accuracy
from persona_tui.traits.vector import (
    RECIPE,
    WEAK,
    HeldOut,
    Interval,
    LayerFigures,
    TraitReading,
    TraitVector,
)
from persona_tui.vectors.axes import Axes
from persona_tui.vectors.maths import orthogonalize_persona
from persona_tui.vectors.persona import DEFAULT_STRENGTH, PersonaVector

Recipe = Literal["conversations", "prompts"]
Progress = Callable[[int, int, str], None]

RECIPES: tuple[Recipe, Recipe] = ("conversations", "prompts")

# How many differences between both sides are clear and still fluent at one layer, as `benchmarks/traits.py`
# measures it on the tiny model. Several layers need less each, for each adds to those before.
NATURAL = 2.0

_READ_TOGETHER = 64  # conversations between two checkpoints
_LEAST_RATIO = 0.0  # nats per token by which a reply must be likelier under its own system prompt


@dataclass(frozen=True)
class Replies:
    """The replies of one side: their activations `[replies, layers, hidden]`, and each one's situation."""

    activations: Tensor
    situations: tuple[str, ...]


Sides = dict[Side, Replies]


class PersonaVectorExtractor:
    """Makes traits of one model."""

    def __init__(
        self,
        model: ModelWrapper,
        settings: Settings,
        axes: Axes | None = None,
        progress: Progress | None = None,
        checkpoint: Callable[[], None] | None = None,
        log: Callable[[str], None] | None = None,
        partial: PartialStore | None = None,
        around: Surroundings | None = None,
    ) -> None:
        """
        Args:
            model: the model.
            settings: `extraction` says how replies are sampled for the recipe "prompts".
            axes: the model's, if there are any: traits are then steered with without their safety component.
            progress: called with replies done, replies in all, and what they are for.
            checkpoint: called between batches; may let other work run, or raise (`JobCancelled`).
            log: told what happens on the way, in one line.
            partial: keeps replies that were generated, within its jobs. By default nothing is kept.
            around: what gates and healthy ranges are found against. By default there is nothing, and a trait
                that names nothing ordinary of its own has no gate.
        """
        self.model = model
        self.settings = settings
        self.axes = axes
        self.candidates = tuple(range(model.n_layers // 2, model.n_layers))
        self.layers = tuple(sorted({*capture_layers(settings, model.n_layers), *self.candidates}))
        self.progress = progress or (lambda done, total, note: None)
        self.checkpoint = checkpoint or (lambda: None)
        self.partial = partial if partial is not None else PartialStore()
        self.around = around or Surroundings()
        self.readings = Readings(model, self.layers, self.checkpoint, self.partial)
        self._log = log or (lambda line: None)

    def extract(self, definition: TraitDefinition, recipe: Recipe | None = None) -> TraitVector:
        """Make a trait; nothing is saved.

        Args:
            definition: what it is.
            recipe: which replies it is made from; None = the definition's own, if it has any.

        Raises:
            DatasetError: the definition has too few conversations, or no system prompts for "prompts".
            GenerationError: too few replies could be used.
        """
        recipe = recipe or definition.recipe
        for side in SIDES:
            if recipe == "conversations" and definition.count("train", side) < FEWEST:
                raise DatasetError(
                    f'"{definition.name}" has {definition.count("train", side)} {side} conversations to '
                    f"extract from; at least {FEWEST} are needed on each side"
                )
        if recipe == "prompts":
            train, figures = _Contrast(self, definition).replies()
        else:
            train, figures = self._read(definition, "train"), {}
        health = Health(self.readings, definition, self.around)
        reading, left_out = self._reading(definition, train, recipe, health.elsewhere)
        trait = TraitVector(self._vector(definition, train, figures), reading)
        trait = trait.with_reading(held_out=self._held_out(definition, trait))
        return health.found_for(trait, left_out)

    # Reading ------------------------------------------------------------------------------------------------

    def _read(self, definition: TraitDefinition, split: Split) -> Sides:
        return {side: self._read_side(definition, split, side) for side in SIDES}

    def _read_side(self, definition: TraitDefinition, split: Split, side: Side) -> Replies:
        items = definition.conversations(split, side)
        means: list[Tensor] = []
        situations: list[str] = []
        asked = [messages for _, messages in items]
        stage = self.partial.stage(
            ["trait readings", list(self.model.identity), list(self.layers), split, side, asked]
        )
        done = len(stage.done)

        def read(chunk: Sequence[int]) -> Tally:
            nonlocal done
            self.checkpoint()
            read = read_replies(self.model, [asked[item] for item in chunk], self.layers)
            done += len(chunk)
            self.progress(done, len(items), definition.name)
            found = dict(zip(chunk, read, strict=True))
            left_out = {item: str(each) for item, each in found.items() if isinstance(each, GenerationError)}
            rows = {
                item: each[-1].mean for item, each in found.items() if not isinstance(each, GenerationError)
            }
            return Tally(frozenset(chunk), values=left_out, rows=rows)

        found = stage.finish(len(items), _READ_TOGETHER, read)
        for item, (situation, _) in enumerate(items):
            if item in found.values:
                self._log(f"{definition.name}: {situation} ({side}) is left out: {found.values[item]}")
                continue
            means.append(found.rows[item])
            self.readings.remember(asked[item], found.rows[item])
            situations.append(situation)
        if split == "train" and len(means) < FEWEST:
            raise GenerationError(
                f"only {len(means)} of {len(items)} {side} conversations of {definition.name} fit into the "
                f"context of {self.model.name}; at least {FEWEST} are needed"
            )
        shape = (0, len(self.layers), self.model.hidden_size)
        return Replies(torch.stack(means) if means else torch.zeros(shape), tuple(situations))

    # Vectors ------------------------------------------------------------------------------------------------

    def _vector(self, definition: TraitDefinition, train: Sides, figures: dict[str, Any]) -> PersonaVector:
        """Return the trait as something that can be steered with.

        Its gain is set by its natural size: at the default strength, each of n steering layers adds the
        difference between both sides 2 / sqrt(n) times.
        """
        mean = train["high"].activations.double().mean(0)
        raw = (mean - train["low"].activations.double().mean(0)).float()
        targets = [
            layer
            for layer in resolve_layers(self.settings, self.model.n_layers).target
            if layer in self.layers
        ]
        metadata = {
            "kind": "trait",
            "model_name": self.model.name,
            "model_fingerprint": self.model.fingerprint,
            "model_source": self.model.source,
            **self.model.sketch.record(),
            "rendering": self.model.rendering.record(),
            "hidden_size": self.model.hidden_size,
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
            "source": "trait",
            "description": definition.description,
            "target_layers": targets,
            "gain": NATURAL / (DEFAULT_STRENGTH * max(1, len(targets)) ** 0.5),
            **figures,
        }
        return PersonaVector(
            definition.name,
            self.layers,
            mean={RECIPE: mean.float()},
            raw={RECIPE: raw},
            safe={RECIPE: self._without_safety(raw)},
            metadata=metadata,
        )

    def _without_safety(self, raw: Tensor) -> Tensor:
        if self.axes is None:
            return raw.clone()
        rows = [
            orthogonalize_persona(row, self.axes.axis("safety", layer, RECIPE))
            if layer in self.axes.layers
            else row
            for layer, row in zip(self.layers, raw, strict=True)
        ]
        return torch.stack(rows)

    # Layer, threshold, figures ------------------------------------------------------------------------------

    def _reading(
        self, definition: TraitDefinition, train: Sides, recipe: Recipe, elsewhere: Elsewhere
    ) -> tuple[TraitReading, LeftOut]:
        """Return layer, probe, threshold and figures, and the left-out scores at that layer."""
        columns = [self.layers.index(layer) for layer in self.candidates]
        high, low = (train[side].activations[:, columns].double() for side in SIDES)
        scores = left_out_scores(high, low, train["high"].situations, train["low"].situations)
        strengths = (high.mean(0) - low.mean(0)).norm(dim=-1).tolist()
        layers = tuple(
            LayerFigures(
                layer=layer,
                strength=strengths[place],
                separation=separation(scores.high[:, place], scores.low[:, place]),
                auc=roc_auc(scores.high[:, place], scores.low[:, place]),
            )
            for place, layer in enumerate(self.candidates)
        )
        chosen = max(range(len(layers)), key=lambda place: layers[place].separation)
        best = layers[chosen]
        weights, left_out = _probed(
            train, elsewhere, self.layers.index(best.layer), good_side(definition.healthy)
        )
        own_high, own_low = left_out.scores["high"], left_out.scores["low"]
        reading = TraitReading(
            layer=best.layer,
            probe=weights,
            threshold=best_threshold(own_high, own_low),
            strength=best.strength,
            separation=best.separation,
            auc=_interval(auc_estimate(own_high, own_low)),
            layers=layers,
            healthy=definition.healthy,
            everywhere=definition.everywhere,
            high=definition.high,
            low=definition.low,
            recipe=recipe,
            counts={side: len(train[side].situations) for side in SIDES},
            source_hash=_hash_of(definition),
        )
        return reading, left_out

    def _held_out(self, definition: TraitDefinition, trait: TraitVector) -> HeldOut | None:
        if not all(definition.count("test", side) for side in SIDES):
            return None
        column = self.layers.index(trait.reading.layer)
        read = self._read(definition, "test")
        scores = {
            side: [trait.score(each) for each in trait.projections(read[side].activations[:, column])]
            for side in SIDES
        }
        if not (scores["high"] and scores["low"]):
            return None
        return HeldOut(
            auc=_interval(auc_estimate(scores["high"], scores["low"])),
            accuracy=balanced_accuracy(scores["high"], scores["low"], trait.reading.threshold),
            high=len(scores["high"]),
            low=len(scores["low"]),
        )


def _probed(
    train: Sides, elsewhere: Elsewhere, column: int, good: Side | None
) -> tuple[tuple[float, ...], LeftOut]:
    """Return a layer's probe, none where it is weak, and the left-out scores of what it was made from."""
    parts = [train["high"].activations, train["low"].activations, elsewhere.activations]
    signs = [1.0, -1.0, 1.0 if good == "high" else -1.0]
    numbers = [len(each) for each in parts]
    sample = Sample(
        rows=torch.cat([each[:, column] for each in parts]).double().numpy(),
        sides=np.repeat(signs, numbers),
        own=np.repeat([True, True, False], numbers),
        situations=[*train["high"].situations, *train["low"].situations, *elsewhere.situations],
    )
    weights = sample.weights()
    probe = tuple(float(f"{each:.5g}") for each in weights / max(float(np.linalg.norm(weights)), 1e-30))
    high, low, others = np.split(sample.left_out(), np.cumsum(numbers)[:2])
    if roc_auc(high, low) < WEAK:
        probe = ()
        high, low, others = np.split(replace(sample, plain=True).left_out(), np.cumsum(numbers)[:2])
    situations = {side: train[side].situations for side in SIDES}
    return probe, LeftOut(situations, {"high": high, "low": low}, others)


def _interval(estimate: Estimate) -> Interval:
    return Interval(value=estimate.value, low=estimate.low, high=estimate.high)


# The recipe "prompts" ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Answer:
    """One reply under one system prompt: what it says, its mean activation, its log-likelihood ratio."""

    situation: str
    activation: Tensor
    ratio: float


class _Contrast:
    """Replies that the model gives under opposed system prompts."""

    def __init__(self, extractor: PersonaVectorExtractor, definition: TraitDefinition) -> None:
        if not definition.high_prompts:
            raise DatasetError(
                f'"{definition.name}" has no "high_prompts" and "low_prompts", which this recipe needs'
            )
        self._extractor = extractor
        self._model = extractor.model
        self._settings = extractor.settings.extraction
        self._definition = definition
        self._prompts = {"high": definition.high_prompts, "low": definition.low_prompts}
        asked = definition.asked()
        if not asked:
            raise DatasetError(f'"{definition.name}" has no situations and no "questions" to ask')
        # Each pair of prompts goes on with the situations where the one before left off.
        most = min(len(asked), self._settings.num_samples_per_prompt)
        self._asked = [
            (pair, *asked[(pair * most + place) % len(asked)])
            for pair in range(len(definition.high_prompts))
            for place in range(most)
        ]

    def replies(self) -> tuple[Sides, dict[str, Any]]:
        """Return the replies that count, and how many there were.

        Raises:
            GenerationError: the system prompts change too little of what the model says.
        """
        answers = {side: self._answer(side) for side in SIDES}
        kept = [
            (high, low)
            for high, low in zip(answers["high"], answers["low"], strict=True)
            if high is not None and low is not None and min(high.ratio, low.ratio) > _LEAST_RATIO
        ]
        if len(kept) < FEWEST:
            raise GenerationError(
                f"the system prompts of {self._definition.name} hardly change what {self._model.name} says: "
                f"{len(kept)} of {len(self._asked)} pairs of replies could be told apart"
            )
        sides: Sides = {}
        for place, side in enumerate(SIDES):
            chosen = [pair[place] for pair in kept]
            stacked = torch.stack([answer.activation for answer in chosen])
            sides[side] = Replies(stacked, tuple(answer.situation for answer in chosen))
        ratios = [answer.ratio for pair in kept for answer in pair]
        figures = {
            "prompts": list(self._definition.high_prompts),
            "opposite_prompts": list(self._definition.low_prompts),
            "pairs": {"generated": len(self._asked), "kept": len(kept)},
            "expression": sum(ratios) / len(ratios),
        }
        return sides, figures

    def _answer(self, side: Side) -> list[_Answer | None]:
        """Return the model's replies; None where it said nothing."""
        requests = [Request(self._messages(side, *asked), self._seed(side, *asked)) for asked in self._asked]
        stage = self._extractor.partial.stage(self._recipe(side, requests))
        done = len(stage.done)

        def answer(items: Sequence[int]) -> Tally:
            nonlocal done
            self._extractor.checkpoint()
            answers = self._batch(side, items, [requests[item] for item in items])
            said = {item: each for item, each in zip(items, answers, strict=True) if each is not None}
            done = min(len(requests), done + processes().count * len(items))
            self._extractor.progress(done, len(requests), f"{self._definition.name}, {side} replies")
            return Tally(
                frozenset(items),
                values={item: each.ratio for item, each in said.items()},
                rows={item: each.activation for item, each in said.items()},
            )

        tally = stage.finish(len(requests), self._settings.batch_size, answer)
        return [
            _Answer(situation, tally.rows[item], tally.values[item]) if item in tally.values else None
            for item, (_, situation, _) in enumerate(self._asked)
        ]

    def _recipe(self, side: Side, requests: Sequence[Request]) -> list[object]:
        """Return what the replies of one side, and their likelihood ratios, depend on."""
        other: Side = "low" if side == "high" else "high"
        return [
            "trait replies",
            list(self._model.identity),
            list(self._extractor.layers),
            asdict(self._sampling),
            [[each.messages, each.seed] for each in requests],
            [self._messages(other, *asked) for asked in self._asked],
        ]

    @property
    def _sampling(self) -> Sampling:
        extraction = self._settings
        return Sampling(extraction.max_new_tokens, extraction.temperature, extraction.top_p)

    def _batch(self, side: Side, items: Sequence[int], requests: Sequence[Request]) -> list[_Answer | None]:
        generations = self._model.generate(requests, self._sampling, capture_layers=self._extractor.layers)
        said = [
            place
            for place, each in enumerate(generations)
            if each.text and each.activations is not None and each.activations.n_tokens
        ]
        other: Side = "low" if side == "high" else "high"
        pairs = [(requests[place].messages, generations[place].text) for place in said]
        pairs += [
            (self._messages(other, *self._asked[items[place]]), generations[place].text) for place in said
        ]
        scored = [each.logprob for each in self._model.score(pairs)]
        answers: list[_Answer | None] = [None] * len(requests)
        for number, place in enumerate(said):
            activations = generations[place].activations
            assert activations is not None
            situation = self._asked[items[place]][1]
            ratio = scored[number] - scored[len(said) + number]
            answers[place] = _Answer(situation, activations.response, ratio)
        return answers

    def _messages(self, side: Side, pair: int, situation: str, prompt: list[Message]) -> list[Message]:
        spoken = [message for message in prompt if message["role"] != "system"]
        return [{"role": "system", "content": self._prompts[side][pair]}, *spoken]

    def _seed(self, side: Side, pair: int, situation: str, prompt: list[Message]) -> int:
        return item_seed(self._settings.seed, "trait", self._definition.name, side, pair, situation)


def _hash_of(definition: TraitDefinition) -> str:
    """Tell what a trait was made of from what another one was."""
    texts = [
        message["content"]
        for side in SIDES
        for _, conversation in definition.conversations("train", side)
        for message in conversation
    ]
    return dataset_hash([*texts, *definition.questions, *definition.high_prompts, *definition.low_prompts])
