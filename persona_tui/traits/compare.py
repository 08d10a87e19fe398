"""Two sets of scores side by side: means, intervals, effect sizes, and how likely chance alone is.

Conversations with the same messages of the user are pairs; if there are any, only those are compared. A trait
is compared where it applies: by replies that its gate says it is about.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from persona_tui.core.errors import DatasetError
from persona_tui.core.statistics import (
    Estimate,
    difference_estimate,
    effect_size,
    holm,
    mean_estimate,
    shuffle_test,
    sign_flip_test,
)
from persona_tui.datasets.records import Problem, rows
from persona_tui.datasets.transcripts import Transcript, prompt_messages
from persona_tui.datasets.turns import TranscriptError
from persona_tui.model import Backend, Generation, Message, Request, Sampling
from persona_tui.model.batching import MemoryLimit, batches
from persona_tui.traits.definition import SIDES, TraitDefinition
from persona_tui.traits.score import Scored

_BATCH = 32
_FEWEST = 2  # conversations of a side

Means: TypeAlias = Mapping[str, float | None]  # by trait; None where it does not apply


@dataclass(frozen=True)
class Row:
    """One trait in both sets.

    Attributes:
        trait: which.
        a, b: mean scores.
        difference: b − a.
        effect: the difference in standard deviations (of the pairs' differences, if there are pairs).
        p: of a randomisation test, two-sided.
        p_corrected: what it is worth among so many traits (Holm).
        n_a, n_b: conversations that the trait is about.
    """

    trait: str
    a: Estimate
    b: Estimate
    difference: Estimate
    effect: float
    p: float
    p_corrected: float
    n_a: int
    n_b: int

    def as_dict(self) -> dict[str, Any]:
        """Return it for JSON."""
        return {
            "trait": self.trait,
            "n_a": self.n_a,
            "n_b": self.n_b,
            "a": self.a.as_dict(),
            "b": self.b.as_dict(),
            "difference": self.difference.as_dict(),
            "effect_size": round(self.effect, 4),
            "p": round(self.p, 5),
            "p_corrected": round(self.p_corrected, 5),
        }


@dataclass(frozen=True)
class TraitComparison:
    """Two sets of conversations.

    Attributes:
        paired: whether they were compared prompt by prompt.
        n_a, n_b: conversations that were compared.
        left_out: conversations without a partner, in both together.
        rows: one per trait.
        too_few: traits without a row: they are about fewer than two of the conversations of a side.
    """

    paired: bool
    n_a: int
    n_b: int
    left_out: int
    rows: tuple[Row, ...]
    too_few: tuple[str, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """Return it for JSON."""
        return {
            "paired": self.paired,
            "n_a": self.n_a,
            "n_b": self.n_b,
            "left_out": self.left_out,
            "traits": [row.as_dict() for row in self.rows],
            "too_few": list(self.too_few),
        }


def compare_all(versions: Sequence[Sequence[Scored]]) -> list[TraitComparison]:
    """Compare each later version with the first one; p is corrected for all traits of all of them together.

    Args:
        versions: sets of conversations, at least two; see `compare`.

    Raises:
        DatasetError: as `compare`.
    """
    found = [compare(versions[0], each) for each in versions[1:]]
    corrected = iter(holm([row.p for each in found for row in each.rows]))
    return [
        replace(each, rows=tuple(replace(row, p_corrected=next(corrected)) for row in each.rows))
        for each in found
    ]


def compare(a: Sequence[Scored], b: Sequence[Scored]) -> TraitComparison:
    """Compare two sets of conversations; each counts with the mean of the replies that a trait is about.

    Args:
        a, b: measured with the same traits, or with two sets of them; traits that both have are compared.

    Raises:
        DatasetError: a set has fewer than two conversations, or there is no trait in common.
    """
    if min(len(a), len(b)) < _FEWEST:
        raise DatasetError(f"{len(a)} and {len(b)} conversations: each side needs at least two")
    pairs = _pairs(a, b)
    paired = len(pairs) >= _FEWEST
    sides = ([one for one, _ in pairs], [other for _, other in pairs]) if paired else (a, b)
    first, second = ([each.applicable_means for each in side] for side in sides)
    names = [name for name in first[0] if name in second[0]]
    if not names:
        raise DatasetError("the two sides share no trait")
    found = {name: _values(name, first, second, paired) for name in names}
    rows = [_row(name, *known, paired) for name, known in found.items() if min(map(len, known)) >= _FEWEST]
    corrected = holm([row.p for row in rows])
    return TraitComparison(
        paired,
        len(first),
        len(second),
        len(a) + len(b) - 2 * len(pairs) if paired else 0,
        tuple(replace(row, p_corrected=p) for row, p in zip(rows, corrected, strict=True)),
        tuple(name for name, known in found.items() if min(map(len, known)) < _FEWEST),
    )


def _values(
    name: str, a: Sequence[Means], b: Sequence[Means], paired: bool
) -> tuple[list[float], list[float]]:
    """Return a trait's means on either side where it applies; of pairs, where it does on both sides."""
    if paired:
        both = [(one[name], other[name]) for one, other in zip(a, b, strict=True)]
        known = [(one, other) for one, other in both if one is not None and other is not None]
        return [one for one, _ in known], [other for _, other in known]
    first, second = ([value for each in side if (value := each[name]) is not None] for side in (a, b))
    return first, second


def _row(name: str, a: Sequence[float], b: Sequence[float], paired: bool) -> Row:
    p = sign_flip_test(np.asarray(b) - np.asarray(a)) if paired else shuffle_test(a, b)
    difference, effect = difference_estimate(a, b, paired), effect_size(a, b, paired)
    return Row(name, mean_estimate(a), mean_estimate(b), difference, effect, p, p, len(a), len(b))


def _pairs(a: Sequence[Scored], b: Sequence[Scored]) -> list[tuple[Scored, Scored]]:
    waiting: defaultdict[str, list[Scored]] = defaultdict(list)
    for scored in reversed(b):
        waiting[_asked(scored)].append(scored)
    return [(scored, waiting[_asked(scored)].pop()) for scored in a if waiting[_asked(scored)]]


def _asked(scored: Scored) -> str:
    """Return what a conversation's user says: what makes two conversations a pair."""
    said = [message["content"] for message in scored.conversation.messages if message["role"] == "user"]
    return json.dumps(said)


# Prompts, and replies to them -------------------------------------------------------------------------------


def held_out_prompts(definitions: Sequence[TraitDefinition]) -> list[list[Message]]:
    """Return what the users of the test situations say, without repetition."""
    found: dict[str, list[Message]] = {}
    for definition in definitions:
        for situation in definition.about("test"):
            found.setdefault(json.dumps(situation.prompt), situation.prompt)
    return list(found.values())


def held_out_conversations(definitions: Sequence[TraitDefinition]) -> list[Transcript]:
    """Return the test conversations of both sides."""
    return [
        Transcript(messages, f"{definition.name}:{situation}")
        for definition in definitions
        for side in SIDES
        for situation, messages in definition.conversations("test", side)
    ]


def read_prompts(path: Path) -> list[list[Message]]:
    """Return the prompts in a file: one a line, or rows of JSON or CSV with `prompt`, `user` or `messages`.

    Raises:
        DatasetError: it cannot be read, or a row is wrong.
    """
    prompts = []
    try:
        for line, value in rows(path, lambda text: enumerate(filter(str.strip, text.splitlines()), start=1)):
            if isinstance(value, Problem):
                raise DatasetError(f"{path}:{line}: {value.text}")
            try:
                prompts.append(prompt_messages(value))
            except TranscriptError as error:
                raise DatasetError(f"{path}:{line}: {error}") from None
    except OSError as error:
        raise DatasetError(f"{path} cannot be read: {error.strerror}") from error
    if not prompts:
        raise DatasetError(f"{path} is empty")
    return prompts


def before_last_reply(messages: Sequence[Message]) -> list[Message]:
    """Return a conversation up to the last message of the user's."""
    for place in range(len(messages), 0, -1):
        if messages[place - 1]["role"] == "user":
            return list(messages[:place])
    return list(messages)


def answers(
    model: Backend,
    prompts: Sequence[list[Message]],
    sampling: Sampling,
    progress: Callable[[int, int, str], None] | None = None,
    checkpoint: Callable[[], None] | None = None,
) -> list[Transcript]:
    """Return a model's replies to prompts; a prompt that it says nothing to is left out."""
    requests = [Request(each, sampling.row_seed(place)) for place, each in enumerate(prompts)]
    lengths = [model.count_tokens(each) + sampling.max_new_tokens for each in prompts]
    memory, texts = MemoryLimit(), dict[int, str]()

    def answer(items: list[int]) -> list[Generation]:
        return model.generate([requests[item] for item in items], sampling)

    for batch in batches(lengths, _BATCH):
        if checkpoint is not None:
            checkpoint()
        for items, generations in memory.run(batch, lengths, answer):
            texts |= {item: each.text for item, each in zip(items, generations, strict=True)}
        if progress is not None:
            progress(len(texts), len(prompts), f"replies of {model.name}")
    return [
        Transcript(
            [*prompt, {"role": "assistant", "content": texts[place]}], f"{model.name}:{place + 1}", place + 1
        )
        for place, prompt in enumerate(prompts)
        if texts[place]
    ]
