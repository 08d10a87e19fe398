"""`Bench`: held-out questions, their prompted replies, and what steering makes of them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from statistics import fmean
from typing import Any

import torch

from persona_tui.core.config import resolve_layers
from persona_tui.core.errors import DatasetError, VectorFileError
from persona_tui.extraction.distil import LESSONS, Course, distil_work
from persona_tui.extraction.extractor import ActivationExtractor
from persona_tui.extraction.runner import Work, item_seed
from persona_tui.extraction.sizes import Point
from persona_tui.model import Cap, Interventions, Message, Request, Sampling, conversation
from persona_tui.vectors.persona import PersonaVector, dose

RECIPE = "response"  # what is added to every token is the mean over tokens

FEWEST_QUESTIONS = 6
SIZED = 6  # replies that sizes are compared on: all sizes read the same ones, so that few tell them apart
COST_SHARE = 0.5  # of what the extraction cost, in tokens that pass through the model
_LEAST_EFFECT = 0.02  # nats per token; system prompts that do less leave nothing to express
_CANDIDATES = 5  # sizes that a search usually tries
_FITTED_CANDIDATES = 1  # and those that distilled vectors are tried at


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
        recipe: str = RECIPE,
        sized: int | None = SIZED,
    ) -> None:
        """
        Args:
            extractor: with its questions.
            persona: with its system prompts.
            band: where its vectors are added; by default the extractor's band.
            prompted: whether replies are compared with those under its system prompts; else with plain ones.
            recipe: which of its vectors are added.
            sized: on how many of the replies sizes are compared; None = on all.
        """
        self.recipe = recipe
        self._sized = sized
        self._contrasted = prompted
        # The mean likelihood ratio of replies without a system prompt and without steering, once it is known.
        self._unsteered = None if prompted else 0.0
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
        """Return the same questions and replies, steered elsewhere."""
        return self._beside(self.persona, band, self.recipe)

    @property
    def course(self) -> Course:
        """What its persona is distilled with."""
        extractor = self.extractor
        return Course(extractor, self.persona, self.band, extractor.questions, extractor.axes)

    def with_vectors(self, persona: PersonaVector, recipe: str) -> Bench:
        """Return the same questions and replies, steered with other vectors of the persona."""
        return self._beside(persona, self.band, recipe)

    def _beside(self, persona: PersonaVector, band: Sequence[int], recipe: str) -> Bench:
        other = Bench(self.extractor, persona, band, recipe=recipe, sized=self._sized)
        other.__dict__["prompted"] = self.prompted
        other._unsteered = self._unsteered
        return other

    @property
    def floor_name(self) -> str | None:
        """The axis of the floor that replies are measured with."""
        return _axis(self.extractor) if self.floor else None

    def coefficient(self, wanted: float) -> float:
        """Return how many times the vectors make a dose."""
        own = dose(self.persona, self.band, self.recipe)
        return wanted / own if own > 0 else 1.0

    @cached_property
    def prompted(self) -> tuple[list[tuple[int, str]], list[ReplyFigures]]:
        """The replies under the persona's system prompts, each with its trial, and their readings."""
        requests = [Request(trial.prompted, trial.seed) for trial in self.trials]
        texts = self._texts(requests, [Interventions.none()] * len(requests), [])
        return [(at, text) for at, text in enumerate(texts) if text], self._read(texts)

    @property
    def _compared(self) -> tuple[list[tuple[int, str]], list[ReplyFigures]]:
        """The prompted replies that sizes are compared on, each with its trial, and their readings."""
        spoken, readings = self.prompted
        some = spoken[: self._sized]
        return some, [readings[at] for at, _ in some]

    @cached_property
    def plain(self) -> float:
        """Mean log-probability per token of the replies that are compared, after the bare questions."""
        return _mean(each.logprob - each.ratio for each in self._compared[1])

    @cached_property
    def effect(self) -> float:
        """What the system prompts do to the likelihood of those replies, nats per token."""
        return _mean(each.ratio for each in self._compared[1])

    def recovered(self, coefficients: Sequence[float]) -> list[float]:
        """Return how much of the prompts' effect steering recovers (teacher-forced) by size; can be < 0."""
        spoken, _ = self._compared
        if not spoken or self.effect < _LEAST_EFFECT:
            return [0.0] * len(coefficients)
        pairs = [(self.trials[at].bare, text) for at, text in spoken]
        ways = [Interventions(self._steering(each)) for each in coefficients for _ in pairs]
        steered = self.extractor.scores(
            pairs * len(coefficients),
            f"{self.persona.name}: size",
            Interventions.by_row(ways),
            [*self._vectors(), *coefficients],
        )
        found = [fmean(steered[at : at + len(pairs)]) for at in range(0, len(steered), len(pairs))]
        return [(each - self.plain) / self.effect for each in found]

    def contrast(self, sides: Sequence[Sequence[Sequence[Message]]], coefficient: float) -> float:
        """Return how much likelier the first side's replies are than the second's, nats per token."""
        pairs = [[(list(each[:-1]), each[-1]["content"]) for each in side] for side in sides]
        way = Interventions(self._steering(coefficient) if coefficient else {})
        scores = [
            fmean(self.extractor.scores(each, self.persona.name, way, [*self._vectors(), coefficient]))
            for each in pairs
        ]
        return scores[0] - scores[1]

    def sweep(
        self,
        coefficients: Sequence[float],
        plausibility: float = 0.0,
        *,
        capped: bool = True,
        uncapped: Sequence[float] = (),
    ) -> list[Point]:
        """Answer every question at every size; all at once, as many replies take little longer than few.

        Args:
            coefficients: the sizes.
            plausibility: the guide; 0 = without one.
            capped: whether the floor is in force.
            uncapped: sizes at which it is not; their points come last.
        """
        floor = self.floor if capped else {}
        sizes = [*coefficients, *uncapped]
        floors = [floor] * len(coefficients) + [{}] * len(uncapped)
        ways = [
            Interventions(self._steering(size), own, plausibility)
            for size, own in zip(sizes, floors, strict=True)
        ]
        ways += [Interventions.none()] * (self._unsteered is None)
        requests = [Request(trial.bare, trial.seed) for _ in ways for trial in self.trials]
        count = len(self.trials)
        caps = [[layer, cap.floor, cap.axis] for layer, cap in sorted(floor.items())]
        numbers = [*sizes, len(uncapped), plausibility]
        what = [*self._vectors(), numbers, *(part for cap in caps for part in cap)]
        texts = self._texts(requests, [way for way in ways for _ in range(count)], what)
        readings = self._read(texts)
        if self._unsteered is None:
            self._unsteered = _mean(each.ratio for each in readings[len(sizes) * count :])
        return [self._point(size, readings[at * count : (at + 1) * count]) for at, size in enumerate(sizes)]

    def record(self, point: Point, stage: str, chosen: bool = False) -> dict[str, Any]:
        """Return a point for the file."""
        return {
            "stage": stage,
            "recipe": self.recipe,
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
        top, nothing = _mean(each.ratio for each in prompted), self._unsteered or 0.0
        return Point(
            coefficient,
            (_mean(each.ratio for each in readings) - nothing) / (top - nothing)
            if top - nothing >= _LEAST_EFFECT
            else 0.0,
            _mean(each.logprob for each in prompted) - _mean(each.logprob for each in readings),
            _mean(each.repetition for each in readings) - _mean(each.repetition for each in prompted),
        )

    def _steering(self, coefficient: float) -> dict[int, torch.Tensor]:
        stack = self.persona.safe[self.recipe]
        return {layer: coefficient * stack[self.persona.layers.index(layer)] for layer in self.band}

    def _vectors(self) -> list[object]:
        """Return what tells this persona's vectors from others."""
        return [list(self.band), list(self.persona.layers), self.persona.safe[self.recipe]]

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
        if self._contrasted:
            pairs += [(trial.bare, texts[row]) for trial, row in zip(trials, spoken, strict=True)]
        logprobs = self.extractor.scores(pairs, f"{self.persona.name}: calibration")
        readings = [ReplyFigures(0.0, 0.0, 1.0)] * len(texts)
        for place, row in enumerate(spoken):
            with_prompt, without = logprobs[place], logprobs[place - len(spoken)]  # counted from the end
            readings[row] = ReplyFigures(with_prompt, with_prompt - without, repetition(texts[row]))
        return readings


def _axis(extractor: ActivationExtractor) -> str | None:
    """Return the axis of the floor that is in force by default; None if there is none."""
    axes, steering = extractor.axes, extractor.settings.steering
    if axes is None or not steering.capping:
        return None
    return axes.default_capping_axis if steering.capping_axis == "auto" else steering.capping_axis


def _floor(extractor: ActivationExtractor) -> dict[int, Cap]:
    """Return the floor that is in force by default, by layer."""
    axes, name = extractor.axes, _axis(extractor)
    if axes is None or name is None:
        return {}
    layers = resolve_layers(extractor.settings, extractor.model.n_layers).capping
    floors = axes.floors(name, layers, extractor.settings.steering.safety_floor_percentile)
    return {layer: Cap(*floor) for layer, floor in floors.items()}


def _trials(
    extractor: ActivationExtractor, persona: PersonaVector, prompts: Sequence[str | None] | None
) -> list[CalibrationQuestion]:
    """Return the held-out questions, each with one of the system prompts in turn."""
    if not prompts:
        raise DatasetError(f'"{persona.name}" cannot be calibrated: its file has no system prompts')
    if not extractor.held_out_questions:
        raise DatasetError(
            "there are no questions to calibrate with; generate some: dataset generate questions"
        )
    texts = [prompt or "" for prompt in prompts]
    count, _ = calibration_plan(extractor, texts, persona.metadata.get("counts", {}))
    questions = extractor.held_out_questions[:count]
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
    """Return the longest reply of a calibration; never longer than those of the extraction."""
    settings = extractor.settings
    return min(settings.calibration.max_new_tokens, settings.extraction.max_new_tokens)


def calibration_plan(
    extractor: ActivationExtractor, prompts: Sequence[str], counts: Mapping[str, int]
) -> tuple[int, Work]:
    """Return how many held-out questions a calibration asks, a share of the extraction, and its work.

    Args:
        extractor: with its questions.
        prompts: the persona's system prompts.
        counts: of its extraction: `passed`, tokens that passed through the model, and `responses`. Without
            these, as many questions are asked as the settings allow.
    """
    most = min(len(extractor.held_out_questions), extractor.settings.calibration.questions)
    lessons = distil_work(
        extractor, extractor.questions, prompts, counts.get("responses", LESSONS), extractor.band
    )
    before, each = lessons + _size_work(extractor, bool(lessons.tokens)), question_work(extractor, prompts)
    passed = counts.get("passed", 0)
    if passed:
        affordable = int((passed * COST_SHARE - before.tokens) / max(1, each.tokens))
        most = min(most, max(FEWEST_QUESTIONS, affordable))
    return most, before + each * most


def question_work(extractor: ActivationExtractor, prompts: Sequence[str]) -> Work:
    """Return what one held-out question costs in a calibration, beside the comparison of sizes."""
    questions = extractor.held_out_questions[:4]
    if not questions or not prompts:
        return Work()
    count = extractor.model.count_tokens
    bare = fmean(count(conversation(each.question)) for each in questions)
    prompted = fmean(
        count(conversation(each.question, prompts[at % len(prompts)])) for at, each in enumerate(questions)
    )
    reply = reply_tokens(extractor)
    sampled = 4 if _axis(extractor) else 3  # at three sizes, and once without the floor
    rows = sampled * (2 if extractor.settings.steering.plausibility else 1) + 1  # twins; and once unsteered
    scored = sampled + 2
    read = prompted + bare * rows + (prompted + bare + 2 * reply) * scored
    return Work(round(read), (rows + 1) * reply)


def _size_work(extractor: ActivationExtractor, distils: bool) -> Work:
    """Return what it costs to compare sizes."""
    questions = extractor.held_out_questions[:SIZED]
    count, reply = extractor.model.count_tokens, reply_tokens(extractor)
    read = sum(count(conversation(each.question)) + reply for each in questions)
    return Work(read * (_CANDIDATES + (_FITTED_CANDIDATES if distils else 0)))


def repetition(text: str) -> float:
    """Return the share of a text's three-word phrases that repeat an earlier one: towards 1 = a loop."""
    words = text.casefold().split()
    phrases = list(zip(words, words[1:], words[2:], strict=False))
    return 1 - len(set(phrases)) / len(phrases) if phrases else 0.0


def _mean(values: Iterable[float]) -> float:
    found = list(values)
    return fmean(found) if found else 0.0
