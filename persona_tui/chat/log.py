"""A session's file: JSON Lines, one event a line, written as things happen.

    {"kind": "session", "at": "2026-11-20T23:57:12.300Z", "format": 1, "id": ..., "model": ..., ...}
    {"kind": "message", "at": ..., "node": 1, "parent": null, "role": "user", "text": "Hello."}
    {"kind": "reply", "at": ..., "node": 2, "parent": 1, "settings": {...}}
    {"kind": "tokens", "at": ..., "node": 2, "ids": [31, 7], "texts": ["Good", " day."]}
    {"kind": "end", "at": ..., "node": 2, "finish": "stop", "stats": {...}}

Lines are only ever appended, each in one write, so that a process that is killed leaves whole lines and at
most one torn one at the end. Tokens wait until there are a few of them. What events hold is checked when a
file is read, as far as readers use it; unknown fields pass: another version may have written them.
"""

from __future__ import annotations

import contextlib
import json
import os
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from persona_tui import __version__
from persona_tui.chat.conversation import SPOKEN
from persona_tui.core.documents import json_value, lines_of, read_plain
from persona_tui.core.errors import SessionError
from persona_tui.core.files import lock_handle
from persona_tui.core.mistakes import mistake_of
from persona_tui.core.mix import (
    NEW_TOKENS,
    PERCENTILE,
    PLAUSIBILITY,
    STRENGTH,
    TEMPERATURE,
    TOP_P,
    WEIGHT,
    Range,
)
from persona_tui.vectors.metadata import RenderingRecord

FORMAT = 1
UNSAVED = "To talk without saving, start with: chat --no-save"
BATCH_TOKENS = 16
BATCH_SECONDS = 0.5

_PREFIX = b'{"kind": "'  # what every line begins with
_BEGINNING = _PREFIX + b'session"'  # and what the first one does


@dataclass(frozen=True)
class Event:
    """One line of a session's file.

    Attributes:
        kind: what happened.
        fields: everything else, `at` (UTC) included.
        line: its number in the file, from 1.
    """

    kind: str
    fields: Mapping[str, Any]
    line: int


class SessionLog:
    """Appends events to one session's file, which nobody else may write to meanwhile.

    `record` may be called from any thread. The file begins to exist with the first event.
    """

    def __init__(self, path: Path, header: Mapping[str, Any] | None = None) -> None:
        """
        Args:
            path: the file. Its stem is the session's id.
            header: the fields of the first event of a new session; None = the session exists.

        Raises:
            SessionError: the session does not exist, or another process has it open.
        """
        self.path = path
        self.id = path.stem
        self._header = header
        self._lock = threading.RLock()
        self._file: int | None = None
        self._closed = False
        self._waiting: list[tuple[str, dict[str, Any]]] = []  # what has happened and is not written yet
        self._written = 0.0
        if header is None:
            self._open()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def writable(self) -> bool:
        """Whether it is open: something has happened, and it was not closed."""
        return self._file is not None

    def record(self, kind: str, **fields: Any) -> None:
        """Write down what happened.

        Kinds: those of `Conversation`, and besides `persona` (action, name), `note` (anything), or any other;
        readers pass over what they do not know. Tokens of one reply are written together, when there are
        `BATCH_TOKENS` of them or `BATCH_SECONDS` have passed, and before anything else is.

        Raises:
            SessionError: the file cannot be written, or was closed. Tokens and the end of a reply (`SPOKEN`)
                wait all the same, and are written before whatever is next: a full disk tears no hole.
        """
        with self._lock:
            if self._closed:
                raise SessionError(f"session {self.id} is closed")
            if self._file is None:
                try:
                    self._begin()
                except SessionError as error:
                    raise SessionError(f"{error}. {UNSAVED}") from error
            if kind == "tokens" and fields.get("ids"):
                self._wait(fields)
            elif kind in SPOKEN:
                self._waiting.append((kind, fields))
                self.flush()
            else:
                self.flush()
                self._write(kind, fields)

    def flush(self) -> None:
        """Write what waits; after an error the rest goes on waiting."""
        with self._lock:
            while self._waiting:
                self._write(*self._waiting[0])
                del self._waiting[0]

    def close(self) -> None:
        """Write what waits, and let others open the session. A closed log stays closed."""
        with self._lock:
            if self._closed:
                return
            try:
                self.flush()
            finally:
                self._closed = True
                if self._file is not None:
                    os.close(self._file)  # which unlocks it
                    self._file = None

    def _wait(self, fields: Mapping[str, Any]) -> None:
        kind, latest = self._waiting[-1] if self._waiting else ("", {})
        if kind != "tokens" or latest["node"] != fields["node"]:
            latest = {"node": fields["node"], "ids": [], "texts": []}
            self._waiting.append(("tokens", latest))
        latest["ids"].extend(fields["ids"])
        latest["texts"].extend(fields["texts"])
        full = len(latest["ids"]) >= BATCH_TOKENS
        if full or time.monotonic() - self._written >= BATCH_SECONDS:
            self.flush()

    def _begin(self) -> None:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise SessionError(f"{self.path.parent} cannot be made: {error.strerror or error}") from error
        self._open()
        about = {"format": FORMAT, "id": self.id, "version": __version__, "pid": os.getpid()}
        try:
            self._write("session", {**about, **(self._header or {})})
        except SessionError:  # no file without its first line: the next event begins it again
            assert self._file is not None
            os.close(self._file)
            self._file = None
            self.path.unlink(missing_ok=True)
            raise

    def _open(self) -> None:
        flags = os.O_RDWR | os.O_APPEND | (os.O_CREAT | os.O_EXCL if self._header is not None else 0)
        try:
            file = os.open(self.path, flags, 0o600)  # conversations are nobody else's business
        except FileNotFoundError as error:
            raise SessionError(f"there is no session {self.id}") from error
        except OSError as error:
            raise SessionError(f"{self.path} cannot be written: {error.strerror or error}") from error
        try:
            _take(file, self.path)
            _check_own(self.path)
            _mend(file, self.path)
        except OSError as error:
            os.close(file)
            raise SessionError(f"{self.path} cannot be used: {error.strerror or error}") from error
        except BaseException:
            os.close(file)
            raise
        self._file = file

    def _write(self, kind: str, fields: Mapping[str, Any]) -> None:
        """Append one line; after an error the file is as long as before."""
        assert self._file is not None
        event = {"kind": kind, "at": now(), **fields}
        line = f"{json.dumps(event, ensure_ascii=False)}\n".encode("utf-8", "surrogatepass")
        size = os.fstat(self._file).st_size
        try:
            rest = memoryview(line)
            while rest:
                rest = rest[os.write(self._file, rest) :]
        except OSError as error:
            with contextlib.suppress(OSError):
                os.ftruncate(self._file, size)
            raise SessionError(f"{self.path} cannot be written: {error.strerror or error}") from error
        self._written = time.monotonic()


