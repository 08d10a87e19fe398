"""JSON and YAML from strangers: what is too deep, or stands for too much, is refused where it is read."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from persona_tui.core.documents import DEEPEST, json_value
from persona_tui.core.yaml_documents import MOST_YAML, NotYaml, yaml_value

BOMB = "a0: &a0 [x,x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"a{level}: &a{level} [{','.join([f'*a{level - 1}'] * 10)}]\n" for level in range(1, 12)
)
BLOCK = "a:\n" + "\n".join(f"{' ' * level}- " for level in range(1, 500))
DEEP = {
    "flow": "[" * 5000,
    "block": BLOCK,
    "bomb": BOMB,
    "itself": "a: &a [*a]",
    "long": "#" * MOST_YAML + "\n",
}


@pytest.mark.parametrize("round_trip", [True, False])
@pytest.mark.parametrize("text", DEEP.values(), ids=DEEP)
def test_yaml_that_grows_without_end_is_refused(text: str, round_trip: bool) -> None:
    with pytest.raises(NotYaml):
        yaml_value(text, round_trip)


ODD = {
    "a: \x1f": (1, "U\\+001F"),
    "a: 1\nb: \x0c": (2, "U\\+000C"),
    "!!bool maybe": (None, "tag"),
    "!!float ''": (None, "tag"),
    "a: !!timestamp 2020-13-99": (None, "timestamp|month"),
    "a: 1\nb: [": (2, "expected|did not"),
}


@pytest.mark.parametrize("round_trip", [True, False])
@pytest.mark.parametrize("text", ODD)
def test_what_is_wrong_with_yaml_is_one_line(text: str, round_trip: bool) -> None:
    line, words = ODD[text]
    with pytest.raises(NotYaml, match=words) as caught:
        yaml_value(text, round_trip)
    assert len(str(caught.value).splitlines()) == 1
    assert line is None or caught.value.line == line


@pytest.mark.parametrize("round_trip", [True, False])
def test_ordinary_aliases_and_levels_are_read(round_trip: bool) -> None:
    assert yaml_value("a: &x [1, 2]\nb: *x\nc: {d: *x}\n", round_trip)["c"]["d"] == [1, 2]
    value = yaml_value("[" * (DEEPEST - 1) + "]" * (DEEPEST - 1), round_trip)
    assert isinstance(value, list)


@pytest.mark.parametrize("levels", [DEEPEST + 1, 900, 5000, 100_000])
def test_json_that_is_too_deep_is_refused(levels: int) -> None:
    for text in ("[" * levels + "]" * levels, '{"a":' * levels + "1" + "}" * levels):
        with pytest.raises(ValueError, match="levels deep"):
            json_value(text)
        with pytest.raises(ValueError, match="levels deep"):
            json_value(text.encode())


@pytest.mark.parametrize("read", [json_value, yaml_value])
def test_a_number_of_thousands_of_digits_is_refused_in_our_words(read: Callable[[str], object]) -> None:
    with pytest.raises(ValueError, match="thousands of digits") as caught:
        read(f'{{"a": {"9" * 5000}}}')
    assert "sys." not in str(caught.value)


def test_json_within_the_limit_is_read() -> None:
    assert json_value("[" * DEEPEST + "]" * DEEPEST)
    assert json_value('[{"a": [1, 2]}' + ',{"a": [1]}' * 500 + "]")[0] == {"a": [1, 2]}


def test_half_a_character_is_refused_or_taken() -> None:
    for text in ('["x \\ud83d"]', '{"\\udc00": 1}', '["\ud83d"]'):
        with pytest.raises(ValueError, match="half a character"):
            json_value(text)
        assert json_value(text, halves=True)
    with pytest.raises(ValueError, match="half a character"):
        json_value(b'["x \\ud83d"]')
    assert json_value('["\\ud83d\\ude00 \\\\ud83d"]') == ["\N{GRINNING FACE} \\ud83d"]
