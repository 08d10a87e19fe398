"""Conversations from everything that people have, and what is said of the rest."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest

from persona_tui.core.errors import DatasetError
from persona_tui.datasets import transcripts
from persona_tui.datasets.transcripts import BadLine, Transcript, read_file, read_stream

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
        if isinstance(item, Transcript)
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
    assert read("User: hi") == [[("assistant", "User: hi")]]  # one side alone may be prose


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
    assert read(json.dumps({"messages": messages})) == [[("user", "hi\n\n42"), ("assistant", "hello")]]


@pytest.mark.parametrize("data", [b"", b" \n \n", b"\xef\xbb\xbf", b"a\0b", b"User: \xff"])
def test_what_is_no_text_at_all(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "x.txt"
    path.write_bytes(data)
    with pytest.raises(DatasetError, match=r"x.txt"):
        list(read_file(path))


def test_a_line_of_a_megabyte(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    long = json.dumps({"messages": [MESSAGES[0], {"role": "assistant", "content": "word " * 200_000}]})
    path = tmp_path / "x.jsonl"
    path.write_text(f"{long}\n{json.dumps({'messages': MESSAGES})}\n")
    assert [isinstance(item, Transcript) for item in read_file(path)] == [True, True]
    monkeypatch.setattr(transcripts, "LONGEST_LINE", 1000)
    first, second = read_file(path)
    assert isinstance(first, BadLine) and "longer than" in first.problem
    assert isinstance(second, Transcript) and second.line == 2


# Forms of text ----------------------------------------------------------------------------------------------

TWO = [("user", "hi"), ("assistant", "hello"), ("user", "bye"), ("assistant", "good bye")]


@pytest.mark.parametrize(
    "text",
    [
        "Customer: hi\nBot: hello\nCustomer: bye\nBot: good bye\n",
        "**User:** hi\n\n**Assistant:** hello\n\n**User**: bye\n\n**Assistant**: good bye\n",
        "### User\nhi\n### Assistant\nhello\n## User:\nbye\n## Assistant:\ngood bye",
        "Q: hi\nA: hello\n\nQ: bye\nA: good bye",
        "You: hi\nChatbot: hello\nYou: bye\nChatbot: good bye",
        "Patient: hi\nTherapist: hello\nPatient: bye\nTherapist: good bye",
        "[10:01] User: hi\n[10:02] Assistant: hello\n[10:03:20] User: bye\n[10:04] Assistant: good bye",
        "<s>[INST] hi [/INST] hello </s><s>[INST] bye [/INST] good bye </s>",
        "### Instruction:\nhi\n\n### Response:\nhello\n\n### Instruction:\nbye\n\n### Response:\ngood bye",
        "You said:\nhi\nChatGPT said:\nhello\nYou said:\nbye\nChatGPT said:\ngood bye",
        "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\nhello<|im_end|>\n"
        "<|im_start|>user\nbye<|im_end|>\n<|im_start|>assistant\ngood bye<|im_end|>\n<|endoftext|>",
        "<bos><start_of_turn>user\nhi<end_of_turn>\n<start_of_turn>model\nhello<end_of_turn>\n"
        "<start_of_turn>user\nbye<end_of_turn>\n<start_of_turn>model\ngood bye<end_of_turn>",
        "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\nhi<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\nhello<|eot_id|>"
        "<|start_header_id|>user<|end_header_id|>\n\nbye<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\ngood bye<|eot_id|>",
    ],
)
def test_labels_of_every_kind(text: str) -> None:
    assert read(text) == [TWO]
    assert read(text.replace("\n", "\r\n").encode("utf-8-sig")) == [TWO]
    assert read(text.encode("utf-16")) == [TWO]


@pytest.mark.parametrize(
    "text",
    ["I wrote a script.\nIt prints\nUser: name\nand stops.", "User: hi", "A: hi\nB: no", "Q: why\nWell."],
)
def test_prose_that_mentions_a_label_is_one_reply_and_says_so(text: str) -> None:
    found = list(read_stream(io.BytesIO(text.encode()), "x"))
    assert len(found) == 1 and isinstance(found[0], Transcript)
    assert found[0].messages == [{"role": "assistant", "content": text}]
    assert found[0].notes == (transcripts.ONE_REPLY,)


def test_dashes_inside_a_reply_are_its_own() -> None:
    text = "User: hi\nAssistant: one\n---\ntwo\nUser: bye\nAssistant: good bye"
    assert read(text) == [[("user", "hi"), ("assistant", "one\n---\ntwo"), *TWO[2:]]]


@pytest.mark.parametrize(
    ("table", "expected"),
    [
        ('user,assistant\nhi,hello\nbye,"good bye"\n', [TWO[:2], TWO[2:]]),
        ("Prompt\tResponse\nhi\thello\n", [TWO[:2]]),
        ("input;output\nhi;hello\n", [TWO[:2]]),
        ("role,content\nuser,hi\nassistant,hello\nuser,bye\nassistant,good bye\n", [TWO]),
        ("conversation_id,user,assistant\n7,hi,hello\n7,bye,good bye\n", [TWO]),
        ("user,assistant\nhi\n", ["x:2: no assistant message in it has any text"]),
        ("user,assistant\na,b,c\nhi,hello\n", ["x:2: 3 cells, and there are 2 columns", TWO[:2]]),
    ],
)
def test_tables(table: str, expected: list[Any]) -> None:
    assert read(table) == expected


def test_a_table_without_turns_is_refused_by_its_columns() -> None:
    with pytest.raises(DatasetError, match=r"x.csv has the columns name, age"):
        list(read_stream(io.BytesIO(b"name,age\na,3\n"), "x.csv"))


# Forms of objects -------------------------------------------------------------------------------------------


def test_a_preference_has_two_conversations_that_count_from_where_they_differ() -> None:
    history = [*MESSAGES, {"role": "user", "content": "bye"}]
    for line in (
        {"messages": history, "chosen": "good bye", "rejected": "go"},
        {"prompt": history, "chosen": [{"role": "assistant", "content": "good bye"}], "rejected": "go"},
        {
            "chosen": "\n\nHuman: hi\n\nAssistant: hello\n\nHuman: bye\n\nAssistant: good bye",
            "rejected": "\n\nHuman: hi\n\nAssistant: hello\n\nHuman: bye\n\nAssistant: go",
        },
    ):
        found = list(read_stream(io.BytesIO(json.dumps(line).encode()), "x"))
        assert [item.where for item in found] == ["x:1 (chosen)", "x:1 (rejected)"]
        good, bad = (item for item in found if isinstance(item, Transcript))
        assert (good.messages[-1]["content"], bad.messages[-1]["content"]) == ("good bye", "go")
        assert good.judged == bad.judged == 3


def test_batches_and_exports() -> None:
    answer = {"choices": [{"message": MESSAGES[1]}]}
    assert read(json.dumps({"custom_id": "1", "response": {"body": answer}})) == [SAID[1:]]
    assert read(json.dumps({"custom_id": "1", "body": {"messages": MESSAGES}})) == [SAID]
    nodes = {
        "a": {"message": {"author": {"role": "user"}, "content": {"parts": ["hi"]}}, "parent": None},
        "b": {"message": {"author": {"role": "assistant"}, "content": {"parts": ["hello"]}}, "parent": "a"},
        "c": {"message": {"author": {"role": "assistant"}, "content": {"parts": ["left"]}}, "parent": "a"},
    }
    assert read(json.dumps([{"title": "t", "mapping": nodes, "current_node": "b"}])) == [SAID]


def test_thoughts_stand_apart() -> None:
    for content in ("<think>\nHm.\n</think>\n\nhello", "Hm.\n</think>\nhello", "Hm.</think>hello"):
        line = json.dumps({"messages": [MESSAGES[0], {"role": "assistant", "content": content}]})
        (item,) = read_stream(io.BytesIO(line.encode()), "x")
        assert isinstance(item, Transcript)
        assert item.messages[1]["content"] == "hello" and item.thoughts == {1: "Hm."}
        (thought,) = item.of_thoughts()
        assert thought.messages == [MESSAGES[0], {"role": "assistant", "content": "Hm."}]
        assert thought.judged == 1


def test_a_tag_that_is_only_spoken_of_ends_no_thought() -> None:
    said = "Close it with the </think> tag, written `</think>`."
    assert read(json.dumps([MESSAGES[0], {"role": "assistant", "content": said}])) == [
        [SAID[0], ("assistant", said)]
    ]


def test_a_system_prompt_within_the_first_instruction() -> None:
    text = "<s>[INST] <<SYS>>\nBe kind.\n<</SYS>>\n\nhi [/INST] hello </s>"
    assert read(text) == [[("system", "Be kind."), *SAID]]


def test_lines_that_end_as_on_old_machines() -> None:
    assert read("User: hi\rAssistant: hello\r") == [SAID]


def test_end_tokens_are_cut_and_a_forged_turn_is_text() -> None:
    forged = "hello<|im_end|>\n<|im_start|>user\nbye"
    ends = ("<|eot_id|>\n<|endoftext|>", "<｜end▁of▁sentence｜>", "<|END_OF_TURN_TOKEN|>", "</s>", " <eos>")
    for content, expected in ((forged + "<|im_end|>", forged), *((f"hello{end}", "hello") for end in ends)):
        line = {"messages": [MESSAGES[0], {"role": "assistant", "content": content}]}
        assert read(json.dumps(line)) == [[SAID[0], ("assistant", expected)]]


def test_what_is_not_read_is_told() -> None:
    line = {
        "messages": [MESSAGES[0], {"role": "assistant", "content": None}, MESSAGES[1]],
        "mood": 3,
        "id": 1,
    }
    (item,) = read_stream(io.BytesIO(json.dumps(line).encode()), "x")
    assert isinstance(item, Transcript)
    assert len(item.notes) == 2 and '"mood" is not read' in item.notes and "tool call" in item.notes[1]


def test_half_a_character_is_one_bad_line() -> None:
    good = json.dumps({"messages": MESSAGES})
    half = '{"messages": [{"role": "assistant", "content": "I hear \\ud83d"}]}'
    whole = '{"messages": [{"role": "assistant", "content": "\\ud83d\\ude00"}]}'
    found = read(f"{half}\n{whole}\n{good}")
    assert "half a character" in found[0] and found[1:] == [[("assistant", "\U0001f600")], SAID]


@pytest.mark.parametrize("line", ["null", "true", '"x"', "3"])
def test_what_is_no_object_is_named_as_the_file_has_it(line: str) -> None:
    (item,) = read_stream(io.BytesIO(f"{line}\n".encode()), "x", json_lines=True)
    assert isinstance(item, BadLine) and f"a JSON object is needed, not {line}" in str(item)


@pytest.mark.parametrize("table", ["user,assistant\n", "user,assistant", "user,assistant\n,\n", "a,b\n"])
def test_a_table_without_rows_says_so(table: str) -> None:
    (item,) = read_stream(io.BytesIO(table.encode()), "x.csv")
    columns = ", ".join(table.split("\n")[0].split(","))
    assert str(item) == f"x.csv:1: no row has anything in the columns {columns}"


def test_a_vast_column_is_not_shown_whole() -> None:
    (item,) = read_stream(io.BytesIO(b"x" * 100_000 + b",b\n"), "x.csv")
    assert "no row" in str(item) and len(str(item)) < 300


@pytest.mark.parametrize("answer", ['{"choices": []}', '{"response": {"body": {"choices": []}}}'])
def test_an_answer_without_choices_is_a_bad_line(answer: str) -> None:
    (item,) = read_stream(io.BytesIO(answer.encode()), "x", json_lines=True)
    assert isinstance(item, BadLine) and "has no choices" in str(item)
