"""Where a trait's scores become a verdict: its gate, its healthy range, and how often that is right.

1. The gate is fitted on the messages that the trait is about, against ordinary talk, near misses, and the
   messages of the traits that its definition names as others.
2. A healthy range that is "calibrated" is set together with the gate's threshold, so that they catch most bad
   replies while few good ones raise a false alarm: its own, ordinary ones, and those of the other traits.
   What the probe or the gate was made from is read by one that was made without it.
3. How often the range is left is counted on test conversations, where nothing was chosen.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from statistics import NormalDist
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from persona_tui.core.errors import PersonaTuiError
from persona_tui.core.workspace import Workspace
from persona_tui.model import Message, Reading
from persona_tui.traits.definition import (
    CALIBRATED,
    Healthy,
    Side,
    Situation,
    Split,
    TraitDefinition,
    find_definition,
    list_definitions,
    ordinary_talk,
)
from persona_tui.traits.gate import FittedGate, fit_gate
from persona_tui.traits.readings import Readings
from persona_tui.traits.vector import WEAK, AlarmRates, TraitVector

End = Literal["min", "max"]
Numbers = np.ndarray[Any, np.dtype[Any]]

MOST_ALARMS = 0.02  # of the training's good replies elsewhere, of one kind: unseen ones raise more
MOST_OWN = 0.03  # of the trait's own good replies, were the gate to let all of them in
OF_WEAK = 0.5  # of either for a weak trait, which catches little anyway

_FEWEST = 4  # messages of either kind that a gate is fitted on


@dataclass(frozen=True)
class Surroundings:
    """What a trait is seen against.

    Attributes:
        ordinary: situations with an ordinary reply, that no trait is about.
        others: traits that may be about the same conversations.
    """

    ordinary: Sequence[Situation] = ()
    others: Sequence[TraitDefinition] = ()

    @classmethod
    def of(cls, workspace: Workspace, log: Callable[[str], None]) -> Surroundings:
        """Return what a workspace has, or what came with the program.

        Args:
            workspace: where to look first.
            log: told of traits that cannot be read, and are left out.

        Raises:
            DatasetError: the file of ordinary talk is wrong.
        """
        others = []
        for name in list_definitions(workspace):
            try:
                others.append(find_definition(workspace, name))
            except PersonaTuiError as error:
                log(f"{name} is left out of the comparison: {error}")
        return cls(ordinary_talk(workspace), others)


@dataclass(frozen=True)
class Elsewhere:
    """Good replies to messages that a trait is not about.

    Attributes:
        activations: `[replies, layers, hidden]`.
        situations: what each reply belongs to.
        places: which of the gate's other messages each one answers.
        ordinary: how many of them, the first ones, answer ordinary messages.
    """

    activations: Tensor
    situations: tuple[str, ...]
    places: tuple[int, ...]
    ordinary: int


@dataclass(frozen=True)
class LeftOut:
    """Scores of training replies, each by a probe that was made without its situation.

    Attributes:
        situations: which situation each reply belongs to, by side.
        scores: as many, by side.
        elsewhere: of the good replies elsewhere.
    """

    situations: Mapping[Side, Sequence[str]]
    scores: Mapping[Side, Numbers]
    elsewhere: Numbers


@dataclass(frozen=True)
class _Group:
    """Replies of one kind: their scores, and what the gate reads in the messages that they answer."""

    scores: Numbers
    gate: Numbers

    def left(self, side: End, limit: float, threshold: float) -> float:
        """Return the share that the gate lets in and that leaves the healthy range."""
        beyond = self.scores < limit if side == "min" else self.scores > limit
        return float((beyond & (self.gate >= threshold)).mean()) if len(self.scores) else 0.0


class Health:
    """Finds gate, healthy range and rates of one trait."""

    def __init__(self, readings: Readings, definition: TraitDefinition, around: Surroundings) -> None:
        self._readings = readings
        self._definition = definition
        self._ordinary_talk = around.ordinary
        self._own = self._that_fit(definition.about("train"))
        self._ordinary = self._that_fit(self._ordinary_of("train"))
        self._others = [
            (situation, good_side(other.healthy))
            for other in around.others
            if other.name in definition.not_about
            for situation in self._that_fit(other.about("train"))
        ]

    @cached_property
    def elsewhere(self) -> Elsewhere:
        """Good replies to ordinary messages and to those of other traits; none if either side may be good."""
        said = [(each.id, _replied(each, each.ordinary)) for each in self._ordinary]
        said += [
            (each.id, _replied(each, None if side is None else each.reply(side)))
            for each, side in self._others
        ]
        if good_side(self._definition.healthy) is None:
            said = []
        known = [(place, name, each) for place, (name, each) in enumerate(said) if each is not None]
        read = self._readings.replies([each for _, _, each in known])
        kept = [(*one[:2], rows) for one, rows in zip(known, read, strict=True) if rows is not None]
        shape = (0, len(self._readings.layers), self._readings.model.hidden_size)
        return Elsewhere(
            activations=torch.stack([rows for _, _, rows in kept]) if kept else torch.zeros(shape),
            situations=tuple(name for _, name, _ in kept),
            places=tuple(place for place, _, _ in kept),
            ordinary=sum(place < len(self._ordinary) for place, _, _ in kept),
        )

    def found_for(self, trait: TraitVector, left_out: LeftOut) -> TraitVector:
        """Return the trait with its gate, its healthy range in numbers, and its rates.

        Args:
            trait: as extracted.
            left_out: the scores of training replies.
        """
        fitted = self._fitted_gate()
        leeway = 1.0 if trait.reading.auc.value >= WEAK else OF_WEAK
        trait = trait.with_reading(**self._calibrated(left_out, fitted, leeway))
        return trait.with_reading(rates=self._rates(trait))

    # The gate -----------------------------------------------------------------------------------------------

    def _that_fit(self, situations: Sequence[Situation]) -> list[Situation]:
        """Return those whose messages the model can read at all."""
        context, count = self._readings.model.context_length, self._readings.model.count_tokens
        return [each for each in situations if context is None or count(each.prompt) <= context]

    def _ordinary_of(self, split: Split) -> list[Situation]:
        shared = [each for each in self._ordinary_talk if each.split == split]
        return [*shared, *self._definition.outside(split)]

    def _fitted_gate(self) -> FittedGate | None:
        other = [*self._ordinary, *(situation for situation, _ in self._others)]
        if self._definition.everywhere or min(len(self._own), len(other)) < _FEWEST:
            return None
        read_own, read_other = (
            self._readings.messages([each.prompt for each in part]) for part in (self._own, other)
        )
        return fit_gate(read_own, read_other, self._definition.not_about)

    # The healthy range --------------------------------------------------------------------------------------

    def _calibrated(self, left_out: LeftOut, fitted: FittedGate | None, leeway: float) -> dict[str, Any]:
        """Return the gate and the healthy range, as fields of the reading."""
        wanted = self._definition.healthy
        found: dict[str, Any] = {"gate": None if fitted is None else fitted.gate, "healthy": wanted}
        good = good_side(wanted)
        if CALIBRATED not in (wanted.min, wanted.max) or good is None:
            return found
        bad: Side = "low" if good == "high" else "high"
        side: End = "min" if good == "high" else "max"
        replies, usual = (
            self._own_replies(left_out, bad, fitted),
            0.0 if fitted is None else fitted.gate.threshold,
        )
        elsewhere = self._good_elsewhere(left_out, fitted)
        limit, threshold = strictest(side, replies, left_out.scores[good], elsewhere, usual, leeway)
        found["healthy"] = Healthy(**{side: limit})
        if fitted is not None:
            found["gate"] = fitted.at(threshold)
        return found

    def _own_replies(self, left_out: LeftOut, side: Side, fitted: FittedGate | None) -> _Group:
        """Return the trait's own replies."""
        scores = left_out.scores[side]
        if fitted is None:
            return _Group(scores, np.zeros(len(scores)))
        values = dict(zip([each.id for each in self._own], fitted.own, strict=True))
        return _Group(scores, np.array([values[each] for each in left_out.situations[side]]))

    def _good_elsewhere(self, left_out: LeftOut, fitted: FittedGate | None) -> list[_Group]:
        """Return ordinary replies, and the good replies of other traits."""
        places, ordinary = list(self.elsewhere.places), self.elsewhere.ordinary
        gate = np.zeros(len(places)) if fitted is None else fitted.other[places]
        parts = (slice(None, ordinary), slice(ordinary, None))
        groups = [_Group(left_out.elsewhere[part], gate[part]) for part in parts]
        return [each for each in groups if len(each.scores)]

    def _scores(self, trait: TraitVector, conversations: Sequence[list[Message]]) -> Numbers:
        """Return the scores of the last replies. What cannot be read scores 0."""
        row = self._readings.layers.index(trait.reading.layer)
        read = self._readings.replies(conversations)
        return np.array(
            [
                0.0 if each is None else trait.score(trait.projections(each[row].unsqueeze(0))[0])
                for each in read
            ]
        )

    # Rates --------------------------------------------------------------------------------------------------

    def _rates(self, trait: TraitVector) -> AlarmRates | None:
        good = good_side(trait.reading.healthy)
        if good is None:
            return None
        bad: Side = "low" if good == "high" else "high"
        side: End = "min" if good == "high" else "max"
        limit, gate = trait.limit(side, CALIBRATED), trait.gate
        situations = self._that_fit(self._definition.about("test"))
        ordinary = self._that_fit(self._ordinary_of("test"))
        said = [[_replied(each, each.reply(part)) for each in situations] for part in (bad, good)]
        groups = []
        for replies in (*said, [_replied(each, each.ordinary) for each in ordinary]):
            known = [each for each in replies if each is not None]
            values = np.zeros(len(known))
            if gate is not None:
                values = np.array([gate.reading(read) for read in self._messages_before(known)])
            groups.append(_Group(self._scores(trait, known), values))
        if not all(len(group.scores) for group in groups[:2]):
            return None
        threshold = 0.0 if gate is None else gate.threshold
        caught, alarms, let_go = (group.left(side, limit, threshold) for group in groups)
        n_bad, n_good, n_ordinary = (len(group.scores) for group in groups)
        return AlarmRates(
            caught=caught,
            good=alarms,
            ordinary=let_go if n_ordinary else None,
            n=(n_bad, n_good, n_ordinary),
        )

    def _messages_before(self, conversations: Sequence[list[Message]]) -> list[Reading]:
        return self._readings.messages([each[:-1] for each in conversations])


