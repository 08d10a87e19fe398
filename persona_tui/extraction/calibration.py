"""How loud a persona has to be: which size makes it audible and keeps it fluent.

1. On held-out questions the model answers with the persona's system prompts. What a system prompt does is to
   make its own replies likely, so the first question is how much of that steering recovers:
   `(L_steered − L_plain) / (L_prompted − L_plain)`, with L the mean log-probability per token of those
   replies after the bare question, steered or not, and after the question with the system prompt. No reply
   is sampled for it: one forward pass for each size that is tried. Too much steering lowers it as well, so
   its maximum is a sane size by itself.
2. The model then answers the same questions at a few multiples of that size, with the floor and the guide
   that are in force by default. On straight lines through what they give, the size is read off at which the
   persona is clear and still fluent: that is strength 0.3. At one multiple it also answers without the floor,
   which shows what the floor takes.

The guide lets the size go to two or three times the maximum of the likelihood; without it, little more than
the maximum itself is fluent (`benchmarks/guide.py`). So a persona that is calibrated with the guide has a
second gain, for speaking without it: a fixed multiple of that maximum.

No judge is needed. Expression is the log-likelihood ratio of a reply with and without the persona's system
prompt, under the unsteered model; fluency is its log-likelihood with it. Both are means per token, in nats.
All vectors are added over one band of layers, the same for every persona.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise
from statistics import fmean, linear_regression
from typing import Any

import torch

from persona_tui.core.config import resolve_layers
from persona_tui.core.errors import DatasetError, VectorFileError
from persona_tui.extraction.axes import capping
from persona_tui.extraction.extractor import ActivationExtractor
from persona_tui.extraction.plan import item_seed, shuffled
from persona_tui.model import Cap, Interventions, Message, Request, Sampling, conversation
from persona_tui.vectors.persona import DEFAULT_DOSE, DEFAULT_STRENGTH, Calibration, PersonaVector, dose

RECIPE = "response"  # what is added to every token is the mean over tokens

# The first sizes that the search tries: shares of the default dose.
START = (0.25, 0.5, 1.0)
MOST_STEPS = 5  # how often the search goes on beyond either end
GUIDED = (2.0, 3.2)  # of the likeliest size, for the sweep with the guide
MULTIPLES = (1.0, 1.6)  # and for one without it
LOUDER = 1.4  # times the second size: the third, where that is not loud enough; else it lies between both
WITHOUT = 1.2  # of the likeliest size: what a persona that is calibrated with the guide gets without it
CONTRASTED = (0.5, 1.0, 1.6, 2.5)  # the same where loudness is all that is measured
UNGUIDED = (0.25, 0.5, 1.0, 2.0, 4.0)  # of the usual dose, where nothing says what size is right
CONTRAST_REPLIES = 16  # of each side
FEWEST_QUESTIONS = 6
COST_SHARE = 0.5  # of what the extraction cost, in tokens that pass through the model

CLEAR = 0.5  # an expression below this is weak
_ENOUGH = 0.9  # nearly what its system prompts achieve; a persona needs not be louder
_TIE = 0.02  # expressions as close as this are equal
_MORE_REPETITION = 0.05  # share of repeated phrases that a fluent reply may have above a prompted one
_LEAST_EFFECT = 0.02  # nats per token; system prompts that do less leave nothing to express
_READINGS = 25  # sizes between two measured ones at which the curve is read
_CANDIDATES = 5  # sizes that a search usually tries

# Bands that the search compares, in shares of the depth, beside the default one.
BANDS = ((0.25, 0.5), (0.25, 0.6), (0.3, 0.5), (0.35, 0.65), (0.4, 0.7), (0.25, 0.75))
_BAND_TIE = 0.01  # of what is recovered; the default band is left for more than this only


@dataclass(frozen=True)
class Point:
    """What a size gave in generated replies.

    Attributes:
        coefficient: how many times the vectors are added.
        expression: 0 = unsteered, 1 = what the system prompt itself achieves.
        fluency_drop: nats per token that replies are less probable than prompted ones.
        repetition: share of phrases that repeat an earlier one, above that of prompted replies.
    """

    coefficient: float
    expression: float
    fluency_drop: float
    repetition: float

    def fluent(self, margin: float) -> bool:
        """Whether replies are as fluent as prompted ones, up to `margin` nats per token."""
        return self.fluency_drop <= margin and self.repetition <= _MORE_REPETITION

    def merit(self, margin: float) -> float:
        """The expression, less what fluency is missing; so that the best of bad points can be found, too."""
        missing = max(0.0, self.fluency_drop - margin) + max(0.0, self.repetition - _MORE_REPETITION)
        return min(self.expression, _ENOUGH) - 2 * missing


def calibrate(
    extractor: ActivationExtractor, persona: PersonaVector, band: Sequence[int] | None = None
) -> Calibration:
    """Find a persona's gain on the extractor's held-out questions.

    Everything is measured with the `safe` vectors, at the sampling settings of a chat. The same seed gives
    the same calibration.

    Args:
        extractor: with its questions and, if there are any, the model's axes; its progress and checkpoint
            are used.
        persona: its metadata must have its system prompts (`prompts`).
        band: where the vectors are added; by default the extractor's band.

    Returns:
        The calibration with every point that was tried. When no point is both fluent and expressive, it is
        the best there is: see `weakness`.

    Raises:
        DatasetError: there are no questions or no system prompts.
        VectorFileError: the persona has no vectors in the band.
    """
    bench = Bench(extractor, persona, band)
    sizes = likeliest(bench.recovered, bench.coefficient(DEFAULT_DOSE))
    size = max(sizes, key=lambda each: sizes[each])
    margin, guide = extractor.settings.calibration.fluency_margin, extractor.settings.steering.plausibility
    quiet, loud = (size * multiple for multiple in (GUIDED if guide else MULTIPLES))
    points = bench.sweep([quiet, loud], guide)
    wanting = points[1].fluent(margin) and points[1].expression < _ENOUGH
    points += bench.sweep([loud * LOUDER if wanting else math.sqrt(quiet * loud)], guide)
    uncapped = bench.sweep([loud], guide, capped=False)[0] if bench.floor else None
    chosen = choose(fitted(points), margin)
    return Calibration(
        recipe=RECIPE,
        layers=bench.band,
        gain=chosen.coefficient / DEFAULT_STRENGTH,
        default_strength=DEFAULT_STRENGTH,
        expression=chosen.expression,
        fluency_drop=chosen.fluency_drop,
        curve=[
            *(bench.record(each, "sweep") for each in sorted(points, key=lambda each: each.coefficient)),
            bench.record(chosen, "fitted", chosen=True),
        ],
        recovered=round(sizes[size], 4),
        recovery=[(round(each, 5), round(sizes[each], 4)) for each in sorted(sizes)],
        floor=bench.floor_name,
        floor_leaves=_share(points[1], uncapped),
        questions=len(bench.trials),
        plausibility=guide,
        unguided_gain=size * WITHOUT / DEFAULT_STRENGTH if guide else None,
    )


def _share(capped: Point, uncapped: Point | None) -> float | None:
    """How much of the expression a floor leaves; None if there is no floor, or nothing to take from."""
    if uncapped is None or uncapped.expression < _TIE:
        return None
    return round(capped.expression / uncapped.expression, 4)


def weakness(calibration: Calibration) -> str | None:
    """Why a calibrated persona may disappoint, in one line; None if it is clear and fluent."""
    chosen = next((point for point in calibration.curve if point["chosen"]), None)
    if chosen is not None and not chosen["fluent"]:
        repeated = f" and repeats {chosen['repetition']:.0%} more" if chosen.get("repetition", 0) > 0 else ""
        return f"no gain was fluent; this one costs {calibration.fluency_drop:.2f} nats per token{repeated}"
    if calibration.expression < CLEAR:
        return f"it reaches only {calibration.expression:.0%} of what its system prompts achieve"
    return None


def fit_contrast(
    extractor: ActivationExtractor,
    vector: PersonaVector,
    high: Sequence[Sequence[Message]] = (),
    low: Sequence[Sequence[Message]] = (),
) -> PersonaVector:
    """Calibrate something that has no system prompts.

    Its size is the one that makes the replies of its high side likeliest against those of its low side; of
    the multiples of it, the loudest is taken whose replies are as fluent as the model's own. Without replies
    of two sides, the loudest such multiple of the usual dose is taken.

    Args:
        extractor: with its questions.
        vector: a trait, or an imported direction.
        high: conversations that end with a reply as the vector points.
        low: conversations that end with a reply of the opposite kind.

    Returns:
        The vector with `gain`, `target_layers` and `loudness` (what was found) in its metadata.

    Raises:
        DatasetError: there are no questions.
        VectorFileError: it has no vectors in the band.
    """
    bench = Bench(extractor, vector, prompted=False)
    margin = extractor.settings.calibration.fluency_margin
    sides = [_some(extractor, side) for side in (high, low)]
    gains: dict[float, float] = {}
    size, multiples = bench.coefficient(DEFAULT_DOSE), list(UNGUIDED)
    if all(sides):
        before = bench.contrast(sides, 0.0)
        gains = likeliest(lambda each: bench.contrast(sides, each) - before, size)
        size, multiples = max(gains, key=lambda each: gains[each]), list(CONTRASTED)
    points = between(bench.sweep([size * each for each in multiples]))
    first_bad = next((at for at, each in enumerate(points) if not each.fluent(margin)), len(points))
    chosen = points[max(0, first_bad - 1)]
    found = {
        "strength": DEFAULT_STRENGTH,
        "fluency_drop": round(chosen.fluency_drop, 4),
        "fluent": chosen.fluent(margin),
        "gained": round(gains[size], 4) if gains else None,
    }
    placed = {
        "gain": chosen.coefficient / DEFAULT_STRENGTH,
        "unguided_gain": None,  # the same
        "target_layers": list(bench.band),
    }
    return replace(vector, metadata={**vector.metadata, **placed, "loudness": found}, calibration=None)


def _some(extractor: ActivationExtractor, side: Sequence[Sequence[Message]]) -> list[Sequence[Message]]:
    return shuffled(list(side), extractor.settings.calibration.seed)[:CONTRAST_REPLIES]


# The search -------------------------------------------------------------------------------------------------


def likeliest(recovered: Callable[[float], float], start: float) -> dict[float, float]:
    """Try sizes until one recovers more than its neighbours, then the one between them that should be best.

    Args:
        recovered: what a size recovers.
        start: the size that the first ones are shares of.

    Returns:
        Every size that was tried, with what it recovers.
    """
    tried = {start * share: recovered(start * share) for share in START}
    for _ in range(MOST_STEPS):
        best = max(tried, key=lambda each: tried[each])
        if best not in (low := min(tried), high := max(tried)):
            break
        beyond = low / 2 if best == low else high * 2
        tried[beyond] = recovered(beyond)
    if (top := _vertex(tried)) is not None:
        tried[top] = recovered(top)
    return tried


def _vertex(tried: dict[float, float]) -> float | None:
    """Where the parabola through the best size and its neighbours has its top, over the size's logarithm."""
    sizes = sorted(tried)
    place = max(range(len(sizes)), key=lambda at: tried[sizes[at]])
    if not 0 < place < len(sizes) - 1:
        return None
    left, middle, right = (tried[sizes[at]] for at in (place - 1, place, place + 1))
    bend = left - 2 * middle + right
    if bend >= 0:
        return None
    step = math.log(sizes[place + 1] / sizes[place])
    return sizes[place] * math.exp(step * max(-0.5, min(0.5, (left - right) / (2 * bend))))


