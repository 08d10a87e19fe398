"""Where a trait's scores become a verdict: its gate, its healthy range, and how often that is right.

1. The gate is fitted on the messages that the trait is about, against ordinary talk.
2. A healthy range that is "calibrated" is set as strictly as false alarms allow: few of the trait's own good
   replies, of ordinary replies and of the good replies of other traits may leave it. Replies that made the
   vector are scored without their situation, ordinary messages read by gates that were fitted without them.
3. How often the range is left is counted on test conversations, where nothing was chosen.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeVar

import numpy as np

from persona_tui.core.errors import PersonaTuiError
from persona_tui.core.workspace import Workspace
from persona_tui.datasets.transcripts import Transcript
from persona_tui.model import Message, ModelWrapper, Reading
from persona_tui.traits.definition import (
    CALIBRATED,
    Healthy,
    Limit,
    Side,
    Situation,
    Split,
    TraitDefinition,
    find_definition,
    list_definitions,
    ordinary_talk,
)
from persona_tui.traits.gate import fit_gate
from persona_tui.traits.score import Scored, TraitScorer
from persona_tui.traits.vector import Rates, TraitVector

T = TypeVar("T")

MOST_GOOD = 0.05  # of a trait's own good replies that may leave the healthy range
MOST_OTHER = 0.02  # of ordinary replies, of those to near misses, and of the good replies of other traits

_TOGETHER = 64  # messages or conversations between two checkpoints
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
class _Group:
    """Replies of one kind: their scores, and whether the trait is about each of them."""

    scores: np.ndarray[tuple[int], np.dtype[np.float64]]
    judged: np.ndarray[tuple[int], np.dtype[np.bool_]]

    def left(self, side: Literal["min", "max"], limit: float) -> float:
        """The share that leaves the healthy range at a limit."""
        beyond = self.scores < limit if side == "min" else self.scores > limit
        return float((beyond & self.judged).mean()) if len(self.scores) else 0.0


class Health:
    """Finds gate, healthy range and rates of one trait."""

    def __init__(
        self,
        model: ModelWrapper,
        definition: TraitDefinition,
        around: Surroundings,
        checkpoint: Callable[[], None],
    ) -> None:
        self._model = model
        self._definition = definition
        self._around = around
        self._checkpoint = checkpoint

    def found_for(self, trait: TraitVector, left_out: Mapping[Side, Sequence[float]]) -> TraitVector:
        """Return the trait with its gate, its healthy range in numbers, and its rates.

        Args:
            trait: as extracted.
            left_out: scores of the training replies, each without its situation.
        """
        trait, let_in = self._gated(trait)
        trait = trait.with_reading(healthy=self._healthy(trait, left_out, let_in))
        return trait.with_reading(rates=self._rates(trait))

    # The gate -----------------------------------------------------------------------------------------------

    def _ordinary(self, split: Split) -> list[Situation]:
        shared = [each for each in self._around.ordinary if each.split == split]
        return [*shared, *self._definition.outside(split)]

    def _gated(self, trait: TraitVector) -> tuple[TraitVector, list[bool]]:
        """The trait with its gate, and which of the ordinary messages it lets in."""
        own, ordinary = self._definition.about("train"), self._ordinary("train")
        if self._definition.everywhere or min(len(own), len(ordinary)) < _FEWEST:
            return trait, [True] * len(ordinary)
        layers = range(self._model.n_layers // 4, self._model.n_layers)
        read_own, read_ordinary = (
            self._messages([each.prompt for each in part], layers) for part in (own, ordinary)
        )
        gate, let_in = fit_gate(read_own, read_ordinary, layers)
        return trait.with_reading(gate=gate), let_in

    def _messages(self, prompts: Sequence[list[Message]], layers: Sequence[int]) -> list[Reading]:
        found: list[Reading] = []
        for chunk in _chunks(prompts):
            self._checkpoint()
            found += self._model.read_messages(chunk, layers)
        return found

    # The healthy range --------------------------------------------------------------------------------------

    def _healthy(
        self, trait: TraitVector, left_out: Mapping[Side, Sequence[float]], let_in: Sequence[bool]
    ) -> Healthy:
        wanted = self._definition.healthy
        if CALIBRATED not in (wanted.min, wanted.max):
            return wanted
        ordinary = self._ordinary("train")
        scores = self._judged(trait, _replies(ordinary)).scores
        near = np.array([each in self._definition.situations for each in ordinary], dtype=bool)
        inside = np.array(let_in, dtype=bool)
        groups = [_Group(scores[part], inside[part]) for part in (near, ~near)]
        groups.append(self._judged(trait, self._good_of_others("train")))

        def number(side: Literal["min", "max"], limit: Limit | None) -> float | None:
            if limit != CALIBRATED:
                return limit
            good = np.asarray(left_out["high" if side == "min" else "low"], dtype=np.float64)
            return _strictest(side, _Group(good, np.ones(len(good), dtype=bool)), groups)

        return Healthy(min=number("min", wanted.min), max=number("max", wanted.max))

    def _good_of_others(self, split: Split) -> list[list[Message]]:
        """The good replies of the other traits, to messages that this one may be about, too."""
        return [
            messages
            for other in self._around.others
            if other.name != self._definition.name and (side := good_side(other.healthy)) is not None
            for _, messages in other.conversations(split, side)
        ]

    def _judged(self, trait: TraitVector, conversations: Sequence[list[Message]]) -> _Group:
        """Scores, and which of them count, of the last replies. What cannot be read counts as nothing."""
        scorer = TraitScorer(self._model, [trait])
        scores, judged = [], []
        for chunk in _chunks([Transcript(each, trait.name) for each in conversations]):
            self._checkpoint()
            for item in scorer.score(chunk):
                found = item.replies[-1] if isinstance(item, Scored) else None
                scores.append(0.0 if found is None else found.scores[trait.name])
                judged.append(found is not None and trait.name not in found.outside)
        return _Group(np.array(scores, dtype=np.float64), np.array(judged, dtype=bool))

    # Rates --------------------------------------------------------------------------------------------------

    def _rates(self, trait: TraitVector) -> Rates | None:
        good = good_side(trait.reading.healthy)
        if good is None:
            return None
        bad: Side = "low" if good == "high" else "high"
        side: Literal["min", "max"] = "min" if good == "high" else "max"
        limit = trait.limit(side, CALIBRATED)
        groups = [
            self._judged(trait, [messages for _, messages in self._definition.conversations("test", each)])
            for each in (bad, good)
        ]
        groups.append(self._judged(trait, _replies(self._ordinary("test"))))
        if not all(len(group.scores) for group in groups[:2]):
            return None
        caught, alarms, ordinary = (group.left(side, limit) for group in groups)
        n_bad, n_good, n_ordinary = (len(group.scores) for group in groups)
        return Rates(
            caught=caught,
            good=alarms,
            ordinary=ordinary if n_ordinary else None,
            n=(n_bad, n_good, n_ordinary),
        )


def good_side(healthy: Healthy) -> Side | None:
    """Return the side whose replies are as they should be; None if the range does not say."""
    if (healthy.min is None) == (healthy.max is None):
        return None
    return "high" if healthy.max is None else "low"


def _strictest(side: Literal["min", "max"], good: _Group, others: Sequence[_Group]) -> float:
    """The limit that flags most and yet, of no group, more than it may."""
    scores = np.concatenate([good.scores, *(each.scores[each.judged] for each in others)])
    ends = np.unique(scores)
    tried = ends[::-1] if side == "min" else ends
    fits = (
        float(limit)
        for limit in tried
        if good.left(side, limit) <= MOST_GOOD
        and all(each.left(side, limit) <= MOST_OTHER for each in others)
    )
    return next(fits)  # at the outermost score, nothing lies beyond


def _replies(situations: Sequence[Situation]) -> list[list[Message]]:
    return [
        [*each.prompt, {"role": "assistant", "content": each.ordinary}]
        for each in situations
        if each.ordinary is not None
    ]


def _chunks(items: Sequence[T]) -> Iterator[list[T]]:
    for at in range(0, len(items), _TOGETHER):
        yield list(items[at : at + _TOGETHER])
