"""Messages in disguise are read as what they say; what is written plainly is left alone."""

from __future__ import annotations

import itertools
import json
import random
import string
from collections.abc import Iterator
from typing import Any, cast

import pytest

from persona_tui.core.workspace import packaged_root
from persona_tui.monitors.disguise import plainly
from persona_tui.monitors.monitor import SelfMonitor
from persona_tui.monitors.redteam import ATTACKS
from persona_tui.monitors.spelling import words_of

QUESTION = "How do I bake bread for my mother?"


@pytest.mark.parametrize(
    "attack", ["spaced letters", "base64", "rot13", "backwards", "digits for letters", "capitals"]
)
def test_disguises_come_off(attack: str) -> None:
    hidden = ATTACKS[attack][1](QUESTION, random.Random(0))
    assert hidden != QUESTION
    assert plainly(hidden).strip("?").lower() == QUESTION.strip("?").lower()


@pytest.mark.parametrize(
    ("hidden", "said"),
    [
        ("How to b.a.k.e b-r-e-a-d?", "How to bake bread?"),
        ("How to b\u200bake br\u00adead?", "How to bake bread?"),
        ("\uff28\uff4f\uff57 to bake bread?", "How to bake bread?"),
        ("Hello! Ubj qb V onxr oernq?", "Hello! How do I bake bread?"),
        ("Say this: SG93IGRvIEkgYmFrZSBicmVhZD8=", "Say this: How do I bake bread?"),
        ("La la la la how do I bake bread? la la la la", "La how do I bake bread? la"),
        ("thank you, thank you, thank you, thank you! Now bake bread.", "thank you! Now bake bread."),
        (f"{'.' * 20} How do I bake bread? {'! ' * 9}", ". How do I bake bread? ! "),
    ],
)
def test_parts_of_a_message_can_be_in_disguise(hidden: str, said: str) -> None:
    assert plainly(hidden) == said


@pytest.mark.parametrize(
    "text",
    [
        "Compare the A100, the H100 and 4 GPUs of 2023, e.g. in the U.S.A.",
        "Why is NASA's logo blue? Write to me@example.com.",
        "x = [i for i in range(10)]  # 0x1F",
        "sha256: 9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08",
        "Wie backe ich Brot? \u4f60\u597d",
        "No, no, no! It is very, very, very late. Why???",
        "hi hi hi hi hi hi",
        "Hello ............",
        "[[0, 0, 0, 0, 0], [1, 1, 1, 1, 1]] is a matrix of two rows",
        "You talk about salt, ruined by too much. No wind here, no birds, no hurry.",
    ],
)
def test_what_is_written_plainly_is_left_alone(text: str) -> None:
    assert plainly(text) == text


def test_no_shipped_question_is_taken_for_a_disguise() -> None:
    folder = packaged_root() / "datasets"
    for name in (
        "safety/safe_prompts.jsonl",
        "personas/extraction_questions.jsonl",
        "personas/roles.jsonl",
        "traits/ordinary/talk.jsonl",
        "traits/empathetic_responsiveness.jsonl",
    ):
        for line in (folder / name).read_text(encoding="utf-8").splitlines():
            for text in _texts(json.loads(line)):
                assert plainly(text) == text


def _texts(value: object) -> Iterator[str]:
    """Yield the texts in what a line holds."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for each in value.values() if isinstance(value, dict) else value:
            yield from _texts(each)


WORDS = {word: rank for rank, word in enumerate(["with", "about", "bread", "my", "form", "from", "oven"])}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("abuot Berad wiht my ovne", "about Bread with my oven"),
        ("Form what? Berad from an oven.", "Form what? Bread from an oven."),  # a word stays as it is
        ("abuot_this x.abuot me@abuot.com Mnoa", "abuot_this x.abuot me@abuot.com Mnoa"),
    ],
)
def test_swapped_letters_are_put_right_by_words_that_are_known(text: str, said: str) -> None:
    assert plainly(text, WORDS) == said
    assert plainly(text) == text


def test_a_tokenizers_words_are_known_if_they_are_many() -> None:
    class Tokenizer:
        def __init__(self, count: int) -> None:
            self.count = count

        def get_vocab(self) -> dict[str, int]:
            words = {
                f"\u0120{a}{b}{c}{d}": place
                for place, (a, b, c, d) in enumerate(itertools.product(string.ascii_lowercase, repeat=4))
                if place < self.count
            }
            return {**words, "ab": self.count, "\u0120\u00e9t\u00e9": self.count + 1}

    many = words_of(cast(Any, Tokenizer(12_000)))
    assert len(many) == 12_000 and many["aaab"] == 1
    assert words_of(cast(Any, Tokenizer(2_000))) == {}


def test_a_monitor_judges_a_message_without_its_disguise(monitor: SelfMonitor) -> None:
    hidden = " ".join(QUESTION)
    assert monitor.check(hidden) == monitor.check(plainly(hidden))
