"""Whether a reply still is language: three signs, each against a limit.

- *Repetition*: the share of the latest three-word phrases that repeat an earlier one, as in calibration.
- *Uncertainty*: the mean entropy of the model's latest choices, against that of the same model's replies that
  nobody was added to. Text that falls apart is close to guessing. How certain a model ordinarily is differs
  fivefold between models, so that nothing is said until it has been measured.
- *Loudness*: the strength, against the loudest that calibration found fluent for these personas. What
  calibration recommends is never a strain.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from statistics import fmean
from typing import TYPE_CHECKING

from persona_tui.core.mix import Mix

if TYPE_CHECKING:  # torch is not imported before the first paint
    from persona_tui.steering import SteeringEngine
    from persona_tui.vectors.persona import PersonaVector

_WORDS = 90  # looked back at for repetitions
_TOKENS = 24  # looked back at for uncertainty
_PLAIN_QUESTION = [{"role": "user", "content": "How does one make a good soup?"}]
_PLAIN_TOKENS = 32
_FEWEST = 8  # tokens before anything is said about them

MOST_REPETITION = 0.2
# Nats a token above the same model's ordinary replies. The tiny model's have 0.3 to 0.6; at strength 0.3
# 0.4 to 0.8; at 0.7, where sentences fall apart, 1.1 to 2.1.
ABOVE_ORDINARY = 1.0
STRAINED = 0.7  # the level from which on it is said what strains the text


@dataclass(frozen=True)
class Fluency:
    """How close a reply is to breaking down.

    Attributes:
        level: 0 = as fluent as can be; from 1 on it breaks down.
        word: what is wrong, or nearest to it.
        reason: the same with its figure.
    """

    level: float = 0.0
    word: str = ""
    reason: str = ""

    @property
    def broken(self) -> bool:
        """Whether one of the signs is beyond its limit."""
        return self.level >= 1


class FluencyMeter:
    """Reads a reply as it comes."""

    def __init__(self) -> None:
        self._text = ""
        self._entropies: deque[float] = deque(maxlen=_TOKENS)
        self._sum, self._count = 0.0, 0
        self.ordinary: float | None = None  # mean entropy of replies that nobody was added to, nats

    def clear(self) -> None:
        """Begin another reply."""
        self._text = ""
        self._entropies.clear()
        self._sum, self._count = 0.0, 0

    def finish(self, steered: bool) -> None:
        """End a reply. One to which nothing was added says how certain the model ordinarily is."""
        if not steered and self._count >= _TOKENS:
            self.ordinary = self._sum / self._count

    def add(self, text: str, entropy: float) -> None:
        """Take one token: its text, and the entropy of its choice in nats."""
        self._text += text
        self._entropies.append(entropy)
        self._sum, self._count = self._sum + entropy, self._count + 1

    @property
    def repetition(self) -> float:
        """The share of the latest phrases that are repeated, 0 to 1."""
        words = self._text.casefold().split()[-_WORDS:]
        phrases = list(zip(words, words[1:], words[2:], strict=False))
        return 1 - len(set(phrases)) / len(phrases) if phrases else 0.0

    @property
    def entropy(self) -> float:
        """The mean entropy of the latest tokens, nats."""
        return sum(self._entropies) / len(self._entropies) if len(self._entropies) >= _FEWEST else 0.0

    @property
    def entropy_limit(self) -> float | None:
        """From which mean entropy on text is taken to break down, nats; None = not known of this model."""
        return None if self.ordinary is None else self.ordinary + ABOVE_ORDINARY

    def read(self, strength: float, limit: float | None, recommended: float = 0.0) -> Fluency:
        """Return how fluent the reply is now.

        Args:
            strength: of the master.
            limit: the loudest that calibration found fluent; None = not known.
            recommended: where calibration has put the strength.
        """
        repeats = f"{self.repetition:.0%} of its phrases repeat"
        signs = [Fluency(self.repetition / MOST_REPETITION, "repeats", repeats)]
        if (most := self.entropy_limit) is not None:
            above = f"{self.entropy:.1f} nats a token, ordinary {self.ordinary:.1f}"
            signs.append(Fluency(self.entropy / most, "guesses", above))
        if limit:
            level = abs(strength) / limit * 0.99  # the limit itself still is fluent
            level = min(level, STRAINED) if abs(strength) <= recommended else level
            signs.append(Fluency(level, "too loud", f"calibrated up to {limit:.2f}"))
        return max(signs, key=lambda sign: sign.level)


def ordinary_entropy(engine: SteeringEngine) -> float:
    """Return the mean entropy of a short plain reply, in nats a token; runs on the model's thread.

    Raises:
        PersonaTuiError: the model cannot answer.
    """
    from persona_tui.model import Sampling

    sampling = Sampling(_PLAIN_TOKENS, seed=0)
    events = engine.stream(_PLAIN_QUESTION, mix=Mix(capping=False), sampling=sampling)
    entropies = [event.entropy for event in events if event.token_id >= 0]
    return fmean(entropies) if entropies else 0.0


def fluent_limit(personas: Mapping[str, tuple[PersonaVector, float]]) -> float | None:
    """Return the loudest strength that calibration found fluent, for a blend of personas.

    Args:
        personas: by name, each with its weight.

    Returns:
        The mean of their own limits, by the size of their weights; None if one was not calibrated.
    """
    limits = {name: _own_limit(persona) for name, (persona, _) in personas.items()}
    total = sum(abs(weight) for _, weight in personas.values())
    if not total or any(limit is None for limit in limits.values()):
        return None
    return sum((limits[name] or 0.0) * abs(weight) for name, (_, weight) in personas.items()) / total


def recommended_strength(personas: Mapping[str, tuple[PersonaVector, float]]) -> float:
    """Return where calibration has put the strength of a blend: the mean of its parts, by their weights."""
    from persona_tui.vectors.persona import DEFAULT_STRENGTH

    total = sum(abs(weight) for _, weight in personas.values())
    own = [
        (DEFAULT_STRENGTH if each.calibration is None else each.calibration.default_strength) * abs(weight)
        for each, weight in personas.values()
    ]
    return sum(own) / total if total else 0.0


def _own_limit(persona: PersonaVector) -> float | None:
    calibration = persona.calibration
    if calibration is None or not calibration.gain:
        return None
    # What was measured again, on more questions, comes later in the curve.
    by_strength = {
        round(float(point["coefficient"]) / calibration.gain, 3): bool(point.get("fluent"))
        for point in calibration.curve
        if point.get("recipe") == calibration.recipe and tuple(point.get("layers", ())) == calibration.layers
    }
    return max((strength for strength, fluent in by_strength.items() if fluent), default=None)
