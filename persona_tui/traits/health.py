"""Where a trait's scores become a verdict: its gate, its healthy range, and how often that is right.

1. The gate is fitted on the messages that the trait is about, against ordinary talk, near misses, and the
   messages of the traits that its definition names as others.
2. A healthy range that is "calibrated" is set together with the gate's threshold, so that they catch most bad
   replies while few good ones raise a false alarm: its own, ordinary ones, and those of the other traits.
   What the vector or the gate was made from is read by one that was made without it.
3. How often the range is left is counted on test conversations, where nothing was chosen.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

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
from persona_tui.traits.vector import AlarmRates, TraitVector

End = Literal["min", "max"]
Numbers = np.ndarray[Any, np.dtype[Any]]

MOST_ALARMS = 0.02  # of the training's good replies of one kind: unseen ones raise more

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
class LeftOut:
    """Scores of training replies, each by a vector that was made without its situation.

    Attributes:
        situations: which situation each reply belongs to.
        scores: as many.
    """

    situations: Sequence[str]
    scores: Sequence[float]


@dataclass(frozen=True)
class _Group:
    """Replies of one kind: their scores, and what the gate reads in the messages that they answer."""

    scores: Numbers
    gate: Numbers

    def left(self, side: End, limit: float, threshold: float) -> float:
        """The share that the gate lets in and that leaves the healthy range."""
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

    def found_for(self, trait: TraitVector, left_out: Mapping[Side, LeftOut]) -> TraitVector:
        """Return the trait with its gate, its healthy range in numbers, and its rates.

        Args:
            trait: as extracted.
            left_out: the scores of its training replies.
        """
        fitted = self._fitted_gate()
        trait = trait.with_reading(**self._calibrated(trait, left_out, fitted))
        return trait.with_reading(rates=self._rates(trait))

    # The gate -----------------------------------------------------------------------------------------------

    def _that_fit(self, situations: Sequence[Situation]) -> list[Situation]:
        """Those whose messages the model can read at all."""
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

    def _calibrated(
        self, trait: TraitVector, left_out: Mapping[Side, LeftOut], fitted: FittedGate | None
    ) -> dict[str, Any]:
        """The gate and the healthy range, as fields of the reading."""
        wanted = self._definition.healthy
        found: dict[str, Any] = {"gate": None if fitted is None else fitted.gate, "healthy": wanted}
        good = good_side(wanted)
        if CALIBRATED not in (wanted.min, wanted.max) or good is None:
            return found
        bad: Side = "low" if good == "high" else "high"
        side: End = "min" if good == "high" else "max"
        own = {each: self._own_replies(left_out[each], fitted) for each in (good, bad)}
        # The gate is no excuse for the trait's own good replies: unseen ones of them do get in.
        let_in = replace(own[good], gate=np.full(len(own[good].scores), np.inf))
        groups = [let_in, *self._good_of_others(trait, fitted)]
        limit, threshold = strictest(side, own[bad], groups, 0.0 if fitted is None else fitted.gate.threshold)
        found["healthy"] = Healthy(**{side: limit})
        if fitted is not None:
            found["gate"] = fitted.at(threshold)
        return found

    def _own_replies(self, left_out: LeftOut, fitted: FittedGate | None) -> _Group:
        """Replies of the trait's own."""
        scores = np.asarray(left_out.scores, dtype=np.float64)
        if fitted is None:
            return _Group(scores, np.zeros(len(scores)))
        values = dict(zip([each.id for each in self._own], fitted.own, strict=True))
        return _Group(scores, np.array([values[each] for each in left_out.situations]))

    def _good_of_others(self, trait: TraitVector, fitted: FittedGate | None) -> list[_Group]:
        """Ordinary replies, and the good replies of other traits, in the order of the gate's messages."""
        count = len(self._ordinary)
        gate = np.zeros(count + len(self._others)) if fitted is None else fitted.other
        ordinary = _Group(
            self._scores(trait, [_replied(each, each.ordinary) or [] for each in self._ordinary]),
            gate[:count],
        )
        said, values = list[list[Message]](), list[float]()
        for (situation, side), value in zip(self._others, gate[count:], strict=True):
            if side is not None and (reply := situation.reply(side)) is not None:
                said.append([*situation.prompt, {"role": "assistant", "content": reply}])
                values.append(float(value))
        return [ordinary, *([_Group(self._scores(trait, said), np.array(values))] if said else [])]

    def _scores(self, trait: TraitVector, conversations: Sequence[list[Message]]) -> Numbers:
        """Scores of the last replies. What cannot be read scores 0."""
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


def strictest(side: End, bad: _Group, good: Sequence[_Group], usual: float) -> tuple[float, float]:
    """Return the limit and the gate's threshold that catch most bad replies at few false alarms.

    Of no group of good replies, more than `MOST_ALARMS` may be flagged. The gate stays at its usual
    threshold, which separates the messages best, unless another one catches more.
    """
    ends = np.unique(np.concatenate([bad.scores, *(each.scores for each in good)]))
    limits = ends[::-1] if side == "min" else ends
    lowest = np.sort(bad.gate)
    best = (-1.0, float(limits[-1]), usual)
    for threshold in [usual, *np.unique(lowest[: max(1, len(lowest) // 2)])]:
        for limit in limits:
            if all(each.left(side, limit, threshold) <= MOST_ALARMS for each in good):
                caught = bad.left(side, limit, threshold)
                if caught > best[0]:
                    best = (caught, float(limit), float(threshold))
                break
    return best[1], best[2]


def _replied(situation: Situation, reply: str | None) -> list[Message] | None:
    return None if reply is None else [*situation.prompt, {"role": "assistant", "content": reply}]
