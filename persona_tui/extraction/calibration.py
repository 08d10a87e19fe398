"""How loud a persona has to be: which recipe, which layers and which gain make it audible and keep it fluent.

1. On held-out questions the model answers with the persona's system prompts and without any. These two are
   the ends of the scale: *expression* 1 and 0.
2. A coarse sweep begins to answer a few questions with many vectors, layers and coefficients at once: each
   row of a batch is steered in its own way.
3. A fine sweep answers all questions around the best few of them.
4. A last sweep answers them several times where the best two begin to cost too much.
5. The most expressive point that is still fluent wins; among equals, the quietest.

No judge is needed. Expression is the log-likelihood ratio of a reply with and without the persona's system
prompt, under the unsteered model; fluency is its log-likelihood with it. Both are means per token, in nats.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import fmean
from typing import Any

import torch
from torch import Tensor

from persona_tui.core.errors import DatasetError
from persona_tui.extraction.extractor import ActivationExtractor
from persona_tui.extraction.plan import item_seed
from persona_tui.model import Interventions, Message, Request, Sampling, conversation
from persona_tui.vectors.persona import RECIPES, Calibration, PersonaVector

Place = tuple[str, tuple[int, ...]]  # a recipe and the layers where its vectors are added

DEFAULT_STRENGTH = 0.3  # where on the strength scale the calibrated point lies

QUIETEST, LOUDEST = 0.5, 5.0  # the first sweep: multiples of the natural size of a response's shift
COARSE_STEPS = 7
FINE_FACTORS = (0.7, 0.85, 1.0, 1.15, 1.35)  # around where the coarse sweep begins to cost too much
EDGE = 0.9  # share of the fluency margin that the last points aim at
EDGE_FACTORS = (0.95, 1.0, 1.05, 1.1)  # around the coefficient that should cost that much
EDGE_PLACES = 2
EDGE_SAMPLES = 3  # replies to each question: a step of the loudness changes less than the luck of one reply
COARSE_QUESTIONS = 10
FINALISTS = 4
MOST_SINGLE_LAYERS = 6

CLEAR = 0.5  # an expression below this is weak
_ENOUGH = 1.0  # no reward for a persona louder than its own system prompt
_TIE = 0.05  # expressions as close as this are equal
_MORE_REPETITION = 0.15  # share of repeated phrases that a fluent reply may have above a prompted one
_LEAST_EFFECT = 0.02  # nats per token; system prompts that do less leave nothing to express


@dataclass(frozen=True)
class Point:
    """One way of steering: a recipe's vectors, added at some layers, times a coefficient."""

    recipe: str
    layers: tuple[int, ...]
    coefficient: float


@dataclass(frozen=True)
class Measured:
    """What a point came to.

    Attributes:
        expression: 0 = unsteered, 1 = what the system prompt itself achieves.
        fluency_drop: nats per token that replies are less probable than prompted ones.
        repetition: share of phrases that repeat an earlier one, above that of prompted replies.
        loudness: size of what is added, as a share of the residual stream's, summed over the layers.
        questions: how many it was measured on.
    """

    point: Point
    expression: float
    fluency_drop: float
    repetition: float
    loudness: float
    questions: int

    def fluent(self, margin: float) -> bool:
        """Whether replies are as fluent as prompted ones, up to `margin` nats per token."""
        return self.fluency_drop <= margin and self.repetition <= _MORE_REPETITION

    def merit(self, margin: float) -> float:
        """The expression, less what fluency is missing; so that the best of bad points can be found, too."""
        missing = max(0.0, self.fluency_drop - margin) + max(0.0, self.repetition - _MORE_REPETITION)
        return min(self.expression, _ENOUGH) - 2 * missing

    def as_dict(self, margin: float, stage: str, chosen: bool) -> dict[str, Any]:
        """For the file."""
        return {
            "stage": stage,
            "recipe": self.point.recipe,
            "layers": list(self.point.layers),
            "coefficient": round(self.point.coefficient, 4),
            "expression": round(self.expression, 4),
            "fluency_drop": round(self.fluency_drop, 4),
            "repetition": round(self.repetition, 4),
            "questions": self.questions,
            "fluent": self.fluent(margin),
            "chosen": chosen,
        }