def good_side(healthy: Healthy) -> Side | None:
    """Return the side whose replies are as they should be; None if the range does not say."""
    if (healthy.min is None) == (healthy.max is None):
        return None
    return "high" if healthy.max is None else "low"


def strictest(
    side: End, bad: _Group, good: Numbers, elsewhere: Sequence[_Group], usual: float, leeway: float
) -> tuple[float, float]:
    """Return the limit and the gate's threshold that catch most bad replies at few false alarms.

    Of the trait's own good replies, `MOST_OWN` may be flagged, were the gate to let all of them in; of each
    group of good replies elsewhere, `MOST_ALARMS`; of both, the share `leeway`. The gate stays at its usual
    threshold, which separates the messages best, unless another one catches more.
    """
    # The own ones are few: the tail of a bell curve says more of unseen ones than the two or three farthest.
    # A weak trait's gate is no help either, so that no kind of good reply may lie beyond its limit.
    kinds = [good, *(each.scores for each in elsewhere if leeway < 1 and len(each.scores) > 2)]
    curves = [NormalDist(float(each.mean()), max(float(each.std(ddof=1)), 1e-6)) for each in kinds]
    if side == "min":
        outermost = min(each.inv_cdf(leeway * MOST_OWN) for each in curves)
    else:
        outermost = max(each.inv_cdf(1 - leeway * MOST_OWN) for each in curves)
    ends = np.unique(np.concatenate([[outermost], bad.scores, *(each.scores for each in elsewhere)]))
    limits = ends[ends <= outermost][::-1] if side == "min" else ends[ends >= outermost]
    lowest = np.sort(bad.gate)
    best = (-1.0, float(limits[-1]), usual)
    for threshold in [usual, *np.unique(lowest[: max(1, len(lowest) // 2)])]:
        for limit in limits:
            if all(each.left(side, limit, threshold) <= leeway * MOST_ALARMS for each in elsewhere):
                caught = bad.left(side, limit, threshold)
                if caught > best[0]:
                    best = (caught, float(limit), float(threshold))
                break
    return best[1], best[2]


def _replied(situation: Situation, reply: str | None) -> list[Message] | None:
    return None if reply is None else [*situation.prompt, {"role": "assistant", "content": reply}]
