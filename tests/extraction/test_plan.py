"""Who is asked what, and with which seed."""

from __future__ import annotations

from collections import Counter

from persona_tui.datasets.schema import Question
from persona_tui.extraction.runner import item_seed, persona_requests, shuffled, split_questions


def make_questions(count: int) -> list[Question]:
    return [Question(id=f"q_{n}", question=f"What of {n}?", category="values") for n in range(count)]


def asked(requests: list) -> list[str]:
    return [request.messages[-1]["content"] for request in requests]


def test_a_seed_depends_on_every_part_and_on_nothing_else() -> None:
    assert item_seed(0, "persona", 1, "q_1") == item_seed(0, "persona", 1, "q_1")
    others = [
        (1, "persona", 1, "q_1"),
        (0, "safety", 1, "q_1"),
        (0, "persona", 2, "q_1"),
        (0, "persona", 1, "q"),
    ]
    assert len({item_seed(0, "persona", 1, "q_1"), *(item_seed(*other) for other in others)}) == 5
    # Parts are kept apart: 1 and 23 are not 12 and 3.
    assert item_seed(0, 1, 23) != item_seed(0, 12, 3)


def test_shuffling_depends_on_the_seed_alone() -> None:
    assert shuffled(range(50), 3) == shuffled(range(50), 3) != shuffled(range(50), 4)
    assert sorted(shuffled(range(50), 3)) == list(range(50))


def test_calibration_questions_are_held_out() -> None:
    extraction, calibration = split_questions(make_questions(100), wanted=100, held_out=16, seed=0)
    assert len(extraction) == 84 and len(calibration) == 16
    assert not {q.id for q in extraction} & {q.id for q in calibration}


def test_at_most_a_fifth_of_few_questions_is_held_out() -> None:
    extraction, calibration = split_questions(make_questions(10), wanted=100, held_out=16, seed=0)
    assert (len(extraction), len(calibration)) == (8, 2)


def test_fewer_questions_can_be_wanted_and_the_same_ones_stay_held_out() -> None:
    few, held_out = split_questions(make_questions(100), wanted=10, held_out=16, seed=0)
    assert len(few) == 10
    assert held_out == split_questions(make_questions(100), wanted=100, held_out=16, seed=0)[1]


def test_a_single_question_serves_both() -> None:
    question = make_questions(1)
    assert split_questions(question, 100, 16, 0) == (question, question)
    assert split_questions([], 100, 16, 0) == ([], [])


def test_together_the_prompts_cover_all_questions_evenly() -> None:
    requests = persona_requests(list("abcde"), make_questions(20), per_prompt=12, seed=0, kind="persona")
    assert set(Counter(asked(requests)).values()) == {3}
    per_prompt = Counter(request.messages[0]["content"] for request in requests)
    assert set(per_prompt.values()) == {12}


def test_the_baseline_is_asked_the_same_questions_without_a_system_prompt() -> None:
    persona = persona_requests(list("abcde"), make_questions(20), 7, 0, "persona")
    baseline = persona_requests([None] * 5, make_questions(20), 7, 0, "baseline")
    assert asked(persona) == asked(baseline)
    assert all(len(request.messages) == 1 for request in baseline)


def test_no_two_requests_have_the_same_seed_even_when_questions_repeat() -> None:
    requests = persona_requests(["a", "b"], make_questions(3), per_prompt=8, seed=0, kind="persona")
    assert len({request.seed for request in requests}) == 16
