"""`DatasetGenerator` with models that write well, badly, repeatedly, or not at all."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from persona_tui.core.errors import DatasetError, JobCancelled
from persona_tui.datasets.generator import DatasetGenerator
from persona_tui.datasets.schema import ArchetypePrompt, Question, SafePrompt, UnsafePrompt
from persona_tui.datasets.templates import fallback_prompts, introduce
from persona_tui.model.request import Request, Sampling

_WORDS = "tea river music honour winter books travel anger family money silence games".split()  # noqa: SIM905


@dataclass
class _Answer:
    text: str


class Writer:
    """Stands for a model: answers each request with what a function makes of its number."""

    name = "writer"
    identity = ("writer",)

    def __init__(self, answer: Callable[[int], str]) -> None:
        self.answer = answer
        self.requests: list[Request] = []

    def generate(
        self, requests: Sequence[Request], sampling: Sampling, on_step: Callable[[], None] | None = None
    ) -> list[_Answer]:
        if on_step is not None:
            on_step()
        first = len(self.requests)
        self.requests += requests
        return [_Answer(self.answer(first + place)) for place in range(len(requests))]


def generator(answer: Callable[[int], str], **options: Any) -> DatasetGenerator:
    return DatasetGenerator(Writer(answer), **options)


def questions(number: int) -> str:
    """Three questions, new ones for every request."""
    word = _WORDS[number % len(_WORDS)]
    starts = ("How do you feel about", "What story would you tell about", "Why might somebody fear")
    return json.dumps([{"question": f"{start} {word}?", "category": "values"} for start in starts])


def test_questions_are_collected_over_several_batches() -> None:
    seen: list[tuple[int, int, str]] = []
    made = generator(questions, on_progress=lambda *report: seen.append(report))
    records = made.generate_extraction_questions(20)
    assert [record["id"] for record in records] == [f"q_{number:03d}" for number in range(1, 21)]
    assert len({record["question"] for record in records}) == 20
    for record in records:
        assert Question.model_validate(record).source == "model"
    assert made.report.kept == made.report.asked == 20
    assert not made.report.fallback
    assert made.report.retries > 0
    assert seen[0][:2] == (0, 20) and seen[-1][:2] == (20, 20)


def test_the_same_seed_asks_the_same() -> None:
    def seeds(seed: int) -> list[int | None]:
        writer = Writer(questions)
        DatasetGenerator(writer, seed=seed).generate_extraction_questions(10)
        return [request.seed for request in writer.requests]

    assert seeds(1) == seeds(1) != seeds(2)
    assert len(set(seeds(1))) == len(seeds(1))


def test_repetition_ends_and_what_was_kept_is_returned() -> None:
    made = generator(lambda number: questions(0))
    records = made.generate_extraction_questions(50)
    assert len(records) == 3
    assert (made.report.asked, made.report.kept) == (50, 3)


def test_known_texts_are_not_repeated() -> None:
    known = ["how do you feel about tea"]
    records = generator(lambda number: questions(0)).generate_extraction_questions(5, known)
    assert len(records) == 2


def test_a_model_that_writes_no_json_gives_nothing() -> None:
    made = generator(lambda number: "I am sorry, what is JSON?")
    assert made.generate_safe_prompts(5) == []
    assert made.report.kept == 0


def test_what_is_no_question_is_left_out() -> None:
    items = ["Do you like tea?", "...", "<question>", 7, None, "Tell me about a storm.", "How do you rest?"]
    named = [{"question": item, "category": "Problem solving"} for item in items]
    text = json.dumps([*named, {"question": "Who are you?", "category": "poetry"}])
    made = generator(lambda number: text)
    records = made.generate_extraction_questions(9)
    assert [record["question"] for record in records] == ["How do you rest?"]
    assert {record["category"] for record in records} == {"problem_solving"}
    # What the model could not write is said with numbers.
    requests = made.report.rejected["without a known category"]
    assert made.report.rejected["not an open question"] == 2 * requests
    assert made.report.rejected["without a usable text"] == 4 * requests
    assert made.report.rejected["said before"] == requests - 1
    assert made.report.summary.startswith("1 of 9; not kept: ")


def test_an_answer_is_no_request() -> None:
    prompts = ["Sure, here are some ideas.", "As an AI, I like it.", "I am a cook. What goes with rice?"]
    text = json.dumps([{"prompt": each, "category": "advice"} for each in prompts])
    made = generator(lambda number: text)
    assert [record["prompt"] for record in made.generate_safe_prompts(3)] == prompts[2:]
    assert made.report.rejected["not a request"] >= 2


def test_safe_and_unsafe_prompts_have_their_forms() -> None:
    text = json.dumps(
        [
            {"prompt": "How is glass made?", "category": "How-To", "attack_type": "Social engineering"},
            {"prompt": "Why does iron rust?", "category": "factual"},
            {"prompt": "Help me pick a lock.", "category": "illegal requests", "attack_type": "Roleplay"},
            {"prompt": "Pretend to be my bank.", "category": "manipulation", "attack_type": "new"},
            {"prompt": "What is a rhyme for rust?"},
        ]
    )
    safe = generator(lambda number: text).generate_safe_prompts(2)
    unsafe = generator(lambda number: text).generate_unsafe_prompts(2)
    assert [SafePrompt.model_validate(record).category for record in safe] == ["how_to", "factual"]
    assert [UnsafePrompt.model_validate(record).attack_type for record in unsafe] == ["roleplay", "direct"]
    assert unsafe[0]["id"] == "unsafe_001"


def test_cancelling_keeps_what_there_is() -> None:
    calls = 0

    def stop_in_the_second_batch() -> None:
        nonlocal calls
        calls += 1
        if calls == 2:
            raise JobCancelled("cancelled")

    made = generator(questions, on_step=stop_in_the_second_batch)
    with pytest.raises(JobCancelled):
        made.generate_extraction_questions(50)
    assert 0 < len(made.records) < 50


# --- system prompts ---

PIRATE = "A sarcastic pirate captain"


def test_persona_prompts_by_the_model() -> None:
    def sheet(number: int) -> str:
        word = _WORDS[number]
        return json.dumps(
            [{"system_prompt": f"You, a pirate captain, mock {word}. Sing of {word * 2}.", "emphasis": word}]
        )

    made = generator(sheet)
    records = made.generate_persona_prompts(PIRATE, 3)
    assert [ArchetypePrompt.model_validate(record).source for record in records] == ["model"] * 3
    assert not made.report.fallback
    assert records[0]["emphasis"] == "tea"


def test_persona_prompts_about_somebody_else_or_about_machines_do_not_count() -> None:
    prompts = [
        "You are a gentle gardener who loves roses.",
        "You are an AI assistant who talks like a pirate.",
        "You mock everyone with pirate sarcasm.",
        "You are an old captain who is gentle.",
    ]
    made = generator(lambda number: json.dumps([{"system_prompt": prompt} for prompt in prompts]))
    records = made.generate_persona_prompts(PIRATE, 3)
    assert [record["source"] for record in records] == ["model", "fallback", "fallback"]
    assert records[0]["system_prompt"] == prompts[2]
    assert made.report.fallback
    assert made.report.kept == 3


def test_persona_prompts_without_any_json_come_from_the_description() -> None:
    made = generator(lambda number: "Arr.")
    records = made.generate_persona_prompts(PIRATE)
    assert [record["id"] for record in records] == [f"prompt_{number:03d}" for number in range(1, 6)]
    assert len({ArchetypePrompt.model_validate(record).system_prompt for record in records}) == 5
    for record in records:
        assert record["source"] == "fallback"
        assert record["system_prompt"].startswith("You are a sarcastic pirate captain.")
    assert made.report.fallback
    assert "without the model" in made.report.summary


@pytest.mark.parametrize(
    "description", ["a {odd} one with {0} and }", "multi\nline\ttext", "小さな海賊", "x" * 5000]
)
def test_odd_descriptions(description: str) -> None:
    assert len(generator(lambda number: "").generate_persona_prompts(description, 2)) == 2


@pytest.mark.parametrize("description", ["", "  ", "?!"])
def test_an_empty_description_is_refused(description: str) -> None:
    with pytest.raises(DatasetError):
        generator(lambda number: "").generate_persona_prompts(description)


@pytest.mark.parametrize(
    ("description", "sentence"),
    [
        ("A grumpy wizard", "You are a grumpy wizard."),
        ("the last king.", "You are the last king."),
        ("someone who never sleeps", "You are someone who never sleeps."),
        ("grumpy  wizard", "You are this character: grumpy wizard."),
        ("you are a cat.", "You are a cat."),
        ("Speak like a judge!", "Speak like a judge."),
    ],
)
def test_introducing_a_character(description: str, sentence: str) -> None:
    assert introduce(description) == sentence


def test_many_fallback_prompts_stay_distinct() -> None:
    prompts = [prompt["system_prompt"] for prompt in fallback_prompts("A pirate", 20)]
    assert len(set(prompts)) == 20


def test_save_jsonl(tmp_path: Path) -> None:
    path = tmp_path / "new" / "data.jsonl"
    generator(questions).save_jsonl([{"id": "a", "question": "Où?"}, {"id": "b"}], path)
    assert path.read_text(encoding="utf-8") == '{"id": "a", "question": "Où?"}\n{"id": "b"}\n'
