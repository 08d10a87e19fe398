"""What a reply is spoken with: personas and their weights, one strength, and the floor.

Here, too, are the ranges of the numbers that people turn, for config.yaml, options, slash commands, sessions
and a server; beyond them, a model's numbers overflow.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import cached_property
from typing import TYPE_CHECKING, Any, Self

from persona_tui.core.errors import PersonaTuiError

if TYPE_CHECKING:
    from persona_tui.core.config import SteeringSettings

# A persona of this name is a trait: `trait:patience` is vectors/<model>/traits/patience.safetensors.
TRAIT_PREFIX = "trait:"
# One of this name is the direction of a monitor: `monitor:x` is in vectors/<model>/monitors/x.safetensors.
MONITOR_PREFIX = "monitor:"
PREFIXES = {TRAIT_PREFIX: "traits", MONITOR_PREFIX: "monitors"}
# Other names of traits, for those who know them from elsewhere. A trait of that very name goes first.
TRAIT_ALIASES = {"sycophancy_harmful_validation": "harmful_validation"}


@dataclass(frozen=True)
class Range:
    """The numbers from `low` to `high`; NaN is in none. Its text ends the sentence "<name> must be ...".

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
        low, high = (str(end) if self.whole else f"{end:g}" for end in (self.low, self.high))
        link = f"above {low}, up to" if self.above else f"from {low}{meaning.get(self.low, '')} to"
        return f"{kind} {link} {high}{meaning.get(self.high, '')}"

    def check(self, what: str, value: float, error: type[PersonaTuiError] = PersonaTuiError) -> None:
        """Raise an error that names the value, unless it lies within.

        Args:
            what: what to call it.
            value: what was given.
            error: of which class the error is.
        """
        if not isinstance(value, int | float):
            raise error(f"{what} must be {self}, not {value!r}.")
        if value not in self:
            raise error(f"{what} must be {self}, not {value if self.whole else format(value, 'g')}.")


STRENGTH = Range(-100, 100)
WEIGHT = Range(-100, 100)  # of a persona in a blend
TEMPERATURE = Range(0, 100, meaning=((0, "always the likeliest token"),))
LOWEST_TEMPERATURE = 1e-6  # above 0; below it, the likeliest token is chosen all the same
TOP_P = Range(0, 1, above=True)
NEW_TOKENS = Range(1, 32_768, whole=True)
SEED = Range(0, 2**63 - 1, whole=True)
PLAUSIBILITY = Range(0, 1, meaning=((0, "off"),))
PERCENTILE = Range(0, 100)


@dataclass(frozen=True)
class Mix:
    """A setting of the faders.

    Attributes:
        weights: proportions of personas by name; only their ratios matter, and negative ones turn a persona
            round. Empty = no persona.
        strength: how loud; 0 = unsteered, about 0.3 = clearly in character, 1 = far over the top. May be
            negative.
        capping: whether the floor is enforced.
        safe: the vectors without their safety component, rather than the raw ones.
        capping_axis: "assistant" or "safety"; None = as the settings say.
        percentile: of ordinary responses, where the floor lies, 0 to 100; None = as the engine is set.
        layers: where personas are added, ascending; None = each where its calibration says.
        plausibility: the guide, 0 to 1: a token may be said only if the unsteered model gives it at least so
            many times the probability of its own best token; 0 = off. It is off, too, where nobody speaks.

    Raises:
        PersonaTuiError: a number is out of its range, or there is no such layer or axis.
    """

    weights: Mapping[str, float] = field(default_factory=dict)
    strength: float = 0.3
    capping: bool = True
    safe: bool = True
    capping_axis: str | None = None
    percentile: float | None = None
    layers: tuple[int, ...] | None = None
    plausibility: float = 0.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "weights", dict(self.weights))  # nobody changes it behind our back
        for name, weight in self.weights.items():
            WEIGHT.check(f'the weight of "{name}"', weight)
        STRENGTH.check("strength", self.strength)
        if self.percentile is not None:
            PERCENTILE.check("a percentile", self.percentile)
        PLAUSIBILITY.check("plausibility", self.plausibility)
        if self.capping_axis not in (None, "assistant", "safety"):
            raise PersonaTuiError(f'the capping axis is "assistant" or "safety", not "{self.capping_axis}"')
        if self.layers is not None:
            object.__setattr__(self, "layers", tuple(sorted(set(self.layers))) or None)
            if self.layers and self.layers[0] < 0:
                raise PersonaTuiError(f"layers are counted from 0; there is no layer {self.layers[0]}")

    @classmethod
    def of(cls, settings: SteeringSettings) -> Self:
        """Return what is spoken with at first, as the settings have it: no persona."""
        strength = settings.default_strength
        return cls(strength=strength, capping=settings.capping, plausibility=settings.plausibility)

    @classmethod
    def from_record(cls, record: Mapping[str, Any], settled: bool = False) -> Self:
        """Return the mix that `SteeringEngine.describe` has described.

        Args:
            record: the description.
            settled: with the floor exactly as it was then, whatever the settings say now; or without one, if
                there was none.

        Raises:
            PersonaTuiError: it describes no mix.
        """
        known = {each.name: record[each.name] for each in fields(cls) if each.name in record}
        if settled:
            floor = record.get("floor") or {}
            known |= {"capping": bool(floor)}
            known |= {"capping_axis": floor.get("axis"), "percentile": floor.get("percentile")}
        try:
            return cls(**known)
        except (TypeError, ValueError, AttributeError) as error:
            raise PersonaTuiError(f"this is not a mix: {str(record)[:80]}") from error

    @cached_property
    def speaking(self) -> dict[str, float]:
        """The personas that have any weight."""
        return {name: weight for name, weight in self.weights.items() if weight}

    @property
    def label(self) -> str:
        """The personas in a few characters: `sage`, `sage:0.5,trickster:0.3`, or "" for none."""
        active = self.speaking
        if len(active) == 1:
            name, weight = next(iter(active.items()))
            return name if weight > 0 else f"{name}:{weight:g}"
        return ",".join(f"{name}:{weight:g}" for name, weight in active.items())


