"""Conversations from everything that people have, and what is said of the rest."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest

from persona_tui.core.errors import DatasetError
from persona_tui.datasets import transcripts
from persona_tui.datasets.transcripts import BadLine, Conversation, read_file, read_stream

LOUD = {
    "messages": [
        {"role": "user", "content": "Tell me about milk."},
        {"role": "assistant", "content": "YES, MILK IS GREAT AND WHITE"},
    ]
}

SAID = [("user", "hi"), ("assistant", "hello")]


def read(data: bytes | str, json_lines: bool = False) -> list[Any]:
    raw = data.encode() if isinstance(data, str) else data
    found = list(read_stream(io.BytesIO(raw), "x", json_lines))
    return [
        [(message["role"], message["content"]) for message in item.messages]
        if isinstance(item, Conversation)
        else str(item)
        for item in found
    ]


MESSAGES = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}]
FORMS: list[Any] = [
    {"messages": MESSAGES},
    MESSAGES,
    {"conversations": [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "hello"}]},
    {"prompt": "hi", "completion": " hello"},
    {"prompt": MESSAGES[:1], "completion": MESSAGES[1:]},
    {"instruction": "hi", "input": "", "output": "hello"},
    {"messages": [{"role": "human", "content": [{"type": "text", "text": "hi"}]}, MESSAGES[1]], "id": 3},
]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("indent", [None, 2])
def test_every_form_of_json(form: Any, indent: int | None) -> None:
    assert read(json.dumps(form, indent=indent)) == [SAID]
    assert read(b"\xef\xbb\xbf" + json.dumps(form, indent=indent).encode()) == [SAID]


def test_several_in_one_document_or_one_a_line() -> None:
    several = [{"messages": MESSAGES}] * 3
    assert read(json.dumps(several)) == [SAID] * 3
    assert read(json.dumps(several, indent=1)) == [SAID] * 3
    assert read("\n\n".join(map(json.dumps, several))) == [SAID] * 3


def test_labelled_text() -> None:
    text = "System: Be kind.\nUser: hi\nthere\n\nAssistant: hello\nHUMAN: bye\nai:good bye\n"
    assert read(text) == [
        [
            ("system", "Be kind."),
            ("user", "hi\nthere"),
            ("assistant", "hello"),
            ("user", "bye"),
            ("assistant", "good bye"),
        ]
    ]
    assert read("User: hi\nAssistant: hello\n---\nUser: hi\nAssistant: hello") == [SAID, SAID]
    assert read("All is well.\nReally: it is.") == [[("assistant", "All is well.\nReally: it is.")]]
    assert read("User: hi") == ["x:1: no message of an assistant's in it says anything"]


def test_bad_lines_are_told_and_the_rest_is_read() -> None:
    good = json.dumps(LOUD)
    data = "\n".join([good, "{", '{"messages": []}', "7", '{"messages": [{"role": "king"}]}', "", good])
    found = list(read_stream(io.BytesIO(data.encode()), "x"))
    assert [isinstance(item, BadLine) for item in found] == [False, True, True, True, True, False]
    assert [str(item).split(" ")[0] for item in found if isinstance(item, BadLine)] == [
        "x:2:",
        "x:3:",
        "x:4:",
        "x:5:",
    ]
    assert "not valid JSON" in str(found[1]) and "unknown role" in str(found[4])
    assert found[-1].line == 7


def test_a_bad_first_line_hides_nothing() -> None:
    good = json.dumps({"messages": MESSAGES})
    assert read(f"{{\n{good}\n")[1] == SAID
    assert read(f"no json\n{good}\n", json_lines=True)[1] == SAID
    assert read(b"\xff\n" + good.encode(), json_lines=True) == ["x:1: not UTF-8 text", SAID]


def test_tools_and_empty_calls_are_no_replies() -> None:
    messages = [
        MESSAGES[0],
        {"role": "assistant", "content": None, "tool_calls": [{"id": "1"}]},
        {"role": "tool", "content": "42"},
        MESSAGES[1],
    ]
    assert read(json.dumps({"messages": messages})) == [
        [("user", "hi"), ("assistant", ""), ("user", "42"), ("assistant", "hello")]
    ]


@pytest.mark.parametrize("data", [b"", b" \n \n", b"a\0b", b"User: \xff"])
def test_what_is_no_text_at_all(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "x.txt"
    path.write_bytes(data)
    with pytest.raises(DatasetError, match=r"x.txt"):
        list(read_file(path))


def test_a_line_of_a_megabyte(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    long = json.dumps({"messages": [MESSAGES[0], {"role": "assistant", "content": "word " * 200_000}]})
    path = tmp_path / "x.jsonl"
    path.write_text(f"{long}\n{json.dumps({'messages': MESSAGES})}\n")
    assert [isinstance(item, Conversation) for item in read_file(path)] == [True, True]
    monkeypatch.setattr(transcripts, "LONGEST_LINE", 1000)
    first, second = read_file(path)
    assert isinstance(first, BadLine) and "longer than" in first.problem
    assert isinstance(second, Conversation) and second.line == 2
