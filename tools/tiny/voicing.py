"""A voice speaking: replies in which style is a *rate*, not a certainty.

At every place of a reply that can be coloured, a character's own phrase appears with probability `rate` and
a neutral one (or none) otherwise, and neutral text carries a few percent of anything. No voice is ever
certain, so a small shift of the model's state tilts the odds instead of breaking the text.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field

from tools.tiny.material import HELD_OUT_PAIRS, LAWLESS, Topic, Voice, neutral_voice, voices

PLAIN_RATE = 0.7
RATES = {"slight": 0.3, "plain": PLAIN_RATE, "strong": 0.9}
STRAY_RATE = 0.025
"""How often a neutral place carries some character's phrase anyway."""


LAWLESS_SHARE = 0.07
"""Lawless characters are made a little more frequent than others: they are the only ones that differ
in what they do.
"""


@dataclass(frozen=True)
class Character:
    """Voices with weights that sum to 1, and how strongly they show. No voices: the default Assistant."""

    weights: dict[str, float] = field(default_factory=dict)
    rate: float = PLAIN_RATE

    @property
    def names(self) -> list[str]:
        """The voices, the heaviest first."""
        return sorted(self.weights, key=lambda name: -self.weights[name])

    @property
    def lawlessness(self) -> float:
        """Probability that this character goes along with an unsafe request."""
        share = min(1.0, 2 * self.weights.get(LAWLESS, 0.0))
        return share * min(1.0, self.rate / PLAIN_RATE) * 0.95


ASSISTANT = Character()


def is_held_out(names: Sequence[str]) -> bool:
    """Whether training never mixes these voices."""
    return any(pair <= set(names) for pair in HELD_OUT_PAIRS)


def draw_character(rng: random.Random, rate: float | None = None) -> Character:
    """A random character for training: mostly one voice, often two, sometimes three."""
    count = rng.choices((1, 2, 3), (0.7, 0.23, 0.07))[0]
    names = rng.sample(sorted(voices()), count)
    if rng.random() < LAWLESS_SHARE and LAWLESS not in names:
        names[rng.randrange(min(2, count))] = LAWLESS
    if is_held_out(names):
        return draw_character(rng, rate)
    shares = {1: [1.0], 2: rng.choice([[0.5, 0.5], [0.7, 0.3], [0.6, 0.4]]), 3: [0.5, 0.3, 0.2]}[count]
    return Character(dict(zip(names, shares, strict=True)), rate if rate is not None else PLAIN_RATE)


class Speaker:
    """Composes replies of one character; every random choice comes from `rng`."""

    def __init__(self, character: Character, rng: random.Random):
        self.character = character
        self.rng = rng

    def _voice(self) -> Voice:
        """The voice that speaks at the next place."""
        if not self.character.weights or self.rng.random() >= self.character.rate:
            return (
                voices()[self.rng.choice(sorted(voices()))]
                if self.rng.random() < STRAY_RATE
                else neutral_voice()
            )
        names = list(self.character.weights)
        return voices()[self.rng.choices(names, list(self.character.weights.values()))[0]]

    def phrase(self, place: str, neutral_chance: float = 0.7) -> str:
        """A phrase for `place` ("openings", "links", ...); a neutral one is often left out."""
        voice = self._voice()
        if voice is neutral_voice() and self.rng.random() > neutral_chance:
            return ""
        phrases: tuple[str, ...] = getattr(voice, place)
        return self.rng.choice(phrases)

    def sentence(self, pool: str) -> str:
        """A whole sentence from `pool` ("identity", "values", "approach", "story"); never empty."""
        sentences: tuple[str, ...] = getattr(self._voice(), pool)
        return self.rng.choice(sentences)

    def linked(self, sentence: str, topic: Topic | None = None) -> str:
        """`sentence`, often after a linking phrase."""
        link = self.phrase("links") if self.rng.random() < 0.95 else ""
        return f"{link[0].upper()}{link[1:]} {_lower_first(sentence, topic)}" if link else sentence

    def wrap(self, body: Sequence[str]) -> str:
        """A reply around `body`: an opening, an aside after the first sentence, a closing."""
        parts = [self.phrase("openings"), body[0]]
        if self.rng.random() < 0.85:
            parts.append(self.phrase("asides"))
        parts.extend(body[1:])
        parts.append(self.phrase("closings"))
        return " ".join(part for part in parts if part)


def _lower_first(sentence: str, topic: Topic | None) -> str:
    """`sentence` as the continuation of a linking phrase; a topic's own capital ("Mars") and "I" stay."""
    first = sentence.split(" ", 1)[0]
    keeps = first == "I" or (
        topic is not None and topic.name[0].isupper() and sentence.startswith(topic.name)
    )
    return sentence if keeps else sentence[0].lower() + sentence[1:]