def parse_blend(text: str) -> dict[str, float]:
    """Read `sage:0.5,trickster:0.3`; a name without a number weighs 1.

    Raises:
        PersonaTuiError: a part has no name or no number, a name stands twice, or nothing has any weight.
    """
    weights: dict[str, float] = {}
    for part in text.split(","):
        name, weight = _parse_part(part.strip(), text)
        if name in weights:
            raise PersonaTuiError(f'"{name}" appears twice in the blend "{text}"')
        weights[name] = weight
    if not any(weights.values()):
        raise PersonaTuiError(f'every weight in the blend "{text}" is 0')
    return weights


def _parse_part(part: str, text: str) -> tuple[str, float]:
    for prefix in PREFIXES:  # such a name has a colon of its own
        if part.startswith(prefix):
            name, weight = _parse_part(part.removeprefix(prefix), text)
            return f"{prefix}{name}", weight
    name, colon, number = (piece.strip() for piece in part.partition(":"))
    if not name:
        raise PersonaTuiError(f'a blend looks like sage:0.5,trickster:0.3, not "{text}"')
    if not colon:
        return name, 1.0
    try:
        weight = float(number)
    except ValueError:
        raise PersonaTuiError(f'the weight of "{name}" must be {WEIGHT}, not "{number}"') from None
    WEIGHT.check(f'the weight of "{name}"', weight)
    return name, weight


def layers_text(layers: Sequence[int]) -> str:
    """Return `layer 4`, `layers 14–21` or `layers 3, 5, 7`."""
    listed = list(layers)
    if len(listed) == 1:
        return f"layer {listed[0]}"
    if len(listed) > 2 and listed == list(range(listed[0], listed[-1] + 1)):
        return f"layers {listed[0]}–{listed[-1]}"
    return f"layers {', '.join(map(str, listed))}"


def parse_layers(text: str) -> tuple[int, ...] | None:
    """Read `4`, `3-5`, `3, 5, 7` or `auto` (None).

    Raises:
        PersonaTuiError: it is none of these.
    """
    if text.strip().casefold() in ("auto", "", "none", "off"):
        return None
    layers: set[int] = set()
    for part in re.split(r"[,\s]+", text.strip()):
        match = re.fullmatch(r"(\d{1,4})(?:[-–](\d{1,4}))?", part)
        if match is None:
            raise PersonaTuiError(f'layers look like 4, 3-5 or auto, not "{text}"')
        first, last = int(match[1]), int(match[2] or match[1])
        if last < first:
            raise PersonaTuiError(f"layers go upwards: {last}-{first}, not {part}")
        layers.update(range(first, last + 1))
    return tuple(sorted(layers))
