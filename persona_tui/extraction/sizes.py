"""Finding a size: the search for the likeliest one, and what is read off between measured ones."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import linear_regression

# The first sizes that the search tries: shares of the default dose.
START = (0.25, 0.5, 1.0)
MOST_STEPS = 5  # how often the search goes on beyond either end

# Of what its system prompts achieve: a persona needs not be louder. A louder one keeps less to the question,
# loses fluency, and may be louder still on other questions than these dozen.
ENOUGH = 0.8
TIE = 0.02  # expressions as close as this are equal
BEYOND = (
    1.4  # times the louder of two sizes, or a share of the quieter one, is the third where those do not do
)
_MORE_REPETITION = 0.05  # share of repeated phrases that a fluent reply may have above a prompted one
_READINGS = 25  # sizes between two measured ones at which the curve is read


@dataclass(frozen=True)
class Point:
    """What a size gave in generated replies.

    Attributes:
        coefficient: how many times the vectors are added.
        expression: 0 = unsteered, 1 = what the system prompt itself achieves.
        fluency_drop: nats per token that replies are less probable than prompted ones.
        repetition: share of phrases that repeat an earlier one, above that of prompted replies.
    """

    coefficient: float
    expression: float
    fluency_drop: float
    repetition: float

    def fluent(self, margin: float) -> bool:
        """Return whether replies are as fluent as prompted ones, up to `margin` nats per token."""
        return self.fluency_drop <= margin and self.repetition <= _MORE_REPETITION

    def merit(self, margin: float) -> float:
        """Return the expression, less what fluency is missing: then bad points can be compared, too."""
        missing = max(0.0, self.fluency_drop - margin) + max(0.0, self.repetition - _MORE_REPETITION)
        return min(self.expression, ENOUGH) - 2 * missing


def likeliest(recovered: Callable[[Sequence[float]], Sequence[float]], start: float) -> dict[float, float]:
    """Try sizes until one recovers more than its neighbours, then the one between them that should be best.

    Args:
        recovered: what each of some sizes recovers.
        start: the size that the first ones are shares of.

    Returns:
        Every size that was tried, with what it recovers.
    """
    first = [start * share for share in START]
    tried = dict(zip(first, recovered(first), strict=True))
    for _ in range(MOST_STEPS):
        best = max(tried, key=lambda each: tried[each])
        if best not in (low := min(tried), high := max(tried)):
            break
        beyond = low / 2 if best == low else high * 2
        tried[beyond] = recovered([beyond])[0]
    if (top := _vertex(tried)) is not None:
        tried[top] = recovered([top])[0]
    return tried


def _vertex(tried: dict[float, float]) -> float | None:
    """Return the top of the parabola through the best size and its neighbours, over the size's logarithm."""
    sizes = sorted(tried)
    place = max(range(len(sizes)), key=lambda at: tried[sizes[at]])
    if not 0 < place < len(sizes) - 1:
        return None
    left, middle, right = (tried[sizes[at]] for at in (place - 1, place, place + 1))
    bend = left - 2 * middle + right
    if bend >= 0:
        return None
    step = math.log(sizes[place + 1] / sizes[place])
    return sizes[place] * math.exp(step * max(-0.5, min(0.5, (left - right) / (2 * bend))))


def third(quiet: Point, loud: Point, margin: float) -> float:
    """Return the size to measure after these two: a louder one, a quieter one, or one between them."""
    if loud.fluent(margin) and loud.expression < ENOUGH:
        return loud.coefficient * BEYOND
    if not quiet.fluent(margin) or quiet.expression > ENOUGH:
        return quiet.coefficient / BEYOND
    return math.sqrt(quiet.coefficient * loud.coefficient)


def between(points: Sequence[Point]) -> list[Point]:
    """Return the measured points, and what lies on straight lines between them."""
    found = list(points[:1])
    for first, second in pairwise(points):
        for step in range(1, _READINGS + 1):
            way = step / _READINGS
            found.append(
                Point(
                    first.coefficient * (second.coefficient / first.coefficient) ** way,
                    first.expression + way * (second.expression - first.expression),
                    first.fluency_drop + way * (second.fluency_drop - first.fluency_drop),
                    first.repetition + way * (second.repetition - first.repetition),
                )
            )
    return found


def fitted(points: Sequence[Point]) -> list[Point]:
    """Return what lies on the straight lines that fit the measured points best, over the size's logarithm.

    A dozen replies tell fluency to a tenth of a nat or two: a line through all sizes tells more than each.
    """
    sizes = [math.log(each.coefficient) for each in points]
    low, high = min(sizes), max(sizes)
    lines = [
        linear_regression(sizes, [getattr(each, name) for each in points])
        for name in ("expression", "fluency_drop", "repetition")
    ]
    steps = (low + (high - low) * step / _READINGS for step in range(_READINGS + 1))
    return [Point(math.exp(at), *(line.intercept + line.slope * at for line in lines)) for at in steps]


def choose(points: Sequence[Point], margin: float) -> Point:
    """Return the most expressive fluent point, the quietest of equals; the best one if none is fluent."""
    pool = [each for each in points if each.fluent(margin)] or list(points)
    best = max(each.merit(margin) for each in pool)
    return min((each for each in pool if each.merit(margin) >= best - TIE), key=lambda each: each.coefficient)
