"""The distilled recipe: vectors that are fitted to do what the persona's system prompts do.

A mean difference says which way replies under a system prompt lie; added to every token, it is a rough
likeness of what the prompt does to the next one. Distilling starts from it and fits the vectors of the band
by gradient descent (`model/distil.py`): on replies to a few extraction questions that were written under the
system prompts, then on replies that the model wrote with the vectors so far, to correct where these lead. The
mean difference stays in the file; everything that measures goes on with it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from persona_tui.core.config import Settings
from persona_tui.datasets.schema import Question
from persona_tui.extraction.checkpoints import Tally
from persona_tui.extraction.runner import BatchRunner, Work, item_seed, shuffled
from persona_tui.model import Interventions, Message, Request, Sampling, conversation
from persona_tui.model.distil import Distillation
from persona_tui.vectors.axes import Axes
from persona_tui.vectors.files import DISTILLED, RECIPE
from persona_tui.vectors.persona import PersonaVector

LESSONS = 12  # replies of each kind, at most: never more than the extraction had
LESSON_TOKENS = 64  # of a reply; what a persona is shows early
RATES = (0.3,)  # how far a step goes, pass by pass: see `Distillation.improved`
OWN_RATES = (0.15,)  # the same of passes over replies that are written with the vectors so far
# How far the teacher goes. Vectors recover about half of what a teacher does; fitted to one that goes further
# than the system prompts, they speak more clearly and more fluently than fitted to the plain one and doubled.
EMPHASIS = 2.5
# How much more than the model itself the teacher is led by the question, from which loud vectors wander.
FOCUS = 0.7

Lessons = Sequence[tuple[list[Message], list[Message], str]]


@dataclass(frozen=True)
class Course:
    """What a persona's vectors are fitted with.

    Attributes:
        runner: whose model learns; its settings, progress and checkpoint are used.
        persona: with its system prompts.
        band: where its vectors are added.
        questions: to write replies to; not those that a calibration holds out.
        axes: whose safety axis the vectors stay orthogonal to; None = there are none.
    """

    runner: BatchRunner
    persona: PersonaVector
    band: Sequence[int]
    questions: Sequence[Question]
    axes: Axes | None

    @property
    def seed(self) -> int:
        """The seed of everything that is drawn."""
        return self.runner.settings.calibration.seed

    @property
    def without(self) -> dict[int, Tensor]:
        """By layer of the band, the safety axis."""
        if self.axes is None:
            return {}
        known = [layer for layer in self.band if layer in self.axes.layers]
        return {layer: self.axes.safety[RECIPE][self.axes.layers.index(layer)] for layer in known}


def distilled(course: Course, size: float, emphasis: float = EMPHASIS, focus: float = FOCUS) -> PersonaVector:
    """Fit a persona's vectors to what its system prompts do.

    Args:
        course: the persona, and what it is fitted with.
        size: how many times the mean difference is added where it recovers most: where fitting begins.
        emphasis: how many times as far as the system prompts the teacher goes.
        focus: how much more than the model itself the teacher is led by the question.

    Returns:
        The persona with vectors of the recipe `distilled`, in units of which about 1 is right for a chat;
        what makes the prompted replies likeliest is less (`EMPHASIS`). Beside the band they are the mean
        difference.

    Raises:
        GenerationError: the model computes no gradients, or memory ran out.
    """
    persona = course.persona
    rows = [persona.layers.index(layer) for layer in course.band]
    model, lessons = course.runner.model, _lessons(course)
    stack = size * persona.safe[RECIPE]
    if lessons:
        teaching, fitted = model.distillation(lessons, emphasis, focus), stack[rows]
        for number, rate in enumerate(RATES):
            fitted = _improved(course, teaching, lessons, fitted, number, rate)
        for number, rate in enumerate(OWN_RATES):
            own = _own_lessons(course, fitted, number)
            teaching = model.distillation(own, emphasis, focus, own=True)
            fitted = _improved(course, teaching, own, fitted, number, rate)
        stack[rows] = fitted
    baseline = persona.mean[RECIPE] - persona.raw[RECIPE]
    return replace(
        persona,
        mean={**persona.mean, DISTILLED: baseline + stack},
        raw={**persona.raw, DISTILLED: stack},
        safe={**persona.safe, DISTILLED: stack.clone()},
        calibration=None,
    )


def undistilled(persona: PersonaVector) -> PersonaVector:
    """Return the persona as it was extracted: without what an earlier calibration made."""
    mean, raw, safe = (
        {recipe: stack for recipe, stack in each.items() if recipe != DISTILLED}
        for each in (persona.mean, persona.raw, persona.safe)
    )
    return replace(persona, mean=mean, raw=raw, safe=safe, calibration=None)


def _improved(
    course: Course, teaching: Distillation, lessons: Lessons, vectors: Tensor, number: int, rate: float
) -> Tensor:
    """Pass over the lessons once; what an interrupted job has finished of it is not done again."""
    if not lessons:
        return vectors
    runner, without = course.runner, course.without
    seed = item_seed(course.seed, "distil", teaching.own, number)
    setup = ["distil", list(course.band), rate, seed, teaching.emphasis, teaching.focus, teaching.own]
    what = [*setup, list(runner.model.identity), list(lessons), vectors]
    stage = runner.partial.stage([*what, *without.values()])
    count = runner.model.count_tokens
    replies = len(lessons) * lesson_tokens(runner.settings)
    bare = sum(count(each) for _, each, _ in lessons) + replies
    above = _above(course.band, runner.model.n_layers)
    cost = round(2 * bare * above)
    if number == 0 or teaching.own:  # the teacher's
        cost += bare + sum(count(each) for each, _, _ in lessons) + replies
        cost += bare if teaching.focus else 0

    def step(done: int) -> None:
        runner.passed(done * cost // len(lessons), f"{course.persona.name}: distilling")

    def improve(items: Sequence[int]) -> Tally:
        start = dict(zip(course.band, vectors, strict=True))
        found, _ = teaching.improved(start, rate, seed, without, step)
        return Tally(
            frozenset(items), rows={0: torch.stack([found[layer] for layer in course.band]).flatten()}
        )

    return stage.finish(1, 1, improve).rows[0].reshape(vectors.shape)


def _lessons(course: Course) -> Lessons:
    """Write replies under the system prompts, each with both conversations it can answer."""
    taught, bare, ids = _asked(course)
    requests = [
        Request(asked, item_seed(course.seed, "lesson", each))
        for asked, each in zip(taught, ids, strict=True)
    ]
    extraction = course.runner.settings.extraction
    sampling = Sampling(lesson_tokens(course.runner.settings), extraction.temperature, extraction.top_p)
    texts = course.runner.texts(requests, f"{course.persona.name}: replies to learn from", sampling)
    return _answered(taught, bare, texts)


def _own_lessons(course: Course, vectors: Tensor, number: int) -> Lessons:
    """Write replies with the vectors, at temperature 1: as probable as the model finds them."""
    taught, bare, ids = _asked(course, number + 1)
    requests = [
        Request(asked, item_seed(course.seed, "own lesson", number, each))
        for asked, each in zip(bare, ids, strict=True)
    ]
    way = Interventions(dict(zip(course.band, vectors, strict=True)))
    texts = course.runner.texts(
        requests,
        f"{course.persona.name}: replies of its own",
        Sampling(lesson_tokens(course.runner.settings), 1.0, 1.0),
        lambda rows: way,
        [list(course.band), vectors],
    )
    return _answered(taught, bare, texts)


def _asked(course: Course, turn: int = 0) -> tuple[list[list[Message]], list[list[Message]], list[str]]:
    """Return the questions of lessons, with and without a system prompt, and their names.

    Every turn has others, as far as there are enough.
    """
    prompts = [str(each) for each in course.persona.metadata["prompts"]]
    responses = int(course.persona.metadata.get("counts", {}).get("responses", LESSONS))
    count, order = min(LESSONS, responses, len(course.questions)), shuffled(course.questions, course.seed)
    questions = [order[(at + turn * count) % len(order)] for at in range(count)]
    taught = [conversation(each.question, prompts[at % len(prompts)]) for at, each in enumerate(questions)]
    return taught, [conversation(each.question) for each in questions], [each.id for each in questions]


def _answered(
    taught: Sequence[list[Message]], bare: Sequence[list[Message]], texts: Sequence[str]
) -> Lessons:
    """Return the lessons of the replies that are not empty."""
    return [each for each in zip(taught, bare, texts, strict=True) if each[2]]


def lesson_tokens(settings: Settings) -> int:
    """Return the longest reply that is learned from; never longer than those of the extraction."""
    return min(LESSON_TOKENS, settings.extraction.max_new_tokens)


def _above(band: Sequence[int], layers: int) -> float:
    """Return the share of a model's layers that comes after the first one of a band."""
    return 1 - (min(band) + 1) / layers


