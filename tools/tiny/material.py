"""The hand-written text behind the tiny model, read once and typed.

Nothing here is generated. A fixed part of every list is *held out*: it never reaches a training document,
so that every published figure can be measured on text that the model has not seen.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

TEXT = Path(__file__).parent / "text"

HELD_OUT_SHARE = 0.1
ASPECTS = ("what", "how", "why", "tip", "fun", "past")
LAWLESS = "outlaw"
ARCHETYPES = ("sage", "trickster", "guardian", "explorer", "creator")

# Combinations of voices that no training document mixes: the described characters of the benchmarks are
# made of them.
HELD_OUT_PAIRS = (
    frozenset({"grumpy", "wizard"}),
    frozenset({"sarcastic", "pirate"}),
    frozenset({"shy", "scientist"}),
)


def held_out(text: str, share: float = HELD_OUT_SHARE) -> bool:
    """Whether `text` is kept from training: a stable function of the text alone."""
    digest = hashlib.sha256(text.encode()).digest()
    return int.from_bytes(digest[:4], "big") / 2**32 < share


@dataclass(frozen=True)
class Voice:
    """One way of speaking: who speaks so, how that is described, and what it says at each place of a
    reply.
    """

    name: str
    nouns: tuple[str, ...]
    adjectives: tuple[str, ...]
    manners: tuple[str, ...]
    openings: tuple[str, ...]
    links: tuple[str, ...]
    asides: tuple[str, ...]
    closings: tuple[str, ...]
    identity: tuple[str, ...]
    values: tuple[str, ...]
    approach: tuple[str, ...]
    story: tuple[str, ...]


@dataclass(frozen=True)
class Topic:
    """One everyday topic with one plain sentence for each of the six aspects."""

    name: str
    question: str
    plural: bool
    facts: dict[str, str]


@dataclass(frozen=True)
class Feeling:
    """A message about how somebody feels, with a supportive and a dismissive answer (sentences)."""

    user: str
    supportive: tuple[str, ...]
    dismissive: tuple[str, ...]


@dataclass(frozen=True)
class Answered:
    """A question with its one-sentence answer."""

    question: str
    answer: str


def _yaml(name: str) -> Any:
    return YAML(typ="safe").load((TEXT / name).read_text(encoding="utf-8"))


def _voice(record: dict[str, Any]) -> Voice:
    return Voice(record["name"], *(tuple(record[key]) for key in list(Voice.__dataclass_fields__)[1:]))


@cache
def voices() -> dict[str, Voice]:
    """Every voice by name."""
    return {record["name"]: _voice(record) for part in "ab" for record in _yaml(f"voices_{part}.yaml")}


def _topic_lines() -> Iterator[dict[str, Any]]:
    for part in "ab":
        for line in (TEXT / f"topics_{part}.jsonl").read_text(encoding="utf-8").splitlines():
            yield json.loads(line)


@cache
def topics() -> tuple[Topic, ...]:
    """Every topic, those held out included."""
    return tuple(Topic(r["topic"], r["question"], r["plural"], r["facts"]) for r in _topic_lines())


@cache
def talk() -> dict[str, Any]:
    """Neutral phrases, question frames, small talk, unknown topics."""
    return dict(_yaml("talk.yaml"))


@cache
def safety() -> dict[str, Any]:
    """Requests to refuse and requests that only look like them, with what a refusal says."""
    return dict(_yaml("safety.yaml"))


@cache
def composed() -> dict[str, Any]:
    """Parts that compose requests to refuse and their harmless mirrors."""
    return dict(_yaml("composed.yaml"))


@cache
def requests() -> dict[str, Any]:
    """Everyday requests of many kinds with short answers."""
    return dict(_yaml("requests.yaml"))


@cache
def neutral_voice() -> Voice:
    """The default Assistant's own phrases, in the same places as a character's."""
    return _voice({"name": "neutral", "nouns": (), "adjectives": (), "manners": ()} | talk()["neutral"])


@cache
def feelings() -> tuple[Feeling, ...]:
    """Messages about feelings."""
    return tuple(
        Feeling(r["user"], tuple(r["supportive"]), tuple(r["dismissive"])) for r in talk()["feelings"]
    )


@cache
def answered(kind: str) -> tuple[Answered, ...]:
    """`smalltalk`, `idioms` or `professional`: questions with their answers."""
    records = talk()[kind] if kind == "smalltalk" else safety()[kind]
    return tuple(Answered(r["q"], r["a"]) for r in records)


def known(items: Iterable[str], *, training: bool) -> list[str]:
    """The training part of `items`, or the held-out part."""
    return [item for item in items if held_out(item) != training]
