"""The ranges of the numbers that people turn; beyond them, a model's numbers overflow.

One place for config.yaml, options, slash commands, sessions and a server. A range's text ends the sentence
"<name> must be ...".
"""

from __future__ import annotations

from dataclasses import dataclass

from persona_tui.core.errors import PersonaTuiError


@dataclass(frozen=True)
class Range:
    """The numbers from `low` to `high`; NaN is in none.

    Attributes:
        low, high: the ends.
        above: whether `low` itself is left out.
        whole: whether only whole numbers are meant.
        meaning: what an end stands for, in words that follow the number, by number.
    """

    low: float
    high: float
    above: bool = False
    whole: bool = False
    meaning: tuple[tuple[float, str], ...] = ()

    def __contains__(self, value: float) -> bool:
        return (self.low < value if self.above else self.low <= value) and value <= self.high

    def __str__(self) -> str:
        kind = "a whole number" if self.whole else "a number"
        meaning = {end: f" ({words})" for end, words in self.meaning}
        low, high = (f"{end:.0f}" if self.whole else f"{end:g}" for end in (self.low, self.high))
        link = f"above {low}, up to" if self.above else f"from {low}{meaning.get(self.low, '')} to"
        return f"{kind} {link} {high}{meaning.get(self.high, '')}"

    def check(self, what: str, value: float, error: type[PersonaTuiError] = PersonaTuiError) -> None:
        """Raise an error that names the value, unless it lies within.

        Args:
            what: what to call it.
            value: what was given.
            error: of which class the error is.
        """
        if value not in self:
            raise error(f"{what} must be {self}, not {value:g}.")


STRENGTH = Range(-100, 100)
WEIGHT = Range(-100, 100)  # of a persona in a blend
TEMPERATURE = Range(0, 100, meaning=((0, "always the likeliest token"),))
LOWEST_TEMPERATURE = 1e-6  # above 0; below it, the likeliest token is chosen all the same
TOP_P = Range(0, 1, above=True)
NEW_TOKENS = Range(1, 32_768, whole=True)
PLAUSIBILITY = Range(0, 1, meaning=((0, "off"),))
PERCENTILE = Range(0, 100)
GAIN = Range(-1e6, 1e6)  # a persona's own, from strength to its vectors' size
