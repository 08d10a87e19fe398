"""One prompt at several strengths, as the rows of one batch, with what each strength says and costs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from persona_tui.core.jobs import JobContext
from persona_tui.core.mix import Mix
from persona_tui.extraction.bench import repetition
from persona_tui.model import Interventions

if TYPE_CHECKING:
    from persona_tui.model import Message, Sampling
    from persona_tui.steering.engine import SteeringEngine

STRENGTHS = (0.0, 0.15, 0.3, 0.5, 0.8)
_STEPS = 3
_TOLD = 60  # characters of a reply that are reported while it is written
_LEAST_EFFECT = 0.02  # nats per token; system prompts that do less leave nothing to express


@dataclass(frozen=True)
class SweepRow:
    """What one strength says.

    Attributes:
        strength: how loud.
        text: the reply.
        nats: from plain: the mean over its tokens of how much more probable steering made them.
        repetition: the share of its three-word phrases that repeat an earlier one.
        expression: 0 = unsteered, 1 = what the persona's system prompt achieves on this prompt; None for
            what has no system prompts.
    """

    strength: float
    text: str
    nats: float | None
    repetition: float
    expression: float | None

    @property
    def figures(self) -> list[str]:
        """What was measured, in words; what could not be measured is left out."""
        known = [f"expression {self.expression:.2f}"] if self.expression is not None else []
        known += [f"{round(self.nats, 2) + 0.0:+.2f} nats from plain"] if self.nats is not None else []
        return [*known, f"repetition {self.repetition:.0%}"]


def sweep(
    engine: SteeringEngine,
    messages: Sequence[Message],
    mix: Mix,
    strengths: Sequence[float] = STRENGTHS,
    sampling: Sampling | None = None,
    context: JobContext | None = None,
) -> list[SweepRow]:
    """Answer a conversation once per strength, with the same random numbers.

    Args:
        engine: with the model.
        messages: the conversation; the last message is the user's.
        mix: what is spoken with, but for its strength.
        strengths: one row for each.
        sampling: by default as the settings say.
        context: told how far it is; asked, at every token and between passes, whether to stop.

    Raises:
        JobCancelled: it was asked to stop.
        PersonaNotFoundError: the mix names a persona that does not exist.
        GenerationError: the conversation is too long, or memory ran out.
    """
    context = context or JobContext()
    mixes = [replace(mix, strength=each) for each in strengths]
    context.progress(0, _STEPS, f"writing {len(mixes)} replies")
    texts = _written(engine, messages, mixes, sampling, context)
    context.checkpoint()
    context.progress(1, _STEPS, "asking the unsteered model")
    plain = _likelihoods(engine, messages, texts)
    nats = [_nats(engine, messages, text, each, plain) for text, each in zip(texts, mixes, strict=True)]
    context.checkpoint()
    context.progress(2, _STEPS, "measuring expression")
    unsteered = next((text for text, each in zip(texts, mixes, strict=True) if not each.strength), None)
    expressions = _expressions(engine, messages, mix, texts, unsteered, sampling, plain, context)
    return [
        SweepRow(each.strength, text, about, repetition(text), expressed)
        for each, text, about, expressed in zip(mixes, texts, nats, expressions, strict=True)
    ]


def _written(
    engine: SteeringEngine,
    messages: Sequence[Message],
    mixes: Sequence[Mix],
    sampling: Sampling | None,
    context: JobContext,
) -> list[str]:
    """Return the replies; the last one's latest words are reported while they are written."""
    texts = [""] * len(mixes)
    for event in engine.stream_rows(messages, mixes, sampling=sampling):
        context.raise_if_cancelled()
        texts[event.row] += event.text
        if event.row == len(mixes) - 1:
            context.working_on(texts[event.row][-_TOLD:])
    return [text.strip() for text in texts]


def _likelihoods(
    engine: SteeringEngine, messages: Sequence[Message], texts: Sequence[str]
) -> dict[str, float]:
    """Return the unsteered model's nats per token of replies; those without a word are left out."""
    said = [text for text in dict.fromkeys(texts) if text]
    scored = engine.model.score([(list(messages), text) for text in said]) if said else []
    return {text: each.logprob for text, each in zip(said, scored, strict=True)}


def _nats(
    engine: SteeringEngine, messages: Sequence[Message], text: str, mix: Mix, plain: Mapping[str, float]
) -> float | None:
    """Return how much more probable steering made a reply, in nats per token; 0 where nothing was done."""
    if not text:
        return None
    live = engine.interventions(mix)
    if not live.steering and not live.capping:
        return 0.0
    done = Interventions(live.steering, live.capping)
    return engine.model.score([(list(messages), text)], done)[0].logprob - plain[text]


def _expressions(
    engine: SteeringEngine,
    messages: Sequence[Message],
    mix: Mix,
    texts: Sequence[str],
    unsteered: str | None,
    sampling: Sampling | None,
    plain: Mapping[str, float],
    context: JobContext,
) -> list[float | None]:
    """Return the replies' expression, against an unsteered and a prompted reply to the same prompt."""
    names = list(mix.speaking)
    prompts = engine.personas.get(names[0]).metadata.get("prompts") if len(names) == 1 else None
    if not prompts:
        return [None] * len(texts)
    asked = [{"role": "system", "content": str(prompts[0])}, *_without_system(messages)]
    prompted = engine.reply(asked, mix=Mix(capping=False), sampling=sampling).text
    context.checkpoint()
    if unsteered is None:
        unsteered = engine.reply(messages, mix=replace(mix, strength=0.0), sampling=sampling).text
    context.checkpoint()
    with_prompt = _likelihoods(engine, asked, [prompted, unsteered, *texts])
    without = {**plain, **_likelihoods(engine, messages, [prompted, unsteered])}
    ratios = {text: logprob - without[text] for text, logprob in with_prompt.items()}
    top, nothing = ratios.get(prompted), ratios.get(unsteered)
    if top is None or nothing is None or top - nothing < _LEAST_EFFECT:
        return [None] * len(texts)
    return [(ratios[text] - nothing) / (top - nothing) if text else None for text in texts]


def _without_system(messages: Sequence[Message]) -> list[Message]:
    return [message for message in messages if message["role"] != "system"]
