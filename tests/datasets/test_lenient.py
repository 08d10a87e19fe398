"""What models write around, inside and instead of JSON."""

import pytest

from persona_tui.datasets.lenient import find_items

TWO = [{"question": "Who?"}, {"question": "Why?"}]


@pytest.mark.parametrize(
    "text",
    [
        '[{"question": "Who?"}, {"question": "Why?"}]',
        '```json\n[{"question": "Who?"}, {"question": "Why?"}]\n```',
        'Sure! [Two] {questions}:\n[{"question": "Who?"}, {"question": "Why?"}]\nHope that helps :-]',
        '{"questions": [{"question": "Who?"}, {"question": "Why?"}]}',
        '{"data": {"questions": [{"question": "Who?"}, {"question": "Why?"}]}}',
        '{"question": "Who?"}\n{"question": "Why?"}',
        '[[{"question": "Who?"}], [{"question": "Why?"}]]',
        '[{"question": "Who?"}, {"question": "Why?"}, ]',
        '[{"question": "Who?",}, {"question": "Why?",}]',
        "[{“question”: “Who?”}, {“question”: “Why?”}]",
    ],
)
def test_whole_answers(text: str) -> None:
    assert find_items(text) == TWO


@pytest.mark.parametrize(
    "text",
    [
        '[{"question": "Who?"}, {"question": "Why?"}, {"question": "Wh',
        '[{"question": "Who?"}, {"question": "Why?"}, {"question"',
        '[{"question": "Who?"}, {"question": "Why?"},',
        '[{"question": "Who?"}, {"question": "Why?"}',
        '{"questions": [{"question": "Who?"}, {"question": "Why?"}, {"quest',
        '```json\n{"a": {"questions": [{"question": "Who?"}, {"question": "Why?"}, {',
    ],
)
def test_of_a_cut_off_answer_the_whole_items_are_kept(text: str) -> None:
    assert find_items(text) == TWO


@pytest.mark.parametrize(
    "text",
    ["", "   ", "I cannot do that.", "[]", "{}[", "[[[[", '"', "null", "[1, 2]", "{" * 5000, "[" * 5000],
)
def test_nothing_usable(text: str) -> None:
    assert [item for item in find_items(text) if item] == []


def test_strings_count_as_items() -> None:
    assert find_items('["Who are you?", "Why?"]') == ["Who are you?", "Why?"]
    assert find_items('["Who are you?", "Wh') == ["Who are you?"]


def test_unicode_brackets_and_line_breaks_inside_strings() -> None:
    assert find_items('[{"question": "Où [vas]-tu {là}?\nÀ 北京?"}]') == [
        {"question": "Où [vas]-tu {là}?\nÀ 北京?"}
    ]


def test_lists_of_words_inside_an_item_stay_there() -> None:
    item = {"system_prompt": "You are wise.", "traits": ["wise", "calm"]}
    assert find_items(f"[{str(item).replace(chr(39), chr(34))}]") == [item]