def between(points: Sequence[Point]) -> list[Point]:
    """The measured points, and what lies on straight lines between them."""
    found = list(points[:1])
    for first, second in pairwise(points):
        for step in range(1, _READINGS + 1):
            way = step / _READINGS
            found.append(
                Point(
                    first.coefficient * (second.coefficient / first.coefficient) ** way,
                    first.expression + way * (second.expression - first.expression),
                    first.fluency_drop + way * (second.fluency_drop - first.fluency_drop),
                    first.repetition + way * (second.repetition - first.repetition),
                )
            )
    return found


def fitted(points: Sequence[Point]) -> list[Point]:
    """What lies on the straight lines that fit the measured points best, over the size's logarithm.

    A dozen replies tell fluency to a tenth of a nat or two: a line through all sizes tells more than each.
    """
    sizes = [math.log(each.coefficient) for each in points]
    low, high = min(sizes), max(sizes)
    lines = [
        linear_regression(sizes, [getattr(each, name) for each in points])
        for name in ("expression", "fluency_drop", "repetition")
    ]
    steps = (low + (high - low) * step / _READINGS for step in range(_READINGS + 1))
    return [Point(math.exp(at), *(line.intercept + line.slope * at for line in lines)) for at in steps]


def choose(points: Sequence[Point], margin: float) -> Point:
    """The most expressive fluent point; the quietest of those about as expressive. None fluent: the best."""
    pool = [each for each in points if each.fluent(margin)] or list(points)
    best = max(each.merit(margin) for each in pool)
    return min(
        (each for each in pool if each.merit(margin) >= best - _TIE), key=lambda each: each.coefficient
    )


