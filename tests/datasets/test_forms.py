"""The objects that trainers, services and exports of chats are made of, each as they write it."""

from __future__ import annotations

import io
import json
from typing import Any

import pytest

from persona_tui.datasets.transcripts import BadLine, Transcript, read_stream

HI, YO = "Hi.", "Yo."
U = {"role": "user", "content": HI}
A = {"role": "assistant", "content": YO}
SAID = [("user", HI), ("assistant", YO)]
CALL = {"id": "1", "type": "function", "function": {"name": "weather", "arguments": "{}"}}
SKIPPED = "skipped"
LEFT_OUT = "left out"


def text(value: str, kind: str = "text") -> dict[str, Any]:
    return {"type": kind, "text": value}


def completion(**message: Any) -> dict[str, Any]:
    return {"id": "c", "choices": [{"index": 0, "message": {"role": "assistant", **message}}]}


ONE: dict[str, tuple[Any, list[tuple[str, str]], str]] = {
    "alpaca with history": (
        {"instruction": "And?", "input": "", "output": "Rain.", "history": [[HI, YO]], "system": "Brief."},
        [("system", "Brief."), *SAID, ("user", "And?"), ("assistant", "Rain.")],
        "",
    ),
    "alpaca with input": (
        {"instruction": "Translate.", "input": "Hallo", "output": YO},
        [("user", "Translate.\n\nHallo"), ("assistant", YO)],
        "",
    ),
    "dolly with context": (
        {"instruction": "When?", "context": "It was 1900.", "response": "In 1900.", "category": "closed_qa"},
        [("user", "When?\n\nIt was 1900."), ("assistant", "In 1900.")],
        '"category" is not read',
    ),
    "kto": ({"prompt": [U], "completion": [A], "label": True}, SAID, ""),
    "kto of llama-factory": ({"messages": [U, A], "label": False}, SAID, ""),
    "a labelled prompt": ({"prompt": f"Human: {HI}\n\nAssistant:", "response": YO}, SAID, ""),
    "sharegpt with tools": (
        {
            "conversations": [
                {"from": "human", "value": HI},
                {"from": "function_call", "value": "{}"},
                {"from": "observation", "value": "rain"},
                {"from": "gpt", "value": YO},
            ]
        },
        [("user", f"{HI}\n\nrain"), ("assistant", YO)],
        SKIPPED,
    ),
    "openai tool calls": (
        {
            "messages": [
                U,
                {"role": "assistant", "content": None, "tool_calls": [CALL]},
                {"role": "tool", "tool_call_id": "1", "content": "rain"},
                A,
            ],
            "tools": [],
        },
        [("user", f"{HI}\n\nrain"), ("assistant", YO)],
        SKIPPED,
    ),
    "openai function call": (
        {"messages": [U, {"role": "assistant", "content": None, "function_call": {"name": "w"}}, A]},
        SAID,
        SKIPPED,
    ),
    "openai refusal": (
        {"messages": [U, {"role": "assistant", "content": None, "refusal": "I can't."}]},
        [("user", HI), ("assistant", "I can't.")],
        "",
    ),
    "openai refusal part": (
        {"messages": [U, {"role": "assistant", "content": [{"type": "refusal", "refusal": "I can't."}]}]},
        [("user", HI), ("assistant", "I can't.")],
        "",
    ),
    "parts with an image": (
        {
            "messages": [
                {"role": "user", "content": [text(HI), {"type": "image_url", "image_url": {"url": "x"}}]},
                A,
            ]
        },
        SAID,
        LEFT_OUT,
    ),
    "batch request": ({"custom_id": "1", "method": "POST", "body": {"messages": [U, A]}}, SAID, ""),
    "batch answer": (
        {"custom_id": "1", "response": {"status_code": 200, "body": completion(content=YO)}, "error": None},
        SAID[1:],
        "",
    ),
    "batch refusal": (
        {"custom_id": "1", "response": {"body": completion(content=None, refusal="I can't.")}, "error": None},
        [("assistant", "I can't.")],
        "",
    ),
    "responses": (
        {
            "object": "response",
            "output": [
                {"type": "reasoning", "summary": []},
                {"type": "message", "role": "assistant", "content": [text(YO, "output_text")]},
            ],
        },
        SAID[1:],
        SKIPPED,
    ),
    "anthropic batch": (
        {
            "custom_id": "1",
            "result": {"type": "succeeded", "message": {"role": "assistant", "content": [text(YO)]}},
        },
        SAID[1:],
        "",
    ),
    "anthropic tools": (
        {
            "messages": [
                {"role": "user", "content": [text(HI)]},
                {"role": "assistant", "content": [{"type": "tool_use", "id": "1", "name": "w", "input": {}}]},
                {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "1", "content": "rain"}]},
                {"role": "assistant", "content": [text(YO)]},
            ]
        },
        SAID,
        SKIPPED,
    ),
    "gemini": (
        {
            "systemInstruction": {"parts": [{"text": "Brief."}]},
            "contents": [
                {"role": "user", "parts": [{"text": HI}]},
                {"role": "model", "parts": [{"text": YO}]},
            ],
        },
        [("system", "Brief."), *SAID],
        "",
    ),
    "ai studio": (
        {
            "chunkedPrompt": {
                "chunks": [
                    {"text": HI, "role": "user"},
                    {"text": "Hm.", "role": "model", "isThought": True},
                    {"text": YO, "role": "model"},
                ]
            }
        },
        SAID,
        "thoughts before a reply",
    ),
    "claude": (
        {
            "uuid": "1",
            "chat_messages": [
                {"text": HI, "sender": "human", "content": [text(HI)], "files": []},
                {"text": YO, "sender": "assistant", "content": [text(YO)]},
            ],
        },
        SAID,
        '"uuid" is not read',
    ),
    "open webui": ({"id": "1", "title": "T", "chat": {"models": [], "messages": [U, A]}}, SAID, ""),
    "lmsys": ({"conversation": [U, A], "model": "m", "turn": 1}, SAID, '"model" is not read'),
}

