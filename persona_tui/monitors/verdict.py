"""What a monitor says of a message or a reply."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal, Self

About = Literal["message", "reply"]
LIKELY = 0.5  # how likely a harm has to be among the harms before a badge names it


@dataclass(frozen=True)
class Verdict:
    """A judgement, and what it rests on.

    Attributes:
        safe: whether the score is above the threshold.
        score: the higher, the safer. What it is differs by method: a difference of cosines (tone, content), a
            distance from the middle between the means (projection), a probability (probe, consensus).
        threshold: at or below it, it is dangerous.
        method: tone, content, projection, probe or consensus.
        layers: where the model was read.
        position: which tokens were read: `message` (the mean over the message), `prompt_last` (the last token
            before a reply) or `reply` (the mean over the reply so far).
        about: whether it is a user's message or a reply that was judged.
        monitor: the monitor's name.
        tokens: how many tokens were read.
        category: the likeliest harm, if it is dangerous and the monitor tells harms apart.
        category_probability: how likely that harm is among the harms, 0 to 1.
        agreement: the share of the layers that say the same, if there are several.
        said: in place of all that, what somebody else objects to: a validator (`method`).
    """

    safe: bool
    score: float
    threshold: float
    method: str
    layers: tuple[int, ...]
    position: str
    about: About
    monitor: str
    tokens: int
    category: str | None = None
    category_probability: float | None = None
    agreement: float | None = None
    said: str | None = None

    @classmethod
    def from_dict(cls, record: Mapping[str, Any]) -> Self:
        """Return the verdict that `as_dict` has written down.

        Raises:
            KeyError, TypeError: the record lacks something.
        """
        known = {each.name: record[each.name] for each in fields(cls) if each.name in record}
        return cls(**{**known, "layers": tuple(record["layers"])})

    @property
    def label(self) -> str:
        """`safe` or `dangerous`."""
        return "safe" if self.safe else "dangerous"

    @property
    def badge(self) -> str:
        """A few characters for a screen: `dangerous 0.12 ≤ 0.3 (cyber)`: the score, and the threshold that it
        is on this side of; the harm only if it is likely.
        """
        if self.said is not None:
            return f"{self.label} ({self.method})"
        likely = self.category is not None and (self.category_probability or 0) >= LIKELY
        harm = f" ({str(self.category).replace('_', ' ')})" if likely else ""
        return f"{self.label} {self.score:.3g} {'>' if self.safe else '≤'} {self.threshold:.3g}{harm}"

    @property
    def reason(self) -> str:
        """What the verdict rests on, in one line."""
        if self.said is not None:
            return self.said
        where = f"layer {self.layers[0]}" if len(self.layers) == 1 else f"{len(self.layers)} layers"
        side = "above" if self.safe else "not above"
        return (
            f"the {self.about} scored {self.score:.3g}, {side} the threshold {self.threshold:.3g} "
            f'(monitor "{self.monitor}", {self.method}, {where})'
        )

    @property
    def refusal(self) -> str:
        """What to say when a guard acts on it."""
        return f"{'Not answered' if self.about == 'message' else 'Stopped'}: {self.reason}."

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {**asdict(self), "layers": list(self.layers), "label": self.label}