def bands(extractor: ActivationExtractor) -> list[tuple[int, ...]]:
    """The bands that a search compares, the extractor's own first."""
    depth = extractor.model.n_layers
    others = [
        tuple(layer for layer in range(round(depth * low), round(depth * high)) if layer in extractor.layers)
        for low, high in BANDS
    ]
    return list(dict.fromkeys([extractor.band, *(band for band in others if band)]))


def find_band(
    extractor: ActivationExtractor, personas: Sequence[PersonaVector]
) -> tuple[tuple[int, ...], dict[tuple[int, ...], float]]:
    """Find the band in which steering recovers most, on average over personas.

    Returns:
        The band, and what every band recovers at each persona's best size.

    Raises:
        DatasetError: there are no questions, or a persona has no system prompts.
    """
    table: dict[tuple[int, ...], list[float]] = {band: [] for band in bands(extractor)}
    for persona in personas:
        first = Bench(extractor, persona, extractor.band)
        for band, found in table.items():
            bench = first.in_band(band)
            found.append(max(likeliest(bench.recovered, bench.coefficient(DEFAULT_DOSE)).values()))
    means = {band: fmean(found) for band, found in table.items()}
    best = max(means, key=lambda band: means[band])
    if means[extractor.band] >= means[best] - _BAND_TIE:
        best = extractor.band
    return best, means