TWO: dict[str, Any] = {
    "anthropic-hh": {
        "chosen": f"\n\nHuman: {HI}\n\nAssistant: Good.",
        "rejected": f"\n\nHuman: {HI}\n\nAssistant: Bad.",
    },
    "dpo": {"prompt": HI, "chosen": "Good.", "rejected": "Bad."},
    "dpo with messages": {
        "prompt": [U],
        "chosen": [{"role": "assistant", "content": "Good."}],
        "rejected": [{"role": "assistant", "content": "Bad."}],
    },
    "dpo of openai": {
        "input": {"messages": [U], "tools": []},
        "preferred_output": [{"role": "assistant", "content": "Good."}],
        "non_preferred_output": [{"role": "assistant", "content": "Bad."}],
    },
    "dpo of llama-factory": {
        "conversations": [{"from": "human", "value": HI}],
        "chosen": {"from": "gpt", "value": "Good."},
        "rejected": {"from": "gpt", "value": "Bad."},
    },
}

BAD: dict[str, tuple[Any, str]] = {
    "a request that failed": (
        {"custom_id": "1", "response": {"status_code": 400, "body": {"error": {"message": "too long"}}}},
        "this request has failed: too long",
    ),
    "a request without an answer": (
        {"custom_id": "1", "response": None, "error": {"code": "batch_expired"}},
        "this request has failed: batch_expired",
    ),
    "anthropic's": (
        {"custom_id": "1", "result": {"type": "errored", "error": {"error": {"message": "overloaded"}}}},
        "this request has failed: overloaded",
    ),
    "a bad history": (
        {"instruction": HI, "output": YO, "history": [HI]},
        '"history" must be a list of pairs',
    ),
}


def read(value: Any) -> list[Transcript | BadLine]:
    return list(read_stream(io.BytesIO(json.dumps(value).encode()), "talk.jsonl", True))


@pytest.mark.parametrize("name", ONE)
def test_one_conversation(name: str) -> None:
    value, said, noted = ONE[name]
    (found,) = read(value)
    assert isinstance(found, Transcript), str(found)
    assert [(each["role"], each["content"]) for each in found.messages] == said
    assert noted in " ".join(found.notes) and (bool(noted) or not found.notes)


@pytest.mark.parametrize("name", TWO)
def test_two_replies_to_one_message(name: str) -> None:
    found = read(TWO[name])
    assert all(isinstance(each, Transcript) for each in found)
    assert [(each.part, each.messages) for each in found if isinstance(each, Transcript)] == [
        (part, [U, {"role": "assistant", "content": reply}])
        for part, reply in (("chosen", "Good."), ("rejected", "Bad."))
    ]


@pytest.mark.parametrize("name", BAD)
def test_what_has_no_answer_says_why(name: str) -> None:
    value, problem = BAD[name]
    (found,) = read(value)
    assert isinstance(found, BadLine) and problem in found.problem


def test_a_label_of_llama_factory_is_a_label() -> None:
    talk = [{"from": "human", "value": HI}, {"from": "gpt", "value": YO}]
    (found,) = read({"conversations": talk, "kto_tag": True})
    assert isinstance(found, Transcript) and found.fields["label"] is True and not found.notes
