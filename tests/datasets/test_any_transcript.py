"""Whatever a conversation says, it is read back as it was; whatever bytes come, reading ends in an answer."""

from __future__ import annotations

import csv
import io
import itertools
import json
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from persona_tui.core.errors import DatasetError
from persona_tui.datasets.records import decode
from persona_tui.datasets.transcripts import BadLine, Transcript, read_stream

# What people write, without what the readers take away on purpose: outer space, end tokens, thoughts.
WORDS = st.text(
    st.characters(codec="utf-8", exclude_characters="<>\0\r", exclude_categories=("Cc", "Cs")), min_size=1
)
SAID = WORDS.map(str.strip).filter(bool)
TALK = st.lists(st.tuples(SAID, SAID), min_size=1, max_size=4)

few = settings(max_examples=40, deadline=None, derandomize=True)
many = settings(
    max_examples=500, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow]
)


def messages(talk: list[tuple[str, str]]) -> list[dict[str, str]]:
    return [
        {"role": role, "content": text}
        for pair in talk
        for role, text in zip(("user", "assistant"), pair, strict=True)
    ]


def read(data: bytes, name: str = "x") -> list[Any]:
    found = read_stream(io.BytesIO(data), name)
    return [item.messages if isinstance(item, Transcript) else item for item in found]


def is_read_back(talk: list[tuple[str, str]]) -> None:
    said = messages(talk)
    for value in (
        {"messages": said},
        said,
        {"conversations": [{"from": m["role"], "value": m["content"]} for m in said]},
    ):
        for text in (json.dumps(value), json.dumps(value, ensure_ascii=False), json.dumps(value, indent=1)):
            assert read(text.encode()) == [said]
            assert read(text.encode("utf-16")) == [said]
    table = io.StringIO(newline="")
    writer = csv.writer(table)
    writer.writerow(["user", "assistant"])
    writer.writerows(talk)
    assert read(table.getvalue().encode(), "x.csv") == [messages([pair]) for pair in talk]


def ends_in_an_answer(data: bytes) -> None:
    """No exception but our own; every item is a conversation with a reply, or a problem that is told."""
    try:
        found = list(read_stream(io.BytesIO(data), "x"))
    except DatasetError as error:
        assert str(error).startswith("x") and "\n" not in str(error)
        return
    for item in found:
        if isinstance(item, BadLine):
            assert item.problem and "\n" not in str(item)
        else:
            roles = [message["role"] for message in item.messages]
            assert "assistant" in roles[item.judged :] and all(a != b for a, b in itertools.pairwise(roles))


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text() | st.sampled_from(["user", "assistant", "hi"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                [
                    "messages",
                    "role",
                    "content",
                    "from",
                    "value",
                    "prompt",
                    "chosen",
                    "rejected",
                    "choices",
                    "message",
                    "mapping",
                    "body",
                    "response",
                    "parts",
                    "parent",
                    "user",
                    "assistant",
                    "author",
                ]
            ),
            inner,
            max_size=4,
        )
    ),
    max_leaves=12,
)
LINES = st.lists(
    st.sampled_from(
        ["User: hi", "Assistant: hello", "**User:**", "---", "<|im_start|>user", "Q: a", "user,assistant"]
    )
    | st.text(max_size=8),
    max_size=6,
).map("\n".join)
ANYTHING = st.one_of(
    st.binary(max_size=60),
    JSON.map(json.dumps).map(str.encode),
    LINES.map(lambda text: text.encode("utf-8", "surrogatepass")),
)


@few
@given(TALK)
def test_conversations_are_read_back(talk: list[tuple[str, str]]) -> None:
    is_read_back(talk)


@few
@given(ANYTHING)
def test_anything_ends_in_an_answer(data: bytes) -> None:
    ends_in_an_answer(data)


@pytest.mark.stress
@many
@given(TALK)
def test_many_conversations_are_read_back(talk: list[tuple[str, str]]) -> None:
    is_read_back(talk)


@pytest.mark.stress
@many
@given(ANYTHING)
def test_much_ends_in_an_answer(data: bytes) -> None:
    ends_in_an_answer(data)


@few
@given(st.text(st.characters(codec="utf-8")))
def test_text_is_decoded_from_both_encodings(text: str) -> None:
    assert decode(text.encode("utf-8-sig")) == decode(text.encode("utf-16")) == text
