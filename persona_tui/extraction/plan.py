"""Who is asked what: which questions go with which system prompt, the seed of every single response, and how
much work that is."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

from persona_tui.datasets.schema import Question
from persona_tui.model import Request, conversation

T = TypeVar("T")

# The questions kept for calibration never take more than this share of all questions.
_MOST_HELD_OUT = 0.2

WRITING = 1.5  # what a token costs that is written, in tokens that are read, where that was not measured


@dataclass(frozen=True)
class Work:
    """Tokens that pass through the model: read in one go, or written one after the other."""

    read: int = 0
    written: int = 0

    def __add__(self, other: Work) -> Work:
        return Work(self.read + other.read, self.written + other.written)

    def __mul__(self, times: int) -> Work:
        return Work(self.read * times, self.written * times)

    @property
    def tokens(self) -> int:
        """All of them."""
        return self.read + self.written

    def cost(self, price: float) -> float:
        """What it takes, in tokens read: `price` is that of a token written."""
        return self.read + price * self.written


def usual_tokens(most: int) -> int:
    """How long replies are that may have `most` tokens: short ones mostly fill that, long ones do not."""
    return min(most, 40 + most * 55 // 100)


def in_words(seconds: float) -> str:
    """A duration as one would say it: `about 4 minutes`."""
    if seconds < 50:
        return f"about {max(5, round(seconds / 5) * 5)} seconds"
    minutes = round(seconds / 60)
    if minutes < 90:
        return f"about {minutes} minute{'s' if minutes > 1 else ''}"
    return f"about {seconds / 3600:.1f} hours"


def item_seed(seed: int, *parts: object) -> int:
    """A seed that depends on what an item is, not on where it stands: 62 bits from a hash of all parts."""
    text = "\x1f".join(str(part) for part in (seed, *parts))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 2


def shuffled(items: Sequence[T], seed: int) -> list[T]:
    """The items in an order that depends on the seed alone."""
    result = list(items)
    random.Random(item_seed(seed, "order")).shuffle(result)
    return result


def split_questions(
    questions: Sequence[Question], wanted: int, held_out: int, seed: int
) -> tuple[list[Question], list[Question]]:
    """Divide the questions between extraction and calibration, so that no vector is tuned on what made it.

    Args:
        questions: all there are.
        wanted: the most questions to extract with.
        held_out: the most questions to calibrate with; never more than a fifth of all, and at least one.
        seed: decides which ones.

    Returns:
        The extraction questions and the calibration questions. A single question serves both.
    """
    order = shuffled(questions, seed)
    if len(order) < 2:
        return order, order
    cut = len(order) - max(1, min(held_out, int(len(order) * _MOST_HELD_OUT)))
    return order[: min(wanted, cut)], order[cut:]


def persona_requests(
    system_prompts: Sequence[str | None],
    questions: Sequence[Question],
    per_prompt: int,
    seed: int,
    kind: str,
) -> list[Request]:
    """`per_prompt` requests for every system prompt. None asks without one, so that the template may insert
    its own; an empty one asks with an empty one.

    Each prompt takes up the shuffled questions where the one before left off, so that together they cover all
    questions evenly. Two calls with as many prompts ask exactly the same questions: a difference of their
    means is not a difference of questions.
    """
    order = shuffled(questions, seed)
    requests = []
    for prompt_index, system_prompt in enumerate(system_prompts):
        for sample in range(per_prompt):
            question = order[(prompt_index * per_prompt + sample) % len(order)]
            own_seed = item_seed(seed, kind, prompt_index, question.id, sample // len(order))
            messages = conversation(question.question, system_prompt)
            if system_prompt == "":
                messages = [{"role": "system", "content": ""}, *messages]
            requests.append(Request(messages, own_seed))
    return requests


def dataset_hash(items: Sequence[str]) -> str:
    """A short hash of the texts that a vector was made from; vector files remember it."""
    return hashlib.sha256("\x1e".join(items).encode()).hexdigest()[:16]
