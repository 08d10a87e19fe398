"""Flags lines of training data that break a policy: any size, constant memory, and it can be killed.

1. Lines are read in chunks, scored together, and those with a breach are copied, byte for byte.
2. Beside the copies, a file of reasons has a line for every flagged and for every unreadable line.
3. About once a second a small file remembers how far both are. After a crash, what was written beyond it is
   cut off and the work goes on from there; the beginning of the data must still be the same.
4. Only when all is done do both files take their names. An earlier result stays until then.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

from persona_tui.core.documents import json_value, open_plain, read_plain
from persona_tui.core.errors import DatasetError, WorkspaceError
from persona_tui.core.files import atomic_write_text, only_writer
from persona_tui.datasets.records import UTF16
from persona_tui.datasets.transcripts import (
    BadLine,
    Transcript,
    bounded_lines,
    parse_line,
)
from persona_tui.datasets.turns import TranscriptError
from persona_tui.traits.policy import Policy
from persona_tui.traits.score import CHUNK, CHUNK_CHARACTERS, Scored, TraitScorer

REJECTED = "rejected"  # the part of a preference that is not to be learnt
_SAVE_EVERY = 1.0  # seconds
_HASHED_AT_ONCE = 1 << 20

# What only writing comes to; such an error names no file.
_NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@dataclass(frozen=True)
class Count:
    """How far a curation is.

    Attributes:
        offset: bytes of the data that are done.
        line: lines that are done, the empty ones too.
        lines: of these, lines that are not empty.
        flagged: lines that break the policy.
        bad: lines that could not be read.
        output, reasons: bytes written to either file.
        digest: SHA-256 of the data up to the offset.
    """

    offset: int = 0
    line: int = 0
    lines: int = 0
    flagged: int = 0
    bad: int = 0
    output: int = 0
    reasons: int = 0
    digest: str = hashlib.sha256().hexdigest()


@dataclass(frozen=True)
class Curated:
    """The outcome of a curation.

    Attributes:
        lines, flagged, bad: see `Count`.
        output, reasons: the two files.
        resumed_at: the line that an interrupted run was taken up at, or None.
        seconds: of this run.
    """

    lines: int
    flagged: int
    bad: int
    output: Path
    reasons: Path
    resumed_at: int | None
    seconds: float


@dataclass(frozen=True)
class _Line:
    number: int
    raw: bytes
    read: list[Transcript] | BadLine


class _HashedLines:
    """Reads lines, and knows the hash of all that was read."""

    def __init__(self, data: BinaryIO, begun: Any) -> None:
        self._data = data
        self._hash = begun

    def readline(self, limit: int = -1) -> bytes:
        """Read a line, as from a file."""
        line = self._data.readline(limit)
        self._hash.update(line)
        return line

    def here(self) -> tuple[int, str]:
        """Return the offset, and the hash of everything before it."""
        return self._data.tell(), self._hash.hexdigest()


@dataclass
class Curation:
    """One run over one file.

    Attributes:
        scorer: measures the conversations.
        policy: what is allowed.
        source: JSON Lines.
        output: gets the flagged lines.
        reasons: gets why; by default beside the output.
        restart: whether to forget an interrupted run.
        progress: called with KiB done, KiB in all, and a few words.
        checkpoint: called between chunks; may raise to stop.
        on_bad: told of every line that cannot be read.
        notes: what was not read of the lines, and of how many.
    """

    scorer: TraitScorer
    policy: Policy
    source: Path
    output: Path
    reasons: Path | None = None
    restart: bool = False
    progress: Callable[[int, int, str], None] = lambda done, total, note: None
    checkpoint: Callable[[], None] = lambda: None
    on_bad: Callable[[BadLine], None] = lambda line: None
    notes: Counter[str] = field(default_factory=Counter)
    _count: Count = field(default_factory=Count)

    def run(self) -> Curated:
        """Do the work, or what is left of it.

        Raises:
            DatasetError: the data cannot be read; or an interrupted run was about other data or other rules.
            WorkspaceError: a file cannot be written.
            JobCancelled: somebody asked for that; the next run goes on.
        """
        started = time.monotonic()
        files = self.output, self.reasons or reasons_beside(self.output)
        if len({path.resolve() for path in (self.source, *files)}) < 3:
            raise DatasetError("the data, the flagged lines and the reasons must be three different files")
        try:
            with self._alone(files), open_plain(self.source) as data:
                if data.read(2) in UTF16:
                    raise DatasetError(f"{self.source} is UTF-16; convert it: iconv -f UTF-16 -t UTF-8")
                data.seek(0)
                begun, resumed = self._take_up(data, [_partial(path) for path in files])
                with _partial(files[0]).open("ab") as flagged, _partial(files[1]).open("ab") as why:
                    self._work(data, begun, flagged, why)
                if self._count.bad == self._count.lines:
                    self._nothing_read(files)
                for path in files:
                    os.replace(_partial(path), path)
                self._state.unlink(missing_ok=True)
        except OSError as error:
            where = error.filename or (self.output if error.errno in _NO_SPACE else self.source)
            kind = DatasetError if str(where) == str(self.source) else WorkspaceError
            raise kind(f"{where}: {error.strerror or error}") from error
        count, seconds = self._count, time.monotonic() - started
        return Curated(count.lines, count.flagged, count.bad, *files, resumed, seconds)

    @contextmanager
    def _alone(self, files: Sequence[Path]) -> Iterator[None]:
        """Keep other runs away from the same outputs; in one order, so that no two wait for each other."""
        with ExitStack() as locks:
            for path in sorted(path.resolve() for path in files):
                locks.enter_context(
                    only_writer(path.parent, f"curating {path.name}", name=f".{path.name}.lock")
                )
            yield

    def _nothing_read(self, files: Sequence[Path]) -> NoReturn:
        """Leave what there was before: nothing was judged."""
        with _partial(files[1]).open("rb") as why:
            first = json.loads(why.readline() or b"{}")
        for path in (*map(_partial, files), self._state):
            path.unlink(missing_ok=True)
        if not self._count.lines:
            raise DatasetError(f"{self.source} is empty, so nothing was written")
        said = f"; line {first['line']}: {first['error']}" if first else ""
        raise DatasetError(
            f"nothing in {self.source} could be read, so nothing was written: JSON Lines are needed{said}"
        )

    # Going on -----------------------------------------------------------------------------------------------

    @property
    def _state(self) -> Path:
        return self.output.with_name(f".{self.output.name}.state.json")

    def _take_up(self, data: BinaryIO, parts: Sequence[Path]) -> tuple[Any, int | None]:
        """Go to where an interrupted run was; return the hash of the data so far, and the line, or None."""
        state = None if self.restart else self._read_state()
        if state is None:
            for part in parts:
                part.parent.mkdir(parents=True, exist_ok=True)
                part.write_bytes(b"")
            return hashlib.sha256(), None
        again = "--restart starts again"
        if state["identity"] != self._identity():
            raise DatasetError(
                f"an interrupted run for {self.output} used different rules, traits or model: {again}"
            )
        count = Count(**state["count"])
        sizes = dict(zip(parts, (count.output, count.reasons), strict=True))
        if any(not part.is_file() or part.stat().st_size < size for part, size in sizes.items()):
            raise DatasetError(f"what an interrupted run wrote for {self.output} is gone: {again}")
        begun = _hash_of(data, count.offset)
        if begun.hexdigest() != count.digest:
            raise DatasetError(f"{self.source} has changed since a run was interrupted: {again}")
        for part, size in sizes.items():
            os.truncate(part, size)
        self._count = count
        return begun, count.line + 1

    def _read_state(self) -> dict[str, Any] | None:
        """Return what an interrupted run left. A damaged file counts as none."""
        try:
            state = json_value(read_plain(self._state))
            known = {each.name for each in fields(Count)}
            return state if set(state["count"]) == known and "identity" in state else None
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def _identity(self) -> dict[str, Any]:
        """Return what the result depends on, apart from the data."""
        traits = {}
        for trait in self.scorer.traits:
            numbers = trait.direction.numpy().tobytes() + f"{trait.centre:.6e} {trait.half_gap:.6e}".encode()
            numbers += b"" if trait.gate is None else trait.gate.model_dump_json().encode()
            traits[trait.name] = hashlib.sha256(numbers).hexdigest()[:16]
        return {
            "model": self.scorer.model.fingerprint,
            "traits": traits,
            "policy": self.policy.model_dump(mode="json"),
        }

    def _save(self, flagged: BinaryIO, why: BinaryIO) -> None:
        """Remember what is done. Bytes beyond it, of a chunk that was not finished, are cut off later."""
        flagged.flush()
        why.flush()
        state = {"identity": self._identity(), "count": asdict(self._count)}
        atomic_write_text(self._state, json.dumps(state))

    # Working ------------------------------------------------------------------------------------------------

    def _work(self, data: BinaryIO, begun: Any, flagged: BinaryIO, why: BinaryIO) -> None:
        lines = _HashedLines(data, begun)
        total = os.fstat(data.fileno()).st_size
        saved = time.monotonic()
        try:
            for chunk, last in self._chunks(lines):
                self.checkpoint()
                offset, digest = lines.here()
                count = self._write(chunk, flagged, why)
                self._count = replace(
                    count,
                    offset=offset,
                    line=last,
                    digest=digest,
                    output=flagged.tell(),
                    reasons=why.tell(),
                )
                self.progress(offset >> 10, total >> 10, f"reading {self.source.name}")
                if time.monotonic() - saved >= _SAVE_EVERY:
                    self._save(flagged, why)
                    saved = time.monotonic()
        except BaseException:
            with suppress(WorkspaceError, OSError):  # the first trouble is the one to be told
                self._save(flagged, why)
            raise

    def _chunks(self, lines: _HashedLines) -> Iterator[tuple[list[_Line], int]]:
        """Yield groups of lines that are not empty, each with the number of the last line read for it."""
        group: list[_Line] = []
        size, last = 0, self._count.line
        for last, raw in bounded_lines(lines, first=self._count.line + 1):
            if raw.strip():
                group.append(_Line(last, raw, self._parse(raw, last)))
                size += len(raw)
            if len(group) >= CHUNK or size >= CHUNK_CHARACTERS:
                yield group, last
                group, size = [], 0
        yield group, last

    def _parse(self, raw: bytes, number: int) -> list[Transcript] | BadLine:
        """Return what a line teaches: of preferences the chosen reply, not the rejected one."""
        where = f"{self.source}:{number}"
        try:
            found = [each for each in parse_line(raw, where, number) if each.part != REJECTED]
            self.notes.update(note for each in found for note in each.notes)
            return found
        except TranscriptError as error:
            return BadLine(where, number, str(error))

    def _write(self, lines: Sequence[_Line], flagged: BinaryIO, why: BinaryIO) -> Count:
        """Score some lines, write what is to be said of them, and return the new count."""
        read = [each for line in lines if not isinstance(line.read, BadLine) for each in line.read]
        scored = iter(self.scorer.score(read))
        n_flagged = n_bad = 0
        for line in lines:
            told = [line.read] if isinstance(line.read, BadLine) else [next(scored) for _ in line.read]
            bad = next((each for each in told if isinstance(each, BadLine)), None)
            if bad is not None:
                n_bad += 1
                self.on_bad(bad)
                why.write(_json_line({"line": line.number, "error": bad.problem}))
            elif breaches := [
                breach for each in told if isinstance(each, Scored) for breach in self.policy.check(each)
            ]:
                n_flagged += 1
                flagged.write(line.raw)
                said = [breach.as_dict() for breach in breaches]
                why.write(_json_line({"line": line.number, "breaches": said}))
        count = self._count
        return replace(
            count,
            lines=count.lines + len(lines),
            flagged=count.flagged + n_flagged,
            bad=count.bad + n_bad,
        )


def reasons_beside(output: Path) -> Path:
    """Return the file of reasons that belongs to a file of flagged lines when no other is named."""
    return output.with_name(f"{output.stem}.reasons.jsonl")


def _json_line(value: dict[str, Any]) -> bytes:
    return json.dumps(value, ensure_ascii=False).encode() + b"\n"


def _partial(path: Path) -> Path:
    return path.with_name(f".{path.name}.partial")


def _hash_of(data: BinaryIO, length: int) -> Any:
    """Return the hash of the first bytes of the data; afterwards its position is right behind them."""
    hashed = hashlib.sha256()
    data.seek(0)
    while length > 0 and (block := data.read(min(length, _HASHED_AT_ONCE))):
        hashed.update(block)
        length -= len(block)
    return hashed