def calibrate(extractor: ActivationExtractor, persona: PersonaVector) -> Calibration:
    """Find recipe, layers and gain for a persona on the extractor's held-out questions.

    Everything is measured with the `safe` vectors, at the sampling settings of a chat, without capping. The
    same seed gives the same calibration.

    Args:
        extractor: with its questions; their progress and checkpoint are used.
        persona: its metadata must have its system prompts (`prompts`).

    Returns:
        The calibration with every point that was tried. When no point is both fluent and expressive, it is
        the best there is: see `weakness`.

    Raises:
        DatasetError: there are no questions or no system prompts.
    """
    trials = _trials(extractor, persona)
    tokens = extractor.settings.calibration.max_new_tokens
    margin = extractor.settings.calibration.fluency_margin
    first = coarse_points(persona, extractor.target_layers, extractor.model.n_layers)
    coarse = _Sweep(extractor, persona, trials[:COARSE_QUESTIONS], -(-tokens // 2)).measure(first)
    fine = _Sweep(extractor, persona, trials, tokens).measure(fine_points(coarse, margin))
    edge: list[Measured] = []
    if last := edge_points(fine, margin):
        edge = _Sweep(extractor, persona, _trials(extractor, persona, EDGE_SAMPLES), tokens).measure(last)
    chosen = choose(edge if any(each.fluent(margin) for each in edge) else [*fine, *edge], margin)
    stages = {"coarse": coarse, "fine": fine, "edge": edge}
    curve = [
        each.as_dict(margin, stage, chosen=each is chosen)
        for stage, points in stages.items()
        for each in points
    ]
    return Calibration(
        recipe=chosen.point.recipe,
        layers=chosen.point.layers,
        gain=chosen.point.coefficient / DEFAULT_STRENGTH,
        default_strength=DEFAULT_STRENGTH,
        expression=chosen.expression,
        fluency_drop=chosen.fluency_drop,
        curve=curve,
    )


def weakness(calibration: Calibration) -> str | None:
    """Why a calibrated persona may disappoint, in one line; None if it is clear and fluent."""
    chosen = next((point for point in calibration.curve if point["chosen"]), None)
    if chosen is not None and not chosen["fluent"]:
        return f"no loudness was fluent; this one costs {calibration.fluency_drop:.2f} nats per token"
    if calibration.expression < CLEAR:
        return f"it reaches only {calibration.expression:.0%} of what its system prompts achieve"
    return None


def response_count(extractor: ActivationExtractor) -> int:
    """How many responses one calibration takes, for progress."""
    places = len(candidate_places(extractor.layers, extractor.target_layers, extractor.model.n_layers))
    questions = len(extractor.held_out_questions)
    coarse = 2 + len(RECIPES) * places * COARSE_STEPS
    fine = 2 + FINALISTS * len(FINE_FACTORS)
    edge = EDGE_SAMPLES * (2 + EDGE_PLACES * len(EDGE_FACTORS))
    return coarse * min(COARSE_QUESTIONS, questions) + (fine + edge) * questions


# Which points -----------------------------------------------------------------------------------------------


def candidate_places(
    layers: Sequence[int], target_layers: Sequence[int], n_layers: int
) -> list[tuple[int, ...]]:
    """Where a vector may be added: single layers of the middle half, bands of it, the target layers.

    Bands begin with the half. What is added early has the more layers to be made into words.
    """
    middle = [layer for layer in layers if n_layers // 4 <= layer < max(1, round(n_layers * 0.75))] or list(
        layers
    )
    step = max(1, -(-len(middle) // MOST_SINGLE_LAYERS))
    places = [(layer,) for layer in middle[step // 2 :: step]]
    count = len(middle)
    bands = [tuple(middle[:end]) for end in (round(count / 2), round(count * 0.75), count)]
    bands.append(tuple(layer for layer in target_layers if layer in layers))
    return list(dict.fromkeys(place for place in [*places, *bands] if place))


def coarse_points(persona: PersonaVector, target_layers: Sequence[int], n_layers: int) -> list[Point]:
    """The first sweep: every recipe, every place, a few coefficients.

    What is added at one layer is still there at the next, so that bands need less per layer.
    """
    return [
        Point(recipe, layers, coefficient / len(layers) ** 0.5)
        for recipe in RECIPES
        for layers in candidate_places(persona.layers, target_layers, n_layers)
        for coefficient in coarse_coefficients(persona, recipe, layers)
    ]


def coarse_coefficients(persona: PersonaVector, recipe: str, layers: Sequence[int]) -> list[float]:
    """Coefficients in equal ratios, from well below what replies shift by themselves to well above.

    The last prompt token can shift many times as far as a reply's average token. Its vector is added to all
    of them, so that its sweep begins as quietly as that of the mean.
    """
    rows = [persona.layers.index(layer) for layer in layers]
    shift, own = (float(persona.raw[each][rows].norm(dim=-1).mean()) for each in ("response", recipe))
    low = QUIETEST * min(1.0, shift / own) if own > 0 else QUIETEST
    return [low * (LOUDEST / low) ** (step / (COARSE_STEPS - 1)) for step in range(COARSE_STEPS)]


def fine_points(coarse: Sequence[Measured], margin: float) -> list[Point]:
    """The second sweep: around where the loudness becomes too much, at the most expressive places.

    When no place has such a point, around the best of each.
    """
    edges = _edges(coarse, margin)
    for each in sorted(coarse, key=lambda each: (-each.merit(margin), each.loudness)):
        edges.setdefault(_place(each), each.point.coefficient)
    return [
        Point(*place, coefficient * factor)
        for place, coefficient in list(edges.items())[:FINALISTS]
        for factor in FINE_FACTORS
    ]


def edge_points(fine: Sequence[Measured], margin: float) -> list[Point]:
    """The last sweep: at the two places that are most expressive where the loudness becomes too much."""
    return [
        Point(*place, coefficient * factor)
        for place, coefficient in list(_edges(fine, margin).items())[:EDGE_PLACES]
        for factor in EDGE_FACTORS
    ]


def _place(measured: Measured) -> Place:
    return measured.point.recipe, measured.point.layers


def _edges(measured: Sequence[Measured], margin: float) -> dict[Place, float]:
    """Where each place's fluency has dropped by `EDGE` of the margin; the most expressive place first.

    It is read off a line through the place's points that never falls: a few replies more or less in
    character make single points go up and down. Places that cost that much everywhere, or nowhere, have none.
    """
    rows: dict[Place, list[Measured]] = {}
    for each in sorted(measured, key=lambda each: each.point.coefficient):
        rows.setdefault(_place(each), []).append(each)
    edges = {place: found for place, row in rows.items() if (found := _edge(row, EDGE * margin))}
    return {place: edges[place][0] for place in sorted(edges, key=lambda place: -edges[place][1])}


def _edge(row: Sequence[Measured], drop: float) -> tuple[float, float] | None:
    """At which coefficient of a place the fluency has dropped that much, and how expressive it is there."""
    drops = _rising([each.fluency_drop for each in row])
    expressions = _rising([min(each.expression, _ENOUGH) for each in row])
    for place, (low, high) in enumerate(pairwise(drops)):
        if low < drop <= high:
            way = (drop - low) / (high - low)
            first, second = row[place].point.coefficient, row[place + 1].point.coefficient
            expression = expressions[place] + way * (expressions[place + 1] - expressions[place])
            return first * (second / first) ** way, expression
    return None


def _rising(values: Sequence[float]) -> list[float]:
    """The nearest values, by least squares, that never fall."""
    from sklearn.isotonic import isotonic_regression

    return [float(each) for each in isotonic_regression(list(values))]


def choose(measured: Sequence[Measured], margin: float) -> Measured:
    """The most expressive fluent point; the quietest of those about as expressive. None fluent: the best."""
    fluent = [each for each in measured if each.fluent(margin)]
    pool = fluent or list(measured)
    best = max(each.merit(margin) for each in pool)
    return min((each for each in pool if each.merit(margin) >= best - _TIE), key=lambda each: each.loudness)


# Measuring --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Trial:
    """A held-out question, with and without one of the persona's system prompts."""

    bare: list[Message]
    prompted: list[Message]
    seed: int


@dataclass(frozen=True)
class _Reading:
    """One reply: log-probability per token with the system prompt, its ratio to that without, repetition."""

    logprob: float
    ratio: float
    repetition: float


class _Sweep:
    """Some held-out questions of one persona, the two ends of the scale, and what lies between."""

    def __init__(
        self,
        extractor: ActivationExtractor,
        persona: PersonaVector,
        trials: Sequence[_Trial],
        max_new_tokens: int,
    ) -> None:
        self.extractor = extractor
        self.persona = persona
        self.trials = trials
        generation = extractor.settings.generation
        self.sampling = Sampling(max_new_tokens, generation.temperature, generation.top_p)
        self.prompted = self._replies([Request(trial.prompted, trial.seed) for trial in trials], [None])
        self.plain = self._replies([Request(trial.bare, trial.seed) for trial in trials], [None])

    def measure(self, points: Sequence[Point]) -> list[Measured]:
        """Steer with every point on every question."""
        count = len(self.trials)
        requests = [Request(trial.bare, trial.seed) for _ in points for trial in self.trials]
        readings = self._replies(requests, points)
        return [
            self._measured(point, readings[place * count : (place + 1) * count])
            for place, point in enumerate(points)
        ]

    def _measured(self, point: Point, readings: Sequence[_Reading]) -> Measured:
        """Compare with both ends of the scale."""
        scale = _ratio(self.prompted) - _ratio(self.plain)
        gained = _ratio(readings) - _ratio(self.plain)
        return Measured(
            point,
            expression=gained / scale if scale >= _LEAST_EFFECT else 0.0,
            fluency_drop=_logprob(self.prompted) - _logprob(readings),
            repetition=_repetition(readings) - _repetition(self.prompted),
            loudness=self._loudness(point),
            questions=len(self.trials),
        )

    def _loudness(self, point: Point) -> float:
        baseline = self.persona.mean["response"] - self.persona.raw["response"]
        vectors = self.persona.safe[point.recipe]
        rows = [self.persona.layers.index(layer) for layer in point.layers]
        return point.coefficient * sum(float(vectors[row].norm() / baseline[row].norm()) for row in rows)

    def _replies(self, requests: Sequence[Request], points: Sequence[Point | None]) -> list[_Reading]:
        """Have the questions answered once for every point, steered by it, and read the replies."""
        count = len(self.trials)
        texts = self.extractor.texts(
            requests,
            note=f"calibrating {self.persona.name}",
            sampling=self.sampling,
            interventions=lambda batch: self._steering([points[row // count] for row in batch]),
            what=self._identity(points),
        )
        return self._read(texts)

    def _identity(self, points: Sequence[Point | None]) -> list[object]:
        """What replies depend on, apart from their requests."""
        if not any(points):
            return []
        ways = [
            None if point is None else [point.recipe, point.layers, point.coefficient] for point in points
        ]
        return [ways, list(self.persona.layers), *(self.persona.safe[recipe] for recipe in RECIPES)]

    def _steering(self, points: Sequence[Point | None]) -> Interventions:
        """Each row's own vectors: `[rows, hidden]` at every layer where any row is steered."""
        layers = sorted({layer for point in points if point is not None for layer in point.layers})
        return Interventions(
            steering={
                layer: torch.stack([self._vector(point, layer) for point in points]) for layer in layers
            }
        )

    def _vector(self, point: Point | None, layer: int) -> Tensor:
        if point is None or layer not in point.layers:
            return torch.zeros(self.persona.hidden_size)
        return point.coefficient * self.persona.safe[point.recipe][self.persona.layers.index(layer)]

    def _read(self, texts: Sequence[str]) -> list[_Reading]:
        """Score replies with and without the system prompt. Silence counts as the worst of repetitions."""
        spoken = [row for row, text in enumerate(texts) if text]
        trials = [self.trials[row % len(self.trials)] for row in spoken]
        pairs = [(trial.prompted, texts[row]) for trial, row in zip(trials, spoken, strict=True)]
        pairs += [(trial.bare, texts[row]) for trial, row in zip(trials, spoken, strict=True)]
        logprobs = self.extractor.scores(pairs)
        readings = [_Reading(0.0, 0.0, 1.0)] * len(texts)
        for place, row in enumerate(spoken):
            with_prompt, without = logprobs[place], logprobs[place + len(spoken)]
            readings[row] = _Reading(with_prompt, with_prompt - without, repetition(texts[row]))
        return readings


def _trials(extractor: ActivationExtractor, persona: PersonaVector, samples: int = 1) -> list[_Trial]:
    """Every held-out question, as often as wanted: each time with other system prompts and other luck."""
    prompts = persona.metadata.get("prompts") or ()
    questions = extractor.held_out_questions[: extractor.settings.calibration.questions]
    if not prompts:
        raise DatasetError(f'"{persona.name}" cannot be calibrated: its file has no system prompts')
    if not questions:
        raise DatasetError(
            "there are no questions to calibrate with; generate some: dataset generate questions"
        )
    seed = extractor.settings.calibration.seed
    return [
        _Trial(
            bare=conversation(question.question),
            prompted=conversation(question.question, prompts[(number + sample) % len(prompts)]),
            seed=item_seed(seed, "calibration", question.id, *([sample] if sample else [])),
        )
        for sample in range(samples)
        for number, question in enumerate(questions)
    ]


def repetition(text: str) -> float:
    """The share of a text's three-word phrases that repeat an earlier one: 0 = none, towards 1 = a loop."""
    words = text.casefold().split()
    phrases = list(zip(words, words[1:], words[2:], strict=False))
    return 1 - len(set(phrases)) / len(phrases) if phrases else 0.0


def _ratio(readings: Iterable[_Reading]) -> float:
    return fmean(reading.ratio for reading in readings)


def _logprob(readings: Iterable[_Reading]) -> float:
    return fmean(reading.logprob for reading in readings)


def _repetition(readings: Iterable[_Reading]) -> float:
    return fmean(reading.repetition for reading in readings)
