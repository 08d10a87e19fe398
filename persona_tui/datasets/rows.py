"""Records from the files that people have: JSON Lines, a JSON list, CSV, TSV, or plain text.

Every reader of prompts, queries and data sets begins here. A row that cannot be read is a `Problem` with its
line, and the rows after it are still read.
"""

from __future__ import annotations

import codecs
import csv
import io
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from persona_tui.core.documents import HALF, LONGEST_LINE, json_value, lines_of, read_plain
from persona_tui.core.errors import DatasetError

UTF16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
TABLES = (".csv", ".tsv")


@dataclass(frozen=True)
class Problem:
    """Why a row cannot be read."""

    text: str


Row = tuple[int, Any]  # the line, from 1, and a value or a Problem


def decode(data: bytes) -> str:
    """Return the text of bytes in UTF-8, or in UTF-16 with a byte order mark.

    Raises:
        DatasetError: they are neither, in a few words.
    """
    try:
        return data.decode("utf-16" if data.startswith(UTF16) else "utf-8-sig")
    except UnicodeDecodeError:
        raise DatasetError("not UTF-8 text") from None


def parse_json(data: bytes) -> Any:
    """Return the value that JSON stands for; a comma after it, left over from a list, is ignored.

    Raises:
        DatasetError: it is not JSON, or has half a character (one of two surrogates) in a text.
    """
    text = decode(data).strip()
    try:
        return json_value(text.removesuffix(",") if text.endswith(("},", "],")) else text)
    except ValueError as error:
        half = str(error) == HALF
        raise DatasetError(HALF if half else f"not valid JSON ({getattr(error, 'msg', error)})") from None


def table_rows(text: str) -> Iterator[Row]:
    """Yield the rows of CSV or TSV as dictionaries; column names in small letters."""
    first = text.lstrip().split("\n", 1)[0]
    delimiter = max(",\t;", key=first.count)
    csv.field_size_limit(LONGEST_LINE)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    columns: list[str] | None = None
    line = 1
    try:
        for cells in reader:
            if columns is None:
                columns = [cell.strip().casefold() for cell in cells] if any(cells) else None
            elif len(cells) > len(columns):
                yield line, Problem(f"{len(cells)} cells, and there are {len(columns)} columns")
            elif any(cell.strip() for cell in cells):
                yield line, dict(zip(columns, [*cells, *[""] * len(columns)], strict=False))
            line = reader.line_num + 1
    except csv.Error as error:
        yield line, Problem(f"not valid CSV ({error})")


def json_line_rows(text: str) -> Iterator[Row]:
    """Yield the values of JSON Lines."""
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            yield number, _parsed(line.encode("utf-8", "surrogatepass"))


def rows(path: Path, plain: Callable[[str], Iterator[Row]] = json_line_rows) -> Iterator[Row]:
    """Yield what a file holds, row by row; JSON Lines in constant memory.

    Args:
        path: `.json`, `.jsonl`, `.csv` and `.tsv` are what their names say; of others the beginning decides.
        plain: reads a text that is no JSON.

    Raises:
        DatasetError: it is not text.
        OSError: it cannot be read, or is not an ordinary file.
    """
    suffix = path.suffix.casefold()
    if suffix == ".jsonl" and not next(lines_of(path), b"").startswith(UTF16):
        for number, line in enumerate(lines_of(path), start=1):
            if line.strip():
                yield number, _parsed(line)
        return
    try:
        text = decode(read_plain(path))
    except DatasetError as error:
        raise DatasetError(f"{path} is {error}") from None
    if suffix in TABLES:
        yield from table_rows(text)
    elif suffix == ".jsonl":
        yield from json_line_rows(text)
    elif suffix != ".json" and not text.lstrip().startswith(("{", "[")):
        yield from plain(text)
    else:
        yield from _document_rows(text)


def _document_rows(text: str) -> Iterator[Row]:
    """One JSON document: a list, an object that holds one list, or an object; else JSON Lines."""
    value = _parsed(text.encode("utf-8", "surrogatepass"))
    if isinstance(value, Problem):
        yield from json_line_rows(text)
        return
    if isinstance(value, dict) and len(value) == 1 and isinstance(inner := next(iter(value.values())), list):
        value = inner
    yield from enumerate(value if isinstance(value, list) else [value], start=1)


def _parsed(line: bytes) -> Any:
    try:
        return parse_json(line)
    except DatasetError as error:
        return Problem(str(error))