# Measuring --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class CalibrationQuestion:
    """A held-out question, with and without one of the persona's system prompts."""

    bare: list[Message]
    prompted: list[Message]
    seed: int


@dataclass(frozen=True)
class ReplyFigures:
    """One reply: log-probability per token with the system prompt, its ratio to that without, repetition."""

    logprob: float
    ratio: float
    repetition: float


class Bench:
    """Held-out questions of one persona, their prompted replies, and what steering makes of them."""

    def __init__(
        self,
        extractor: ActivationExtractor,
        persona: PersonaVector,
        band: Sequence[int] | None = None,
        *,
        prompted: bool = True,
    ) -> None:
        """
        Args:
            extractor: with its questions.
            persona: with its system prompts.
            band: where its vectors are added; by default the extractor's band.
            prompted: whether replies are compared with those under its system prompts; else with plain ones.
        """
        self.extractor = extractor
        self.persona = persona
        self.band = tuple(layer for layer in band or extractor.band if layer in persona.layers)
        if not self.band and persona.metadata.get("source") == "imported":
            self.band = persona.steering_layers
        if not self.band:
            raise VectorFileError(
                f'"{persona.name}" has no vectors where this model is steered: create it again'
            )
        self.trials = _trials(extractor, persona, persona.metadata.get("prompts") if prompted else [None])
        generation = extractor.settings.generation
        self.sampling = Sampling(reply_tokens(extractor), generation.temperature, generation.top_p)
        self.floor = _floor(extractor)

    def in_band(self, band: Sequence[int]) -> Bench:
        """The same questions and replies, steered elsewhere."""
        other = Bench(self.extractor, self.persona, band)
        other.__dict__["prompted"] = self.prompted
        return other

    @property
    def floor_name(self) -> str | None:
        """The axis of the floor that replies are measured with."""
        return _axis(self.extractor) if self.floor else None

    def coefficient(self, wanted: float) -> float:
        """How many times the vectors make a dose."""
        own = dose(self.persona, self.band, RECIPE)
        return wanted / own if own > 0 else 1.0

    @cached_property
    def prompted(self) -> tuple[list[tuple[int, str]], list[ReplyFigures]]:
        """The replies under the persona's system prompts, each with its trial, and their readings."""
        requests = [Request(trial.prompted, trial.seed) for trial in self.trials]
        texts = self._texts(requests, [Interventions.none()] * len(requests), [])
        return [(at, text) for at, text in enumerate(texts) if text], self._read(texts)

    @cached_property
    def plain(self) -> float:
        """Mean log-probability per token of the prompted replies after the bare questions."""
        spoken, readings = self.prompted
        return fmean(readings[at].logprob - readings[at].ratio for at, _ in spoken) if spoken else 0.0

    @cached_property
    def effect(self) -> float:
        """What the system prompts do to the likelihood of their own replies, nats per token."""
        spoken, readings = self.prompted
        return fmean(readings[at].ratio for at, _ in spoken) if spoken else 0.0

    def recovered(self, coefficient: float) -> float:
        """How much of the system prompts' effect steering recovers (teacher-forced); can be below 0."""
        spoken, _ = self.prompted
        if not spoken or self.effect < _LEAST_EFFECT:
            return 0.0
        pairs = [(self.trials[at].bare, text) for at, text in spoken]
        way = Interventions(self._steering(coefficient))
        steered = self.extractor.scores(
            pairs, f"{self.persona.name}: size", way, [*self._vectors(), coefficient]
        )
        return (fmean(steered) - self.plain) / self.effect

    def contrast(self, sides: Sequence[Sequence[Sequence[Message]]], coefficient: float) -> float:
        """How much likelier the first side's replies are than the second's, nats per token."""
        pairs = [[(list(each[:-1]), each[-1]["content"]) for each in side] for side in sides]
        way = Interventions(self._steering(coefficient) if coefficient else {})
        scores = [
            fmean(self.extractor.scores(each, self.persona.name, way, [*self._vectors(), coefficient]))
            for each in pairs
        ]
        return scores[0] - scores[1]

    def sweep(
        self, coefficients: Sequence[float], plausibility: float = 0.0, *, capped: bool = True
    ) -> list[Point]:
        """Answer every question at every size, with the guide at `plausibility` (0 = without one)."""
        floor = self.floor if capped else {}
        ways = [Interventions(self._steering(each), floor, plausibility) for each in coefficients]
        requests = [Request(trial.bare, trial.seed) for _ in ways for trial in self.trials]
        count = len(self.trials)
        caps = [[layer, cap.floor, cap.axis] for layer, cap in sorted(floor.items())]
        what = [*self._vectors(), [*coefficients, plausibility], *(part for cap in caps for part in cap)]
        texts = self._texts(requests, [way for way in ways for _ in range(count)], what)
        readings = self._read(texts)
        return [
            self._point(coefficient, readings[at * count : (at + 1) * count])
            for at, coefficient in enumerate(coefficients)
        ]

    def record(self, point: Point, stage: str, chosen: bool = False) -> dict[str, Any]:
        """A point for the file."""
        return {
            "stage": stage,
            "recipe": RECIPE,
            "layers": list(self.band),
            "coefficient": round(point.coefficient, 5),
            "expression": round(point.expression, 4),
            "fluency_drop": round(point.fluency_drop, 4),
            "repetition": round(point.repetition, 4),
            "questions": len(self.trials),
            "fluent": point.fluent(self.extractor.settings.calibration.fluency_margin),
            "chosen": chosen,
        }

    def _point(self, coefficient: float, readings: Sequence[ReplyFigures]) -> Point:
        """Compare with both ends of the scale: what the model says unprompted has the ratio `nothing`."""
        _, prompted = self.prompted
        top, nothing = _mean(each.ratio for each in prompted), self._unsteered
        return Point(
            coefficient,
            (_mean(each.ratio for each in readings) - nothing) / (top - nothing)
            if top - nothing >= _LEAST_EFFECT
            else 0.0,
            _mean(each.logprob for each in prompted) - _mean(each.logprob for each in readings),
            _mean(each.repetition for each in readings) - _mean(each.repetition for each in prompted),
        )

    @cached_property
    def _unsteered(self) -> float:
        """The mean likelihood ratio of replies without a system prompt and without steering."""
        requests = [Request(trial.bare, trial.seed) for trial in self.trials]
        return _mean(
            each.ratio
            for each in self._read(self._texts(requests, [Interventions.none()] * len(requests), []))
        )

    def _steering(self, coefficient: float) -> dict[int, torch.Tensor]:
        stack = self.persona.safe[RECIPE]
        return {layer: coefficient * stack[self.persona.layers.index(layer)] for layer in self.band}

    def _vectors(self) -> list[object]:
        """What tells this persona's vectors from others."""
        return [list(self.band), list(self.persona.layers), self.persona.safe[RECIPE]]

    def _texts(
        self, requests: Sequence[Request], ways: Sequence[Interventions], what: Sequence[object]
    ) -> list[str]:
        return self.extractor.texts(
            requests,
            note=f"{self.persona.name}: calibration",
            sampling=self.sampling,
            interventions=lambda rows: Interventions.by_row([ways[row] for row in rows]),
            what=what,
            twins=[bool(way.plausibility) for way in ways],
        )

    def _read(self, texts: Sequence[str]) -> list[ReplyFigures]:
        """Score replies with and without the system prompt. Silence counts as the worst of repetitions."""
        spoken = [row for row, text in enumerate(texts) if text]
        trials = [self.trials[row % len(self.trials)] for row in spoken]
        pairs = [(trial.prompted, texts[row]) for trial, row in zip(trials, spoken, strict=True)]
        pairs += [(trial.bare, texts[row]) for trial, row in zip(trials, spoken, strict=True)]
        logprobs = self.extractor.scores(pairs, f"{self.persona.name}: calibration")
        readings = [ReplyFigures(0.0, 0.0, 1.0)] * len(texts)
        for place, row in enumerate(spoken):
            with_prompt, without = logprobs[place], logprobs[place + len(spoken)]
            readings[row] = ReplyFigures(with_prompt, with_prompt - without, repetition(texts[row]))
        return readings


