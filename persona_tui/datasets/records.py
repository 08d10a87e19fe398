"""Reads data sets, and other records from the files that people have: JSON Lines, JSON, CSV, TSV, plain text.

Every reader of prompts, queries and data sets begins here. A row that cannot be read is a `Problem` with its
line, and the rows after it are still read; a bad record of a data set is an error that names file and line.
"""

from __future__ import annotations

import codecs
import csv
import io
import json
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from textwrap import shorten
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ValidationError

from persona_tui.core.documents import HALF, LONGEST_LINE, json_value, lines_of, read_plain
from persona_tui.core.errors import DatasetError, nearest
from persona_tui.core.files import safe_name
from persona_tui.core.mistakes import mistake_of
from persona_tui.core.workspace import Workspace, packaged_root
from persona_tui.datasets.schema import (
    ArchetypePrompt,
    CatalogueEntry,
    MonitorQuery,
    MonitorStatement,
    Question,
    SafePrompt,
    SafetyReply,
    UnsafePrompt,
)

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


def named(columns: Iterable[str]) -> str:
    """Return the names of columns, as an error shows them."""
    return shorten(", ".join(columns), 200, placeholder=" …")


def table_rows(text: str) -> Iterator[Row]:
    """Yield the rows of CSV or TSV as dictionaries; column names in small letters. No row is a problem."""
    first = text.lstrip().split("\n", 1)[0]
    delimiter = max(",\t;", key=first.count)
    csv.field_size_limit(LONGEST_LINE)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    columns: list[str] | None = None
    line, filled = 1, False
    try:
        for cells in reader:
            if columns is None:
                columns = [cell.strip().casefold() for cell in cells] if any(cells) else None
            elif len(cells) > len(columns):
                filled = True
                yield line, Problem(f"{len(cells)} cells, and there are {len(columns)} columns")
            elif any(cell.strip() for cell in cells):
                filled = True
                yield line, dict(zip(columns, [*cells, *[""] * len(columns)], strict=False))
            line = reader.line_num + 1
    except csv.Error as error:
        yield line, Problem(f"not valid CSV ({error})")
        return
    if columns is not None and not filled:
        yield 1, Problem(f"no row has anything in the columns {named(columns)}")


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
        OSError: it cannot be read, or is not a regular file.
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


R = TypeVar("R", bound=BaseModel)
Safety = Literal["safe", "unsafe"]

_REFUSALS = Path("safety", "refusals.jsonl")
TRAINING = "training"
FITTED_ON = (TRAINING, "large")  # of the second one, the training split
QUERY_SETS = (TRAINING, "validation", "adversarial", "large", "languages")


def questions_path(workspace: Workspace) -> Path:
    """Return where the extraction questions are."""
    return workspace.datasets / "personas" / "extraction_questions.jsonl"


def archetypes_dir(workspace: Workspace) -> Path:
    """Return the folder with one file of system prompts per archetype."""
    return workspace.datasets / "personas" / "archetypes"


def archetype_path(workspace: Workspace, name: str) -> Path:
    """Return the file of one archetype, which need not exist yet.

    Raises:
        WorkspaceError: the name cannot be a file name.
    """
    return archetypes_dir(workspace) / f"{safe_name(name)}.jsonl"


def safety_path(workspace: Workspace, kind: Safety) -> Path:
    """Return where the safe or the unsafe prompts are."""
    return workspace.datasets / "safety" / f"{kind}_prompts.jsonl"


def refusals_path(workspace: Workspace) -> Path:
    """Return where replies are that refuse, and others that look like it."""
    return workspace.datasets / _REFUSALS


def queries_path(workspace: Workspace, name: str) -> Path:
    """Return where one of `QUERY_SETS`, the labelled queries of self-monitoring, is."""
    return workspace.datasets / "monitors" / f"{name}.jsonl"


def statements_path(workspace: Workspace) -> Path:
    """Return where the statements of tone are."""
    return workspace.datasets / "monitors" / "statements.jsonl"


def list_archetypes(workspace: Workspace) -> list[str]:
    """Return the names of the archetypes that have a file, sorted."""
    return sorted(path.stem for path in archetypes_dir(workspace).glob("*.jsonl"))


def read_questions(workspace: Workspace) -> list[Question]:
    """Return the extraction questions.

    Raises:
        DatasetError: the file is missing, empty or has a bad line; so for the readers below.
    """
    return _read_all(questions_path(workspace), Question)