def now() -> str:
    """Return the present time, UTC, to the millisecond."""
    return f"{datetime.now(UTC).isoformat(timespec='milliseconds').removesuffix('+00:00')}Z"


def _take(file: int, path: Path) -> None:
    """Lock a session. The system unlocks it when the process ends, however that happens."""
    if not lock_handle(file):
        raise SessionError(f"session {path.stem} is open {_holder(path)}: close it there first")


def _check_own(path: Path) -> None:
    """Raise unless a file is a session of this folder, or the beginning of one."""
    if not path.resolve().is_relative_to(path.parent.resolve()):
        raise SessionError(f"{path} is a link out of {path.parent}; nothing was written")
    data = next(lines_of(path), b"")
    if data.endswith(b"\n"):
        next(read_events(path), None)  # which raises if the first line is another one's
    elif data[: len(_BEGINNING)] != _BEGINNING[: len(data)]:
        raise SessionError(f"{path} is not a session; nothing was written")


def _holder(path: Path) -> str:
    """Return where a session is open, as far as its file says."""
    with contextlib.suppress(SessionError, KeyError, IndexError):
        events = read_events(path, skip=("tokens",))
        pids = [event.fields["pid"] for event in events if event.kind in ("session", "resumed")]
        return "already" if pids[-1] == os.getpid() else f"in another persona-tui (process {pids[-1]})"
    return "in another persona-tui"


def _mend(file: int, path: Path) -> None:
    """Give the last line its end, or cut it off if it is torn, so that the next one stands alone."""
    data = read_plain(path)
    start = data.rfind(b"\n") + 1
    if start == len(data):
        return
    if _parsed(data[start:]) is None:
        os.ftruncate(file, start)
    else:
        os.write(file, b"\n")


def _parsed(line: bytes) -> dict[str, Any] | None:
    """Return a line's event, None if it is none."""
    try:
        event = json_value(line.decode("utf-8", "surrogatepass"), halves=True)
    except ValueError:
        return None
    return event if isinstance(event, dict) and isinstance(event.get("kind"), str) else None


