"""Conversations from what people have: chat messages in JSON, JSON Lines of them, tables, or plain text.

Understood are objects with `messages` (`role`, `content`), as chat services and trainers write them; with
`conversations` (`from`, `value`); with a `prompt` and a `completion` or `response`, and pairs like it; with
`chosen` and `rejected`; lines of a batch service; exported chats (their current branch); a bare list of
messages; CSV and TSV with such columns; and text with a label before each turn:

    User: I failed my test.
    Assistant: That must hurt.

`objects` and `labelled` have the tables of forms. Text without turns of both sides is taken for one reply,
and its notes say so. What cannot be understood is told with its line, and the lines after it are still read.
"""

from __future__ import annotations

import io
import itertools
import json
import re
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, Protocol

from persona_tui.core.documents import MOST_BYTES, open_plain
from persona_tui.core.errors import DatasetError
from persona_tui.datasets.objects import TurnsRead, is_object, raw_messages, read_messages, read_object
from persona_tui.datasets.records import TABLES, UTF16, Problem, named, parse_json, table_rows
from persona_tui.datasets.turns import TranscriptError, Turn, style_of, turn

Message = dict[str, str]

_MARK = b"\xef\xbb\xbf"  # of UTF-8
LONGEST_LINE = 16 << 20  # bytes
_LARGEST_DOCUMENT = 256 << 20  # bytes of what is read whole

THOUGHT = "thoughts before a reply are not part of it (`trait score --thoughts` measures both)"
ONE_REPLY = "no turns found; read as one reply"

_SEPARATOR = re.compile(r"\s*-{3,}\s*")


