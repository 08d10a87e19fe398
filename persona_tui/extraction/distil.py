"""The distilled recipe: vectors that are fitted to do what the persona's system prompts do.

A mean difference says which way replies under a system prompt lie; added to every token, it is a rough
likeness of what the prompt does to the next one. Distilling starts from it and fits the vectors of the band
by gradient descent (`model/distil.py`), on replies to the extraction questions: half of them written under
the system prompts, and half without, so that the vectors are right where a steered reply begins as well as
where it goes. The mean difference stays in the file; everything that measures goes on with it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from persona_tui.extraction.bench import RECIPE, Bench
from persona_tui.extraction.checkpoints import Tally
from persona_tui.extraction.extractor import ActivationExtractor
from persona_tui.extraction.plan import Work, item_seed, shuffled
from persona_tui.model import Message, Request, Sampling, conversation
from persona_tui.model.distil import Distillation
from persona_tui.vectors.persona import DISTILLED, PersonaVector

LESSONS = 48  # replies of each kind, at most: never more than the extraction had
LESSON_TOKENS = 64  # of a reply; what a persona is shows early
RATES = (0.3, 0.2, 0.1)  # how far a step goes, pass by pass: see `Distillation.improved`
PASSES = 3 * len(RATES) + 1  # forwards that a lesson costs: backwards costs two; and the teacher's

Lessons = Sequence[tuple[list[Message], list[Message], str]]


def distilled(bench: Bench, size: float) -> PersonaVector:
    """Fit a persona's vectors to what its system prompts do.

    Args:
        bench: the persona's; its band is what is fitted.
        size: how many times the mean difference is added where it recovers most: where fitting begins.

    Returns:
        The persona with vectors of the recipe `distilled`, in units of which about 1 is right. Beside the
        band they are the mean difference.

    Raises:
        GenerationError: the model computes no gradients, or memory ran out.
    """
    extractor, persona = bench.extractor, bench.persona
    rows = [persona.layers.index(layer) for layer in bench.band]
    lessons = _lessons(bench)
    start = size * persona.safe[RECIPE]
    safety = extractor.axes.safety[RECIPE] if extractor.axes is not None else None
    without = {} if safety is None else {layer: safety[_row(extractor, layer)] for layer in bench.band}
    teaching = extractor.model.distillation(lessons) if lessons else None
    fitted = start[rows]
    for number, rate in enumerate(RATES):
        if teaching is not None:
            fitted = _improved(bench, teaching, lessons, fitted, without, number, rate)
    stack = start.clone()
    stack[rows] = fitted
    baseline = persona.mean[RECIPE] - persona.raw[RECIPE]
    return replace(
        persona,
        mean={**persona.mean, DISTILLED: baseline + stack},
        raw={**persona.raw, DISTILLED: stack},
        safe={**persona.safe, DISTILLED: stack.clone()},
        calibration=None,
    )


def _row(extractor: ActivationExtractor, layer: int) -> int:
    axes = extractor.axes
    assert axes is not None
    return axes.layers.index(layer)


def _improved(
    bench: Bench,
    teaching: Distillation,
    lessons: Lessons,
    vectors: Tensor,
    without: Mapping[int, Tensor],
    number: int,
    rate: float,
) -> Tensor:
    """One pass over the lessons; what an interrupted job has finished of it is not done again."""
    extractor = bench.extractor
    seed = item_seed(extractor.settings.calibration.seed, "distil", number)
    what = ["distil", list(bench.band), rate, seed, list(extractor.model.identity), list(lessons), vectors]
    stage = extractor.partial.stage([*what, *without.values()])
    cost = lesson_cost(extractor, lessons)

    def step(done: int) -> None:
        extractor.passed(3 * done * cost // len(lessons), f"{bench.persona.name}: distilling")

    def improve(items: Sequence[int]) -> Tally:
        start = dict(zip(bench.band, vectors, strict=True))
        found, _ = teaching.improved(start, rate, seed, without, step)
        stack = torch.stack([found[layer] for layer in bench.band])
        return Tally(frozenset(items), rows={0: stack.flatten()})

    return stage.finish(1, 1, improve).rows[0].reshape(vectors.shape)


def _lessons(bench: Bench) -> list[tuple[list[Message], list[Message], str]]:
    """Replies with and without the system prompts, each with both conversations that it can answer."""
    extractor, settings = bench.extractor, bench.extractor.settings
    prompts = [str(each) for each in bench.persona.metadata["prompts"]]
    responses = int(bench.persona.metadata.get("counts", {}).get("responses", LESSONS))
    questions = shuffled(extractor.questions, settings.calibration.seed)[: min(LESSONS, responses)]
    pairs = [
        (conversation(each.question, prompts[at % len(prompts)]), conversation(each.question))
        for at, each in enumerate(questions)
    ]
    requests = [
        Request(asked, item_seed(settings.calibration.seed, "lesson", kind, questions[at].id))
        for kind in (0, 1)
        for at, pair in enumerate(pairs)
        for asked in (pair[kind],)
    ]
    extraction = settings.extraction
    sampling = Sampling(_lesson_tokens(extractor), extraction.temperature, extraction.top_p)
    texts = extractor.texts(requests, f"{bench.persona.name}: replies to learn from", sampling)
    return [(*pair, text) for pair, text in zip([*pairs, *pairs], texts, strict=True) if text]


def _lesson_tokens(extractor: ActivationExtractor) -> int:
    return min(LESSON_TOKENS, extractor.settings.extraction.max_new_tokens)


def lesson_cost(extractor: ActivationExtractor, lessons: Lessons) -> int:
    """How many tokens a pass over the lessons reads."""
    count = extractor.model.count_tokens
    return sum(count(bare) for _, bare, _ in lessons) + len(lessons) * _lesson_tokens(extractor)


def distil_work(extractor: ActivationExtractor, prompts: Sequence[str], responses: int) -> Work:
    """How much work it is to distil a persona with such prompts, whose extraction had so many responses."""
    questions = extractor.questions[: min(LESSONS, responses)]
    if not questions or not prompts:
        return Work()
    count, most = extractor.model.count_tokens, _lesson_tokens(extractor)
    bare = sum(count(conversation(each.question)) for each in questions)
    taught = sum(
        count(conversation(each.question, prompts[at % len(prompts)])) for at, each in enumerate(questions)
    )
    passage = 2 * (bare + len(questions) * most)
    return Work(taught + bare + 2 * taught + PASSES * passage, 2 * len(questions) * most)