def _axis(extractor: ActivationExtractor) -> str | None:
    """The axis of the floor that is in force by default; None if there is none."""
    axes, steering = extractor.axes, extractor.settings.steering
    if axes is None or not steering.capping:
        return None
    return axes.default_capping_axis if steering.capping_axis == "auto" else steering.capping_axis


def _floor(extractor: ActivationExtractor) -> dict[int, Cap]:
    """The floor that is in force by default, by layer."""
    axes, name = extractor.axes, _axis(extractor)
    if axes is None or name is None:
        return {}
    layers = resolve_layers(extractor.settings, extractor.model.n_layers).capping
    return capping(axes, name, layers, extractor.settings.steering.safety_floor_percentile)


def _trials(
    extractor: ActivationExtractor, persona: PersonaVector, prompts: Sequence[str | None] | None
) -> list[CalibrationQuestion]:
    """The held-out questions, each with one of the system prompts in turn."""
    if not prompts:
        raise DatasetError(f'"{persona.name}" cannot be calibrated: its file has no system prompts')
    if not extractor.held_out_questions:
        raise DatasetError(
            "there are no questions to calibrate with; generate some: dataset generate questions"
        )
    passed = int(persona.metadata.get("counts", {}).get("passed", 0)) or None
    texts = [prompt or "" for prompt in prompts]
    questions = extractor.held_out_questions[: question_count(extractor, texts, passed)]
    seed = extractor.settings.calibration.seed
    return [
        CalibrationQuestion(
            bare=conversation(question.question),
            prompted=conversation(question.question, prompts[number % len(prompts)]),
            seed=item_seed(seed, "calibration", question.id),
        )
        for number, question in enumerate(questions)
    ]