def read_archetype(workspace: Workspace, name: str) -> list[ArchetypePrompt]:
    """Return the system prompts of one archetype."""
    known = list_archetypes(workspace)
    if name not in known:
        there = f" There are {', '.join(known)}." if known else " Run `persona-tui init`."
        raise DatasetError(f'there is no archetype "{name}".{nearest(name, known) or there}')
    return _read_all(archetype_path(workspace, name), ArchetypePrompt)


def check_archetype_free(workspace: Workspace, name: str, texts: Sequence[str] = ()) -> None:
    """Refuse to write over an archetype with other prompts than `texts`: people may have edited them.

    Raises:
        DatasetError: there is one, or its file is damaged.
    """
    path = archetype_path(workspace, name)
    if path.is_file() and [each.system_prompt for each in read_archetype(workspace, name)] != list(texts):
        raise DatasetError(
            f"{path} may have been written by hand and would be replaced: choose another name, delete the "
            f"file, or use it: --from-archetype {name}"
        )


def catalogue_path(workspace: Workspace) -> Path:
    """Return where the catalogue of ready-made archetypes is; it need not exist."""
    return workspace.datasets / "personas" / "catalogue.jsonl"


def read_catalogue(workspace: Workspace) -> list[CatalogueEntry]:
    """Return the ready-made archetypes, from the workspace or else from the package; none if neither has
    them.

    Raises:
        DatasetError: a line is bad.
    """
    own, packaged = catalogue_path(workspace), packaged_root() / "datasets" / "personas" / "catalogue.jsonl"
    path = own if own.is_file() else packaged
    return list(read_jsonl(path, CatalogueEntry)) if path.is_file() else []


def find_archetype(workspace: Workspace, name: str) -> list[ArchetypePrompt]:
    """Return the system prompts of an archetype: the workspace's own, else the catalogue's.

    Raises:
        DatasetError: neither has it, or a line is bad.
    """
    known = list_archetypes(workspace)
    catalogue = {} if name in known else {entry.name: entry for entry in read_catalogue(workspace)}
    if name not in known and name not in catalogue:
        there = f" There are {', '.join(known)}." if known else " Run `persona-tui init`."
        raise DatasetError(f'there is no archetype "{name}".{nearest(name, [*known, *catalogue]) or there}')
    return catalogue[name].prompts if name in catalogue else read_archetype(workspace, name)


def archetype_prompts(workspace: Workspace, wanted: Sequence[str] | None = None) -> dict[str, list[str]]:
    """Return the system prompts of archetypes, the workspace's and the catalogue's, by name.

    Args:
        workspace: where they are.
        wanted: their names; None = all.

    Raises:
        DatasetError: there is no such archetype, or a line is bad.
    """
    if wanted is None:
        wanted = [*list_archetypes(workspace), *(entry.name for entry in read_catalogue(workspace))]
    return {
        name: [each.system_prompt for each in find_archetype(workspace, name)]
        for name in dict.fromkeys(wanted)
    }


def roles_path(workspace: Workspace) -> Path:
    """Return where the roles of the assistant axis are."""
    return workspace.datasets / "personas" / "roles.jsonl"


def read_roles(workspace: Workspace) -> list[ArchetypePrompt]:
    """System prompts of many roles, one for each; none if the workspace has no such file."""
    path = roles_path(workspace)
    return _read_all(path, ArchetypePrompt) if path.is_file() else []


_PROMPT_KEYS = ("system_prompt", "prompt", "system", "text", "content", "instruction", "persona")
_FORMS = (
    "one prompt per line, or an empty line between prompts; JSON Lines or a JSON list of texts, or of "
    "objects with system_prompt or prompt; CSV or TSV with such a column"
)


def read_prompt_file(path: Path) -> list[str]:
    """Return the system prompts in a file of the user's own.

    Args:
        path: JSON Lines, a JSON list, CSV or TSV, with a key that is plainly the prompt; any other
            file is text, with an empty line between two prompts, or one sentence or more on every line.

    Raises:
        DatasetError: the file cannot be read, has a bad row, or is empty.
    """
    if path.suffix.casefold() in (".yaml", ".yml"):
        raise DatasetError(f"{path}: prompts are not read from YAML, but from {_FORMS}")
    try:
        prompts = [_prompt_of(value, f"{path}:{line}") for line, value in rows(path, _text_prompts)]
    except OSError as error:
        raise DatasetError(f"{path} cannot be read: {error.strerror or error}") from error
    if not prompts:
        raise DatasetError(f"{path} is empty")
    return prompts


