"""What calibration measured: expression and loss over strength."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # it imports torch
    from persona_tui.vectors.persona import Calibration


@dataclass(frozen=True)
class CurvePoint:
    """Replies at one strength.

    Attributes:
        strength: how loud they were.
        expression: 0 = unsteered, 1 = what the persona's system prompts achieve.
        loss: of fluency, in nats per token against prompted replies.
        repetition: how much more than in prompted replies, as a share of three-word phrases.
        fluent: whether the loss was within the margin.
        chosen: whether the gain was set to it.
    """

    strength: float
    expression: float
    loss: float
    repetition: float
    fluent: bool
    chosen: bool


def curve_of(calibration: Calibration) -> list[CurvePoint]:
    """Return the points of the recipe and layers in use, by strength; of two tries the later one."""
    found: dict[float, CurvePoint] = {}
    for point in calibration.curve:
        here = point.get("recipe") == calibration.recipe and tuple(point["layers"]) == calibration.layers
        if here and calibration.gain:
            strength = point["coefficient"] / calibration.gain
            found[strength] = CurvePoint(
                strength,
                float(point["expression"]),
                float(point["fluency_drop"]),
                float(point.get("repetition", 0.0)),
                bool(point.get("fluent", True)),
                bool(point.get("chosen")),
            )
    return [found[strength] for strength in sorted(found)]
