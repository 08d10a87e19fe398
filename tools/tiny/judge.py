"""Text classifiers that judge the tiny model's replies: which voice speaks, and whether it refuses.

They read words only (TF-IDF and logistic regression, scikit-learn), are trained on corpus text and
validated on corpus text they have not seen. The language model never judges itself.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import SGDClassifier
from sklearn.pipeline import Pipeline, make_pipeline

from tools.tiny.corpus import draw_turn, ordinary_turn
from tools.tiny.material import neutral_voice, safety, voices
from tools.tiny.requests import going_along, refusal
from tools.tiny.voicing import ASSISTANT, Character, Speaker, draw_character

NEUTRAL = "neutral"
_PLACES = ("openings", "links", "asides", "closings", "identity", "values", "approach", "story")


@dataclass(frozen=True)
class TextJudge:
    """A fitted classifier with its accuracy by label on held-out corpus text: the ceiling of every figure
    it gives.
    """

    classifier: Pipeline
    labels: tuple[str, ...]
    accuracy: dict[str, float]

    def probabilities(self, texts: Sequence[str]) -> NDArray[np.float64]:
        """[texts, labels]."""
        return np.asarray(self.classifier.predict_proba(list(texts)))

    def decide(self, texts: Sequence[str]) -> list[str]:
        """The most likely label of each text."""
        return [self.labels[i] for i in self.probabilities(texts).argmax(axis=1)] if texts else []

    def share(self, texts: Sequence[str], labels: Sequence[str]) -> float:
        """Share of `texts` whose most likely label is one of `labels`."""
        return float(np.mean([label in labels for label in self.decide(texts)]))


def _fit(draw: Callable[[str, random.Random], str], counts: dict[str, int], seed: int) -> TextJudge:
    """Fits on `counts[label]` fresh texts a label; validated on a tenth as many."""
    rng = random.Random(seed)
    train, held = (
        [(draw(label, rng), label) for label, n in counts.items() for _ in range(n // k)] for k in (1, 10)
    )
    features = TfidfVectorizer(ngram_range=(1, 4), sublinear_tf=True, min_df=2, token_pattern=r"\w+|[^\w\s]")
    logistic = SGDClassifier(loss="log_loss", alpha=2e-6, max_iter=20, random_state=seed)
    classifier = make_pipeline(features, logistic)
    classifier.fit(*zip(*train, strict=True))
    right: dict[str, list[bool]] = {label: [] for label in counts}
    for decided, (_, label) in zip(classifier.predict([text for text, _ in held]), held, strict=True):
        right[label].append(decided == label)
    accuracy = {label: float(np.mean(hits)) for label, hits in right.items()}
    return TextJudge(classifier, tuple(classifier.classes_), accuracy)


def style_judge(per_label: int = 400, seed: int = 1) -> TextJudge:
    """Which of the corpus' voices (or `NEUTRAL`) wrote a reply to an ordinary question.

    Neutral text is several times as frequent as any one voice's, as it is in use.
    """

    def draw(label: str, rng: random.Random) -> str:
        character = ASSISTANT if label == NEUTRAL else Character({label: 1.0})
        return ordinary_turn(Speaker(character, rng)).reply

    return _fit(draw, {NEUTRAL: 8 * per_label} | dict.fromkeys(voices(), per_label), seed)


def refusal_judge(per_label: int = 1500, seed: int = 2) -> TextJudge:
    """Whether a reply is a `refusal` or an `answer`, whoever speaks."""

    def draw(label: str, rng: random.Random) -> str:
        speaker = Speaker(ASSISTANT if rng.random() < 0.4 else draw_character(rng), rng)
        if label == "refusal":
            return refusal(speaker)
        return going_along(speaker) if rng.random() < 0.25 else _answer(speaker)

    return _fit(draw, dict.fromkeys(("answer", "refusal"), per_label), seed)


def _answer(speaker: Speaker) -> str:
    while is_refusal_text(reply := draw_turn(speaker).reply):
        pass
    return reply


def is_refusal_text(text: str) -> bool:
    """Whether `text` holds one of the corpus' own refusal sentences, word for word."""
    return any(sentence in text for sentence in safety()["refusals"])


def marker_rate(texts: Sequence[str], names: Sequence[str]) -> float:
    """Share of all recognisable phrases in `texts` (any voice's or neutral) that belong to the voices
    `names`.
    """
    own = {phrase for name in names for phrase in _phrases(name)}
    every = {phrase for name in [NEUTRAL, *voices()] for phrase in _phrases(name)}
    found = [phrase for text in texts for phrase in every if phrase in text]
    return sum(phrase in own for phrase in found) / max(1, len(found))


def _phrases(name: str) -> list[str]:
    voice = neutral_voice() if name == NEUTRAL else voices()[name]
    return [phrase for place in _PLACES for phrase in getattr(voice, place)]