def _prompt_of(value: Any, where: str) -> str:
    if isinstance(value, Problem):
        raise DatasetError(f"{where}: {value.text}")
    text = value
    if isinstance(value, dict):
        texts = [key for key, inner in value.items() if key != "id" and isinstance(inner, str)]
        named = [key for key in _PROMPT_KEYS if key in value]
        key = named[0] if named else texts[0] if len(texts) == 1 else None
        messages = value.get("messages")
        if key is None and isinstance(messages, list):
            system = [each for each in messages if isinstance(each, dict) and each.get("role") == "system"]
            text = system[0].get("content") if system else None
        else:
            text = value.get(key) if key is not None else None
    if not isinstance(text, str) or not text.strip():
        raise DatasetError(f"{where}: no prompts were found. What is read: {_FORMS}")
    return " ".join(text.split())


def _text_prompts(text: str) -> Iterator[Row]:
    """Prompts with an empty line between two; without one, lines that are whole sentences are prompts.

    Where every line begins like an item of a list, each is a prompt, without that sign.
    """
    lines = [line.strip() for line in text.splitlines()]
    items = [_ITEM.match(line) for line in lines if line]
    if items and all(items):
        yield from enumerate((item[1] for item in items if item is not None), start=1)
        return
    blocks = re.split(r"\n\s*\n", text.strip())
    if len(blocks) == 1 and all(line[-1] in _SENTENCE_ENDS for line in lines if line):
        blocks = [line for line in lines if line]
    yield from enumerate((block for block in blocks if block.strip()), start=1)


_ITEM = re.compile(r"(?:[-*•]|\d{1,3}[.)])[ \t]+(\S.*)")
_SENTENCE_ENDS = ".!?\"'\u201d\u2019\u2026\u3002"


def read_safety(workspace: Workspace, kind: Safety) -> list[SafePrompt]:
    """Return the safe or the unsafe prompts (the latter are `UnsafePrompt`s)."""
    record = SafePrompt if kind == "safe" else UnsafePrompt
    return _read_all(safety_path(workspace, kind), record)


def read_refusals(workspace: Workspace) -> list[str]:
    """Return the refusals that are read where a model writes too few: the workspace's, or the program's."""
    path = refusals_path(workspace)
    replies = _read_all(path if path.is_file() else packaged_root() / "datasets" / _REFUSALS, SafetyReply)
    return [each.reply for each in replies if each.label == "refused"]


def read_queries(path: Path) -> list[MonitorQuery]:
    """Labelled queries, one of the sets (`queries_path`) or a file of the user's own."""
    return _read_all(path, MonitorQuery)


def read_statements(workspace: Workspace) -> list[MonitorStatement]:
    """Return the statements of tone."""
    return _read_all(statements_path(workspace), MonitorStatement)


def read_jsonl(path: Path, record: type[R]) -> Iterator[R]:
    """Read one record per line, or per row of JSON or CSV; empty lines are skipped.

    Raises:
        DatasetError: the file cannot be read, or a line is bad; the message begins with `file:line`.
    """
    for number, item in scan_jsonl(path, record):
        if isinstance(item, str):
            raise DatasetError(f"{path}:{number}: {item}")
        yield item


def scan_jsonl(path: Path, record: type[R]) -> Iterator[tuple[int, R | str]]:
    """Like `read_jsonl`, but a bad line gives what is wrong with it, so that every mistake can be listed.

    Yields:
        The line's number, from 1, and its record or the mistake.

    Raises:
        DatasetError: the file cannot be read.
    """
    try:
        for number, value in rows(path):
            yield number, value.text if isinstance(value, Problem) else _checked(value, record, number)
    except FileNotFoundError:
        raise DatasetError(f"{path} does not exist. `persona-tui init` writes the data sets.") from None
    except OSError as error:
        raise DatasetError(f"{path} cannot be read: {error.strerror}") from error


def _read_all(path: Path, record: type[R]) -> list[R]:
    records = list(read_jsonl(path, record))
    if not records:
        raise DatasetError(f"{path} is empty")
    return records


def _checked(value: Any, record: type[R], number: int) -> R | str:
    if not isinstance(value, dict):
        return f"a JSON object is needed, not {json.dumps(value)[:40]}"
    try:
        known = record.model_fields
        optional = {key for key in known if not known[key].is_required()}
        given = {key: inner for key, inner in value.items() if inner != "" or key not in optional}
        return record.model_validate({"id": str(number), **given} if "id" in known else given)
    except ValidationError as error:
        return mistake_of(error, value, record)