# What it costs ----------------------------------------------------------------------------------------------


def reply_tokens(extractor: ActivationExtractor) -> int:
    """The longest reply of a calibration; never longer than those of the extraction."""
    settings = extractor.settings
    return min(settings.calibration.max_new_tokens, settings.extraction.max_new_tokens)


def question_count(extractor: ActivationExtractor, prompts: Sequence[str], passed: int | None) -> int:
    """How many held-out questions a calibration may ask, given what the extraction cost.

    Args:
        extractor: with its questions.
        prompts: the persona's system prompts.
        passed: tokens that passed through the model in the extraction; None = not known.
    """
    most = min(len(extractor.held_out_questions), extractor.settings.calibration.questions)
    if passed is None:
        return most
    read, written = question_cost(extractor, prompts)
    return min(most, max(FEWEST_QUESTIONS, int(passed * COST_SHARE / max(1, read + written))))


def question_cost(extractor: ActivationExtractor, prompts: Sequence[str]) -> tuple[int, int]:
    """What one held-out question costs in a calibration: tokens read, and tokens written."""
    questions = extractor.held_out_questions[:4]
    if not questions or not prompts:
        return 0, 0
    count = extractor.model.count_tokens
    bare = fmean(count(conversation(each.question)) for each in questions)
    prompted = fmean(
        count(conversation(each.question, prompts[at % len(prompts)])) for at, each in enumerate(questions)
    )
    reply = reply_tokens(extractor)
    sampled = 4 if _axis(extractor) else 3  # at three sizes, and once without the floor
    rows = sampled * (2 if extractor.settings.steering.plausibility else 1) + 1  # twins; and once unsteered
    scored = sampled + 2
    read = prompted + bare * rows + (prompted + bare + 2 * reply) * scored + (bare + reply) * _CANDIDATES
    return round(read), (rows + 1) * reply


def repetition(text: str) -> float:
    """The share of a text's three-word phrases that repeat an earlier one: 0 = none, towards 1 = a loop."""
    words = text.casefold().split()
    phrases = list(zip(words, words[1:], words[2:], strict=False))
    return 1 - len(set(phrases)) / len(phrases) if phrases else 0.0


def _mean(values: Iterable[float]) -> float:
    found = list(values)
    return fmean(found) if found else 0.0


def calibrated(
    extractor: ActivationExtractor, persona: PersonaVector, band: Sequence[int] | None = None
) -> PersonaVector:
    """The persona with its calibration; its metadata say whether that is `weak`, and why."""
    calibration = calibrate(extractor, persona, band)
    reason = weakness(calibration)
    metadata = {key: value for key, value in persona.metadata.items() if key != "pending"}
    metadata |= {"weak": reason is not None, "weak_reason": reason}
    return replace(persona, metadata=metadata, calibration=calibration)
