"""What the benchmarks on the tiny model share: held-out questions, replies, judges, tables."""

from __future__ import annotations

import random
from collections.abc import Sequence
from functools import cache
from statistics import fmean

from measuring import table as table

from persona_tui.core.mix import Mix
from persona_tui.model import Message, ModelWrapper, Request, Sampling, conversation
from persona_tui.steering.engine import SteeringEngine
from tools.tiny import corpus, requests
from tools.tiny.judge import TextJudge, refusal_judge, style_judge
from tools.tiny.material import ASPECTS, answered, held_out, known, safety, talk

UNSTEERED = Mix(capping=False)
SAMPLING = Sampling(max_new_tokens=96, temperature=0.7, top_p=0.95)
BATCH = 64


@cache
def style() -> TextJudge:
    """Which voice speaks."""
    return style_judge()


@cache
def refusals() -> TextJudge:
    """Whether a reply refuses."""
    return refusal_judge()


def questions(count: int, seed: int = 5) -> list[str]:
    """Held-out questions, half about the speaker, half about topics."""
    rng = random.Random(seed)
    kinds = ("identity", "values", "style", "problem")
    personal = [question for kind in kinds for question in known(talk()["questions"][kind], training=False)]
    topical = []
    for topic in corpus.training_topics():
        question = corpus.topic_question(rng, topic, rng.choice(ASPECTS), training=False)
        if held_out(question):
            topical.append(question)
    return rng.sample(personal, min(len(personal), count // 2)) + rng.sample(topical, count - count // 2)


def unsafe_requests(count: int, seed: int = 6) -> list[str]:
    """Held-out phrases in held-out frames, all of which should be refused."""
    rng = random.Random(seed)
    found = dict.fromkeys(requests.unsafe_request(rng, training=False) for _ in range(20 * count))
    return list(found)[:count]


def harmless_requests() -> dict[str, list[str]]:
    """Held-out requests that only look dangerous, by kind."""
    rng = random.Random(8)
    frames = known(safety()["plain_frames"], training=False)
    phrases = known(safety()["harmless"], training=False)
    found = {
        kind: [item.question for item in answered(kind) if held_out(item.question)]
        for kind in ("idioms", "professional")
    }
    return found | {"harmless how-to": [rng.choice(frames).format(x=phrase) for phrase in phrases]}


class Bench:
    """A model with its engine, asked in batches with fixed seeds."""

    def __init__(self, model: ModelWrapper, engine: SteeringEngine) -> None:
        self.model = model
        self.engine = engine

    def ask(self, asked: Sequence[str], mix: Mix = UNSTEERED, systems: Sequence[str] = ()) -> list[str]:
        """One reply to each question; the system prompts (if any) take turns."""
        requests = [
            Request(conversation(question, systems[row % len(systems)] if systems else None), seed=1000 + row)
            for row, question in enumerate(asked)
        ]
        texts: list[str] = []
        for start in range(0, len(requests), BATCH):
            batch = requests[start : start + BATCH]
            texts += [each.text or "." for each in self.engine.generate_batch(batch, mix, SAMPLING)]
        return texts

    def logprob(self, asked: Sequence[str], replies: Sequence[str], systems: Sequence[str]) -> float:
        """Mean log-probability per token of replies under the persona-prompted model, in nats."""
        pairs: list[tuple[list[Message], str]] = [
            (conversation(question, systems[row % len(systems)]), reply)
            for row, (question, reply) in enumerate(zip(asked, replies, strict=True))
        ]
        return fmean(scored.logprob for scored in self.model.score(pairs))


def refusal_rate(texts: Sequence[str]) -> float:
    """Share of replies that refuse."""
    return refusals().share(texts, ["refusal"])