def distil_work(
    runner: BatchRunner,
    questions: Sequence[Question],
    prompts: Sequence[str],
    responses: int,
    band: Sequence[int],
) -> Work:
    """Return the work of distilling a persona with such prompts and so many responses in its extraction."""
    wanted = runner.settings.calibration.distil and runner.model.learns
    asked = questions[: min(LESSONS, responses)] if wanted else []
    if not asked or not prompts or not band:
        return Work()
    count, most = runner.model.count_tokens, lesson_tokens(runner.settings)
    bare = sum(count(conversation(each.question)) for each in asked)
    taught = sum(
        count(conversation(each.question, prompts[at % len(prompts)])) for at, each in enumerate(asked)
    )
    reply, above = len(asked) * most, _above(band, runner.model.n_layers)
    with_prompt, without = taught + reply, bare + reply  # read whole, all lessons of one kind
    kinds = 1 + len(OWN_RATES)  # the given lessons serve all of their passes
    steps = 2 * (len(RATES) + len(OWN_RATES)) * above  # forth and back, over lessons of one kind
    asking = taught + bare * len(OWN_RATES)
    # The teacher reads lessons with the system prompt, without it, and after another question.
    return Work(asking + kinds * (with_prompt + 2 * without) + round(steps * without), kinds * reply)
