"""Conversations from what people have: chat messages in JSON, JSON Lines of them, or plain text.

Understood are objects with `messages` (`role`, `content`), as chat services and trainers write them; with
`conversations` (`from`, `value`); with a `prompt` and a `completion` or `response`; with an `instruction` and
an `output`; a bare list of messages; and text with a label before each turn:

    User: I failed my test.
    Assistant: That must hurt.

Text without any label is taken for a single reply. What cannot be understood is reported with its line, and
the lines after it are still read.
"""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, Protocol

from persona_tui.core.errors import DatasetError

Message = dict[str, str]

LONGEST_LINE = 16 << 20  # bytes
_LARGEST_DOCUMENT = 256 << 20  # bytes of JSON that is no JSON Lines

_ROLES = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "human": "user",
    "tool": "user",
    "function": "user",
    "observation": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "model": "assistant",
    "bot": "assistant",
    "ai": "assistant",
    "chatbot": "assistant",
}
_LABEL = re.compile(r"\s*(system|user|human|assistant|ai)\s*:[ \t]*(.*)", re.IGNORECASE | re.DOTALL)
_SEPARATOR = re.compile(r"\s*-{3,}\s*")


@dataclass(frozen=True)
class Conversation:
    """One conversation.

    Attributes:
        messages: what was said; contents without surrounding white space.
        where: the file and line it came from, for people.
        line: that line, from 1; 1 for what did not come from lines.
        fields: other keys of its object, such as "id" and "label".
    """

    messages: list[Message]
    where: str
    line: int = 1
    fields: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class BadLine:
    """A conversation that cannot be read or scored, and why. Its text begins with `where`."""

    where: str
    line: int
    problem: str

    def __str__(self) -> str:
        return f"{self.where}: {self.problem}"


Item = Conversation | BadLine


class TranscriptError(DatasetError):
    """Something is no conversation."""


# JSON -------------------------------------------------------------------------------------------------------


def conversation_from_json(value: Any, where: str, line: int = 1) -> Conversation:
    """The conversation that a JSON value holds.

    Raises:
        TranscriptError: it holds none, in a few words.
    """
    fields: dict[str, Any] = {}
    if isinstance(value, dict):
        raw = _raw_messages(value)
        fields = {key: inner for key, inner in value.items() if key in ("id", "label", "system", "turn")}
    elif isinstance(value, list):
        raw = value
    else:
        raise TranscriptError(f"a JSON object is needed, not {json.dumps(value)[:40]}")
    messages = [_message(item, place) for place, item in enumerate(raw, start=1)]
    system = fields.pop("system", None)
    if isinstance(system, str) and system.strip() and messages and messages[0]["role"] != "system":
        messages = [{"role": "system", "content": system.strip()}, *messages]
    return Conversation(_with_reply(messages), where, line, fields)


def parse_line(data: bytes, where: str, line: int) -> Conversation:
    """The conversation on one line of JSON Lines.

    Raises:
        TranscriptError: there is none.
    """
    if len(data) > LONGEST_LINE:
        raise TranscriptError(f"longer than {LONGEST_LINE >> 20} MiB")
    try:
        value = json.loads(data.decode("utf-8-sig"))
    except UnicodeDecodeError:
        raise TranscriptError("not UTF-8 text") from None
    except (ValueError, RecursionError) as error:
        raise TranscriptError(f"not valid JSON ({getattr(error, 'msg', 'too deeply nested')})") from None
    return conversation_from_json(value, where, line)


def _raw_messages(value: dict[str, Any]) -> list[Any]:
    for key in ("messages", "conversations", "conversation"):
        if key in value:
            if not isinstance(value[key], list) or not value[key]:
                raise TranscriptError(f'"{key}" must be a list of messages that is not empty')
            return list(value[key])
    for asked, answered in (
        ("prompt", "completion"),
        ("prompt", "response"),
        ("instruction", "output"),
        ("instruction", "response"),
    ):
        if asked in value and answered in value:
            return [
                *_as_messages(_question(value, asked), "user"),
                *_as_messages(value[answered], "assistant"),
            ]
    raise TranscriptError('"messages" is missing: a list of objects with "role" and "content"')


def _question(value: dict[str, Any], key: str) -> Any:
    extra = value.get("input")
    if key == "instruction" and isinstance(extra, str) and extra.strip():
        return f"{value[key]}\n\n{extra}"
    return value[key]


def _as_messages(value: Any, role: str) -> list[Any]:
    return list(value) if isinstance(value, list) else [{"role": role, "content": value}]


def _message(item: Any, place: int) -> Message:
    if not isinstance(item, dict):
        raise TranscriptError(f"message {place} is no object with a role and a content")
    name = item.get("role", item.get("from"))
    role = _ROLES.get(str(name).casefold())
    if role is None:
        raise TranscriptError(f"message {place} has the unknown role {json.dumps(name)[:40]}")
    return {"role": role, "content": _content(item, place).strip()}


def _content(item: dict[str, Any], place: int) -> str:
    content = item.get("content", item.get("value"))
    if isinstance(content, str):
        return content
    if isinstance(content, list):  # parts, of which only the text counts here
        parts = [part.get("text") if isinstance(part, dict) else part for part in content]
        return "\n".join(part for part in parts if isinstance(part, str))
    if content is None and item.get("tool_calls"):
        return ""
    raise TranscriptError(f"message {place} has no text as its content")