def read_events(path: Path, skip: tuple[str, ...] = ()) -> Iterator[Event]:
    """Return the events of a session's file, in order. A torn last line is passed over: its process was
    killed.

    Args:
        path: the file.
        skip: kinds that are not wanted; their lines are not even parsed.

    Raises:
        SessionError: the file cannot be read, a line, which is named, is not an event, or a newer version of
            this program wrote it.
    """
    unwanted = tuple(_PREFIX + kind.encode() + b'"' for kind in skip)
    try:
        for number, line in enumerate(lines_of(path), 1):
            if unwanted and line.startswith(unwanted):
                continue
            event = _parsed(line)
            if event is None:
                if not line.endswith(b"\n"):
                    return
                raise SessionError(f"{path}:{number} is not an event of a session: the file is damaged")
            kind = event.pop("kind")
            if number == 1:
                _check_header(path, kind, event)
            if problem := fault_of(kind, event):
                raise SessionError(f"{path}:{number}: this {kind} does not fit: {problem}")
            yield Event(kind, event, number)
    except FileNotFoundError as error:
        raise SessionError(f"there is no session {path.stem}") from error
    except OSError as error:
        raise SessionError(f"{path} cannot be read: {error.strerror or error}") from error


def _check_header(path: Path, kind: str, fields: Mapping[str, Any]) -> None:
    if kind != "session" or not isinstance(fields.get("format"), int):
        raise SessionError(f"{path}:1 is not the start of a session")
    if fields["format"] > FORMAT:
        raise SessionError(f"{path} was written by a newer persona-tui ({fields.get('version')}): update it")


class _Recorded(BaseModel):
    model_config = ConfigDict(extra="allow", frozen=True, strict=True)


def _within(range: Range) -> Any:
    return Field(ge=range.low, le=range.high)


_Strength = Annotated[float, _within(STRENGTH)]
_Weight = Annotated[float, _within(WEIGHT)]
_Percentile = Annotated[float, _within(PERCENTILE)]
_Plausibility = Annotated[float, _within(PLAUSIBILITY)]
_Temperature = Annotated[float, _within(TEMPERATURE)]


class _Floor(_Recorded):
    axis: str
    percentile: _Percentile
    layers: list[int] = []


class _Mix(_Recorded):
    weights: dict[str, _Weight] | None = None
    strength: _Strength = 0.0
    percentile: _Percentile | None = None
    plausibility: _Plausibility = 0.0
    floor: _Floor | None = None
    vectors: dict[str, str | None] = {}


class _Change(_Recorded):
    index: int
    mix: _Mix


class _Sampling(_Recorded):
    temperature: _Temperature = 0.0
    top_p: Annotated[float, _within(TOP_P)] = 1.0
    seed: Annotated[int, Field(ge=0)] | None = None
    max_new_tokens: Annotated[int, _within(NEW_TOKENS)] = 1


class _Revised(_Recorded):
    role: str
    content: str


class _Settings(_Recorded):
    model: str | None = None
    fingerprint: str | None = None
    device: str | None = None
    dtype: str | None = None
    quantization: str | None = None
    threads: int | None = None
    system: str | None = None
    mix: _Mix | None = None
    sampling: _Sampling | None = None
    rendering: RenderingRecord | None = None
    forgotten: int = 0
    prompt_tokens: int = 0
    rows: list[_Mix] = []
    row_changes: list[list[_Change]] = []
    revises: list[_Revised] = []


class _Begun(_Recorded):
    model: str | None = None
    fingerprint: str | None = None
    created: str | None = None


class _Placed(_Recorded):
    node: int


class _Message(_Placed):
    parent: int | None = None
    role: Literal["user", "assistant"]
    text: str
    edit_of: int | None = None


class _Reply(_Placed):
    parent: int | None = None
    settings: _Settings
    continues: bool = False


class _Changed(_Placed):
    settings: _Settings


class _Tokens(_Placed):
    ids: list[int]
    texts: list[str]


class _Mixed(_Recorded):
    node: int | None = None
    index: int | None = None
    mix: _Mix


class _End(_Placed):
    finish: str
    stats: dict[str, Any] | None = None


class _System(_Recorded):
    text: str | None


class _Titled(_Recorded):
    title: str


_KINDS: dict[str, type[_Recorded]] = {
    "session": _Begun,
    "message": _Message,
    "reply": _Reply,
    "settings": _Changed,
    "tokens": _Tokens,
    "mix": _Mixed,
    "end": _End,
    "walk": _Placed,
    "drop": _Placed,
    "system": _System,
    "title": _Titled,
}


def fault_of(kind: str, fields: Mapping[str, Any]) -> str | None:
    """Return what is wrong with an event's fields, in a few words that name the field, or None."""
    model = _KINDS.get(kind)
    if model is None:
        return None
    try:
        model.model_validate(dict(fields))
    except ValidationError as error:
        return mistake_of(error, fields)
    return None