@dataclass(frozen=True)
class Transcript:
    """One conversation.

    Attributes:
        messages: what was said; contents without surrounding white space, end tokens and thoughts.
        where: the file and line it came from, for people.
        line: that line, from 1; 1 for what did not come from lines.
        fields: other keys of its object, such as "id" and "label".
        part: which of several conversations of one object it is, such as "chosen".
        judged: the first message whose reply is measured; those before are only context.
        thoughts: what was thought before a reply, by the reply's place among the messages.
        notes: what was not read, or not as it may have been meant, for people.
    """

    messages: list[Message]
    where: str
    line: int = 1
    fields: dict[str, Any] = field(default_factory=dict)
    part: str = ""
    judged: int = 0
    thoughts: dict[int, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @property
    def says_something(self) -> bool:
        """Whether a reply that counts is more than thoughts."""
        return any(each["role"] == "assistant" and each["content"] for each in self.messages[self.judged :])

    def of_thoughts(self) -> Iterator[Transcript]:
        """Yield a conversation for each thought, which stands where its reply was."""
        for place, thought in self.thoughts.items():
            said = [*self.messages[:place], {"role": "assistant", "content": thought}]
            yield Transcript(said, f"{self.where} (thought)", self.line, self.fields, "thought", place)


@dataclass(frozen=True)
class BadLine:
    """A conversation that cannot be read or scored, and why. Its text begins with `where`."""

    where: str
    line: int
    problem: str

    def __str__(self) -> str:
        return f"{self.where}: {self.problem}"


Item = Transcript | BadLine


# JSON -------------------------------------------------------------------------------------------------------


def conversations_from_json(value: Any, where: str, line: int = 1) -> list[Transcript]:
    """Return the conversations that a JSON value holds: one, or the parts of a preference or a batch.

    Raises:
        TranscriptError: it holds none, in a few words.
    """
    if isinstance(value, dict):
        readings = read_object(value)
    elif isinstance(value, list):
        readings = [read_messages(value)]
    else:
        raise TranscriptError(f"a JSON object is needed, not {json.dumps(value)[:40]}")
    fields = value if isinstance(value, dict) else {}
    kept = {key: fields[key] for key in ("id", "label", "turn") if key in fields}
    if "kto_tag" in fields:
        kept.setdefault("label", fields["kto_tag"])
    return [_conversation(each, where, line, kept, fields.get("system")) for each in readings]


def _conversation(
    reading: TurnsRead, where: str, line: int, fields: dict[str, Any], system: Any = None
) -> Transcript:
    turns, judged = reading.turns, reading.judged
    if isinstance(system, str) and system.strip() and turns and turns[0].role != "system":
        turns, judged = [Turn("system", system.strip()), *turns], judged + 1
    if not any(each.role == "assistant" and (each.content or each.thought) for each in turns[judged:]):
        raise TranscriptError("no assistant message in it has any text")
    thoughts = {place: each.thought for place, each in enumerate(turns) if each.thought}
    return Transcript(
        [{"role": each.role, "content": each.content} for each in turns],
        f"{where} ({reading.part})" if reading.part else where,
        line,
        fields,
        reading.part,
        judged,
        thoughts,
        (*reading.notes, *[THOUGHT] * len(thoughts)),
    )


def parse_line(data: bytes, where: str, line: int) -> list[Transcript]:
    """Return the conversations on one line of JSON Lines; all but a few forms have one.

    Raises:
        TranscriptError: none was found.
    """
    if len(data) > LONGEST_LINE:
        raise TranscriptError(f"longer than {LONGEST_LINE >> 20} MiB")
    try:
        value = parse_json(data)
    except DatasetError as error:
        raise TranscriptError(str(error)) from None
    return conversations_from_json(value, where, line)


def prompt_messages(value: Any) -> list[Message]:
    """Return what a JSON value asks: a text, `prompt` or `user`, or a conversation up to its last user turn.

    Raises:
        TranscriptError: it asks nothing that can be read.
    """
    asked = value if isinstance(value, dict) else {"prompt": value}
    for key in ("prompt", "user", "question", "query", "input", "instruction", "text"):
        text = asked.get(key)
        if isinstance(text, str) and text.strip():
            return [{"role": "user", "content": text.strip()}]
    raw = asked.get("prompt")
    if isinstance(raw, list):
        turns = read_messages(raw).turns
    else:
        turns = read_object(asked)[0].turns if is_object(asked) else []
    last = max((place for place, each in enumerate(turns) if each.role == "user"), default=-1)
    if last < 0:
        raise TranscriptError('"prompt" or "messages" is needed, with a user message')
    return [{"role": each.role, "content": each.content} for each in turns[: last + 1]]


# Text -------------------------------------------------------------------------------------------------------


def conversations_from_text(text: str, where: str) -> Iterator[Item]:
    """Yield the conversations in a text; lines of dashes stand between two of them."""
    for line, block in [(1, text)] if style_of(text) else _blocks(text):
        style = style_of(block)
        found = style.read(block) if style else iter([(1, [turn("assistant", block)])])
        for offset, turns in found:
            at = line + offset - 1
            place = f"{where}:{at}"
            try:
                yield _conversation(TurnsRead("", turns, notes=() if style else (ONE_REPLY,)), place, at, {})
            except TranscriptError as error:
                yield BadLine(place, at, str(error))


def _blocks(text: str) -> Iterator[tuple[int, str]]:
    start, block = 1, list[str]()
    for number, line in enumerate([*text.splitlines(keepends=True), "---"], start=1):
        if not _SEPARATOR.fullmatch(line):
            block.append(line)
            continue
        if "".join(block).strip():
            yield start, "".join(block)
        start, block = number + 1, []


# Files and streams ------------------------------------------------------------------------------------------


def read_file(path: Path) -> Iterator[Item]:
    """Yield the conversations in a file of any of the kinds above.

    Raises:
        DatasetError: it cannot be read, or is not text at all.
    """
    try:
        with open_plain(path) as stream:
            yield from read_stream(stream, str(path), path.suffix == ".jsonl")
    except OSError as error:
        raise DatasetError(f"{path} cannot be read: {error.strerror}") from error


def read_stream(stream: BinaryIO, name: str, json_lines: bool = False) -> Iterator[Item]:
    """Yield the conversations in a stream; JSON Lines are read line by line, in constant memory.

    Args:
        stream: bytes.
        name: what to call it; `.csv` and `.tsv` are what they say.
        json_lines: whether it is known to hold JSON Lines; else the first line decides.

    Raises:
        DatasetError: it is empty, or no text at all.
    """
    lines = bounded_lines(stream)
    first = next((line for line in lines if line[1].removeprefix(_MARK).strip()), None)
    if first is None:
        raise DatasetError(f"{name} is empty")
    if first[1].startswith(UTF16):
        text = _decoded(first[1] + _joined(lines, name), name)
        yield from read_stream(io.BytesIO(text.encode()), name, json_lines)
        return
    if b"\0" in first[1]:
        raise DatasetError(f"{name} is not text")
    if json_lines or _is_json_line(first[1]):
        yield from _json_lines(first, lines, name)
        return
    rest = b"\n" * (first[0] - 1) + first[1] + _joined(lines, name)
    if _is_table(first[1], name):
        yield from _table(rest, name)
    elif first[1].removeprefix(_MARK).lstrip()[:1] in (b"{", b"[") or name.endswith(".json"):
        yield from _document(rest, name)
    else:
        yield from conversations_from_text(_decoded(rest, name), name)


def _decoded(data: bytes, name: str) -> str:
    if len(data) > _LARGEST_DOCUMENT:
        raise DatasetError(f"{name} is too large to read at once: use JSON Lines")
    try:
        text = data.decode("utf-16" if data.startswith(UTF16) else "utf-8-sig")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise DatasetError(f"{name}:{line}: not UTF-8 text") from error
    if "\0" in text:
        raise DatasetError(f"{name} is not text")
    return text.replace("\r\n", "\n").replace("\r", "\n")


class LineReader(Protocol):
    """What lines are read from; any binary file is one."""

    def readline(self, limit: int = -1, /) -> bytes:
        """Return the next line, or its first `limit` bytes; b"" at the end."""
        ...


def _joined(lines: Iterator[tuple[int, bytes]], name: str) -> bytes:
    """Return all lines as one text, which has to come to an end."""
    found, size = [], 0
    for _, line in lines:
        size += len(line)
        if size > MOST_BYTES:
            raise DatasetError(f"{name} is too large to be read as one text: give it as JSON Lines")
        found.append(line)
    return b"".join(found)


def bounded_lines(stream: LineReader, first: int = 1) -> Iterator[tuple[int, bytes]]:
    """Lines with their numbers. Of one that is too long only a beginning is kept, which still is too long."""
    number = first - 1
    while line := stream.readline(LONGEST_LINE + 1):
        number += 1
        more, size = line, len(line)
        while more and not more.endswith(b"\n") and len(more) > LONGEST_LINE:
            more = stream.readline(LONGEST_LINE + 1)
            size += len(more)
            if size > MOST_BYTES:
                raise DatasetError(f"line {number} does not come to an end")
        yield number, line


def _json_lines(first: tuple[int, bytes], rest: Iterator[tuple[int, bytes]], name: str) -> Iterator[Item]:
    for number, line in itertools.chain([first], rest):
        if not line.strip():
            continue
        where = f"{name}:{number}"
        try:
            yield from parse_line(line, where, number)
        except TranscriptError as error:
            yield BadLine(where, number, str(error))


def _values(values: Iterable[tuple[int, Any]], name: str) -> Iterator[Item]:
    """Yield the conversations in values that have been parsed, each with its line or its place."""
    for number, value in values:
        where = f"{name}:{number}" if number else name
        try:
            if isinstance(value, Problem):
                raise TranscriptError(value.text)
            yield from conversations_from_json(value, where, number or 1)
        except TranscriptError as error:
            yield BadLine(where, number or 1, str(error))


def _is_json_line(line: bytes) -> bool:
    """Return whether a line is a whole conversation, not the beginning or all of a document with several."""
    try:
        value = parse_json(line)
    except DatasetError:
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
            raise DatasetError("too large")
        value = parse_json(data)
    except DatasetError:
        with suppress(DatasetError):
            if style_of(text := _decoded(data, name)) is not None:  # "[10:01] User: ..."
                yield from conversations_from_text(text, name)
                return
        lines = enumerate(data.splitlines(), start=1)
        yield from _json_lines(next(lines), lines, name)
        return
    several = isinstance(value, list) and _are_conversations(value)
    yield from _values(enumerate(value, start=1) if several else [(0, value)], name)


# Tables -----------------------------------------------------------------------------------------------------


_TALKS = ("conversation_id", "conversation", "session_id", "thread_id", "chat_id")  # columns that join rows


def _is_table(first_line: bytes, name: str) -> bool:
    """Return whether a name, or the columns on the first line, say that this is CSV or TSV."""
    if name.casefold().endswith(TABLES):
        return True
    cells = re.split(r"[,\t;]", first_line.decode("utf-8-sig", "replace"))
    return len(cells) > 1 and _has_turns({cell.strip().strip('"').casefold() for cell in cells})


def _has_turns(columns: Iterable[str]) -> bool:
    row = dict.fromkeys(columns, "")
    return {"role", "content"} <= row.keys() or is_object(row)


def _table(data: bytes, name: str) -> Iterator[Item]:
    """Return a row for each conversation, or one for each message; a column such as `conversation_id` joins
    rows.
    """
    talks: dict[Any, tuple[int, list[Any]]] = {}
    for line, row in table_rows(_decoded(data, name)):
        if isinstance(row, Problem):
            yield BadLine(f"{name}:{line}", line, row.text)
            continue
        talk = next((row.pop(key) for key in _TALKS if key in row), None)
        if not _has_turns(row):
            raise DatasetError(
                f"{name} has the columns {named(row)}: user and assistant, prompt and response, "
                "input and output, or role and content are needed"
            )
        if talk is None and "role" not in row:
            yield from _values([(line, row)], name)
        else:
            talks.setdefault(talk, (line, []))[1].extend([row] if "role" in row else raw_messages(row))
    yield from _values(((line, messages) for line, messages in talks.values()), name)