def _with_reply(messages: list[Message]) -> list[Message]:
    if not any(message["role"] == "assistant" and message["content"] for message in messages):
        raise TranscriptError("no message of an assistant's in it says anything")
    return messages


# Text -------------------------------------------------------------------------------------------------------


def conversations_from_text(text: str, where: str) -> Iterator[Item]:
    """The conversations in a labelled text; lines of dashes stand between two of them."""
    start, block = 1, list[str]()
    lines = text.splitlines(keepends=True)
    for number, line in enumerate([*lines, "---"], start=1):
        if not _SEPARATOR.fullmatch(line):
            block.append(line)
            continue
        if "".join(block).strip():
            try:
                yield Conversation(_with_reply(_labelled("".join(block))), f"{where}:{start}", start)
            except TranscriptError as error:
                yield BadLine(f"{where}:{start}", start, str(error))
        start, block = number + 1, []


def _labelled(text: str) -> list[Message]:
    messages: list[Message] = []
    for line in text.splitlines(keepends=True):
        match = _LABEL.fullmatch(line)
        if match:
            messages.append({"role": _ROLES[match[1].casefold()], "content": match[2]})
        elif messages:
            messages[-1]["content"] += line
        elif line.strip():
            break
    if not messages:
        return [{"role": "assistant", "content": text.strip()}]
    return [{"role": each["role"], "content": each["content"].strip()} for each in messages]


# Files and streams ------------------------------------------------------------------------------------------


def read_file(path: Path) -> Iterator[Item]:
    """The conversations in a file of any of the kinds above.

    Raises:
        DatasetError: it cannot be read, or is no text at all.
    """
    try:
        with path.open("rb") as stream:
            yield from read_stream(stream, str(path), path.suffix == ".jsonl")
    except OSError as error:
        raise DatasetError(f"{path} cannot be read: {error.strerror}") from error


def read_stream(stream: BinaryIO, name: str, json_lines: bool = False) -> Iterator[Item]:
    """The conversations in a stream; JSON Lines are read line by line, in constant memory.

    Args:
        stream: bytes.
        name: what to call it.
        json_lines: whether it is known to hold JSON Lines; else the first line decides.

    Raises:
        DatasetError: it is empty, or no text at all.
    """
    lines = bounded_lines(stream)
    first = next((line for line in lines if line[1].strip()), None)
    if first is None:
        raise DatasetError(f"{name} is empty")
    if b"\0" in first[1]:
        raise DatasetError(f"{name} is no text")
    if json_lines or _is_json_line(first[1]):
        yield from _json_lines(first, lines, name)
        return
    rest = first[1] + b"".join(line for _, line in lines)
    begins_as_json = first[1].removeprefix(codecs.BOM_UTF8).lstrip()[:1] in (b"{", b"[")
    yield from _document(rest, name) if begins_as_json else _text(rest, name)


class LineReader(Protocol):
    """What lines are read from; any binary file is one."""

    def readline(self, limit: int = -1, /) -> bytes:
        """The next line, or its first `limit` bytes; b"" at the end."""
        ...


def bounded_lines(stream: LineReader, first: int = 1) -> Iterator[tuple[int, bytes]]:
    """Lines with their numbers. Of one that is too long only a beginning is kept, which still is too long."""
    number = first - 1
    while line := stream.readline(LONGEST_LINE + 1):
        number += 1
        more = line
        while more and not more.endswith(b"\n") and len(more) > LONGEST_LINE:
            more = stream.readline(LONGEST_LINE + 1)
        yield number, line


def _json_lines(first: tuple[int, bytes], rest: Iterator[tuple[int, bytes]], name: str) -> Iterator[Item]:
    yield _item(*first, name)
    for number, line in rest:
        if line.strip():
            yield _item(number, line, name)


def _item(number: int, line: bytes, name: str) -> Item:
    where = f"{name}:{number}"
    try:
        return parse_line(line, where, number)
    except TranscriptError as error:
        return BadLine(where, number, str(error))


def _is_json_line(line: bytes) -> bool:
    """Whether a line is a whole conversation, and not the beginning or all of a document with several."""
    try:
        value = json.loads(line.decode("utf-8-sig"))
    except (ValueError, RecursionError):
        return False
    return isinstance(value, dict) or (isinstance(value, list) and not _are_conversations(value))


def _are_conversations(values: list[Any]) -> bool:
    return any(
        isinstance(item, list) or (isinstance(item, dict) and not {"role", "from"} & item.keys())
        for item in values
    )


def _document(data: bytes, name: str) -> Iterator[Item]:
    """One JSON document over several lines; or JSON Lines whose first line is bad."""
    try:
        if len(data) > _LARGEST_DOCUMENT:
            raise ValueError
        value = json.loads(data.decode("utf-8-sig"))
    except (ValueError, RecursionError):
        for number, line in enumerate(data.splitlines(), start=1):
            if line.strip():
                yield _item(number, line, name)
        return
    several = isinstance(value, list) and _are_conversations(value)
    for place, item in enumerate(value if several else [value], start=1):
        where = f"{name}:{place}" if several else name
        try:
            yield conversation_from_json(item, where, place)
        except TranscriptError as error:
            yield BadLine(where, place, str(error))


def _text(data: bytes, name: str) -> Iterator[Item]:
    if b"\0" in data:
        raise DatasetError(f"{name} is no text")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise DatasetError(f"{name}:{line}: not UTF-8 text") from error
    yield from conversations_from_text(text, name)
