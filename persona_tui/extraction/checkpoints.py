"""What unfinished jobs have so far, on the disk, so that the same command goes on where it was stopped.

1. A job consists of stages, a stage of items that can be done in any order. A stage is known by a hash of
   everything that its items depend on.
2. What items come to is a `Tally`. Tallies of different items add up, in any order, to the same last bit:
   sums are whole numbers.
3. Every few seconds each process writes its tallies to files of its own, whole or not at all.
4. Starting the job again reads these files, whoever wrote them. Success deletes them.

In memory a stage's tally is replaced in one step, so that an interrupt between any two instructions leaves
something that can be written.
"""

from __future__ import annotations

import atexit
import contextlib
import hashlib
import json
import os
import re
import secrets
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any
from weakref import WeakSet

import torch
from safetensors.torch import save as serialize_tensors
from torch import Tensor

from persona_tui.core.documents import json_value, read_plain
from persona_tui.core.errors import JobCancelled, PersonaTuiError, VectorFileError, WorkspaceError
from persona_tui.core.files import atomic_write_bytes, atomic_write_text, only_writer
from persona_tui.core.jobs import STOPPED
from persona_tui.core.processes import processes
from persona_tui.vectors.files import FORMAT_VERSION, METADATA_KEY, SUFFIX, check_kind, load_stored

if TYPE_CHECKING:
    from persona_tui.model.backend import Backend

FOLDER = "partial"
SAVE_SECONDS = 2.0  # at most this much work is lost
MOST_TIME_SAVING = 0.05  # as a share of all time; the sums of a large model are written less often

_ABANDONED = 60.0  # seconds after which nobody is still writing a file
_NAME = re.compile(r"[A-Za-z0-9_-]+")

KEPT = f"{STOPPED} Finished work is kept: run the same command to resume."

Log = Callable[[str], None]


@dataclass(frozen=True)
class Tally:
    """The results of some items of a stage.

    Attributes:
        items: which ones.
        sums: over the items, int64.
        counts: over the items.
        values: of single items; anything JSON can say.
        rows: of single items, float32.
    """

    items: frozenset[int] = frozenset()
    sums: Mapping[str, Tensor] = field(default_factory=dict)
    counts: Mapping[str, int] = field(default_factory=dict)
    values: Mapping[int, Any] = field(default_factory=dict)
    rows: Mapping[int, Tensor] = field(default_factory=dict)

    def __add__(self, other: Tally) -> Tally:
        """Return the tally of both's items.

        Raises:
            ValueError: an item is in both.
        """
        if both := self.items & other.items:
            raise ValueError(f"item {min(both)} was done twice")
        return Tally(
            self.items | other.items,
            _added(self.sums, other.sums),
            dict(Counter(self.counts) + Counter(other.counts)),
            {**self.values, **other.values},
            {**self.rows, **other.rows},
        )

    def everyones(self) -> Tally:
        """Return the tally of all processes' items."""
        crew = processes()
        if crew.count == 1:
            return self
        shapes = {name: tuple(summed.shape) for name, summed in self.sums.items()}
        own = Tally(self.items, {}, self.counts, self.values, self.rows)
        total, known = Tally(), dict[str, tuple[int, ...]]()
        for theirs, names in crew.gather((own, shapes)):
            total, known = total + theirs, known | names
        sums = {
            name: crew.add_up(self.sums.get(name, torch.zeros(known[name], dtype=torch.int64)))
            for name in sorted(known)
        }
        return Tally(total.items, sums, total.counts, total.values, total.rows)


def _added(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {
        name: one[name] + other[name] if name in one and name in other else {**one, **other}[name]
        for name in {**one, **other}
    }


class Stage:
    """Items of one kind, and the results of those that are finished.

    Attributes:
        done: the items that were finished before, by any process.
        tally: what this process answers for: its own items, and on the main process the earlier ones.
    """

    def __init__(self, key: str = "", store: PartialStore | None = None) -> None:
        self.key = key
        self.done: frozenset[int] = frozenset()
        self.tally = Tally()
        self.replaces: tuple[Path, ...] = ()  # files whose tallies are part of this one
        self.part = secrets.token_hex(4)
        self.saved = self.tally
        self.complete = False  # nothing will be added: once written, it need not be remembered
        self._store = store

    def add(self, tally: Tally) -> None:
        """Count in finished items; now and then, write down what there is."""
        self.tally = self.tally + tally
        if self._store is not None:
            self._store.tick()

    @property
    def values(self) -> Mapping[int, Any]:
        """The values of single items that this process answers for."""
        return self.tally.values

    def keep(self, item: int, value: Any) -> None:
        """Count in one item that comes to a value."""
        self.add(Tally(frozenset([item]), values={item: value}))

    def finish(self, total: int, size: int, do: Callable[[Sequence[int]], Tally]) -> Tally:
        """Do all unfinished items, divided among the processes; return what all of them come to.

        Args:
            total: how many items there are.
            size: how many are done at a time. The same ones are done together however often this is begun.
            do: turns the numbers of some items into what they come to.
        """
        pieces = [range(start, min(start + size, total)) for start in range(0, total, size)]
        crew = processes()
        with crew.own_share():
            for piece in crew.share([each for each in pieces if not self.done.issuperset(each)]):
                self.add(do([item for item in piece if item not in self.done]))
        return self.everyones()

    def everyones(self) -> Tally:
        """Return what the items of all processes come to, when none of them has any left."""
        self.complete = True
        return self.tally.everyones()


class PartialStore:
    """The unfinished jobs of one model, in `vectors/<model>/partial`.

    Outside of a job nothing is kept.
    """

    def __init__(self, vectors_dir: Path = Path(), workspace: Path = Path(), log: Log | None = None) -> None:
        """
        Args:
            vectors_dir: the model's folder. Nothing is read or written before a job begins.
            workspace: the folder that everything is in; when that goes away, it is not made again.
            log: told what was found, in one line.
        """
        self.folder = vectors_dir / FOLDER
        self._workspace = workspace
        self._log = log or (lambda line: None)
        self._job: str | None = None
        self._stages: list[Stage] = []
        self._used: set[Path] = set()
        self._due = 0.0
        self._shared = False  # whether it was said that several processes share the work

    @contextmanager
    def job(self, name: str, recipe: Mapping[str, str]) -> Iterator[None]:
        """Within, stages are kept until the job succeeds. Only one job at a time writes a model's vectors.

        Args:
            name: letters, digits, _ and -; the same job has the same name when it is started again.
            recipe: everything that the result depends on, named for people. When it differs from that of the
                interrupted job, the job starts again and says why.

        Raises:
            WorkspaceError: another process writes this model's vectors, or the folder cannot be written.
        """
        if not _NAME.fullmatch(name):
            raise ValueError(f"{name!r} cannot name a job")
        crew = processes()
        with ExitStack() as stack:
            crew.from_main(lambda: self._begin(stack, name, recipe))
            if crew.count > 1 and crew.is_main and not self._shared:
                self._shared = True
                self._log(f"{crew.count} processes share the work.")
            self._job, self._stages, self._used = name, [], set()
            self._due = time.monotonic() + SAVE_SECONDS
            _OPEN.add(self)
            try:
                yield
                self._stages.clear()
                crew.wait()
                crew.from_main(lambda: self.discard(name))
            except BaseException as error:
                self._keep_what_there_is(error)
                raise
            finally:
                _OPEN.discard(self)
                self._job, self._stages = None, []

    @contextmanager
    def rendered(self, model: Backend) -> Iterator[None]:
        """Within a job, have the chat template write the date on which the job began.

        Args:
            model: what the job is done with.
        """
        record = model.rendering.record()
        began = record if self._job is None else processes().from_main(lambda: self._began(record))
        with model.rendered_as(began):
            yield

    def _began(self, record: dict[str, str]) -> dict[str, str]:
        """Return what the template wrote when the job began, which is now unless it was interrupted."""
        path = self.folder / f"{self._job}.rendering.json"
        known = _read_manifest(path)
        if known is None:
            atomic_write_text(path, json.dumps(record, indent=1), inside=self.folder)
        return known or record

    def stage(self, recipe: Iterable[object]) -> Stage:
        """Begin a stage, or go on with it.

        Args:
            recipe: everything that its items depend on: what `digest` takes.
        """
        if self._job is None:
            return Stage()
        stage = Stage(digest(recipe), self)
        stage.done = processes().from_main(lambda: self._recall(stage))
        self._stages = [*self._stages, stage]
        return stage

    def tick(self) -> None:
        """Write what is new, if the last time was some seconds ago."""
        if time.monotonic() >= self._due:
            self.save()

    def save(self) -> None:
        """Write what is new.

        Raises:
            WorkspaceError: it cannot be written. What was written before is still there.
        """
        began = time.monotonic()
        changed = [stage for stage in self._stages if stage.tally is not stage.saved]
        for stage in changed:
            self._write(stage)
        self._stages = [each for each in self._stages if not each.complete or each.tally is not each.saved]
        now = time.monotonic()
        self._due = now + max(SAVE_SECONDS, (now - began) / MOST_TIME_SAVING)

    def interrupted(self) -> list[str]:
        """Return the names of the jobs that something is kept of, sorted."""
        return sorted(path.stem for path in self.folder.glob("*.json") if self._has_parts(path.stem))

    def _has_parts(self, name: str) -> bool:
        return any(self.folder.glob(f"{name}.*{SUFFIX}"))

    def discard(self, name: str) -> None:
        """Forget a job and all that is kept of it."""
        for path in {*self._used, *self.folder.glob(f"{name}.*")}:
            _remove(path)
        self._used = set()

    # The job ------------------------------------------------------------------------------------------------

    def _begin(self, stack: ExitStack, name: str, recipe: Mapping[str, str]) -> None:
        stack.callback(_remove_if_empty, self.folder)
        stack.enter_context(only_writer(self.folder, name))
        self._prepare(name, recipe)

    def _prepare(self, name: str, recipe: Mapping[str, str]) -> None:
        """Find out whether the job was interrupted, and whether what is left of it is still of use."""
        self._sweep()
        manifest = self.folder / f"{name}.json"
        wanted = {part: digest([value]) for part, value in recipe.items()}
        found = _read_manifest(manifest)
        kept = self._has_parts(name)
        if found is not None and found != wanted:
            if kept:
                different = sorted(part for part in {*found, *wanted} if found.get(part) != wanted.get(part))
                self._log(f"Interrupted before with other settings ({', '.join(different)}): starting again.")
            self.discard(name)
        elif kept:
            self._log("Resuming where it was interrupted.")
        if found != wanted:
            atomic_write_text(manifest, json.dumps(wanted, indent=1), inside=self.folder)

    def _sweep(self) -> None:
        """Remove what was being written when a process was killed."""
        for left_over in self.folder.glob(".*.tmp"):
            _remove(left_over)
        vectors = self.folder.parent
        for left_over in (*vectors.glob(".*.tmp"), *vectors.glob("personas/.*.tmp")):
            with contextlib.suppress(OSError):
                # These folders have other writers, too, which need a moment.
                if time.time() - left_over.stat().st_mtime > _ABANDONED:
                    left_over.unlink()

    def _keep_what_there_is(self, error: BaseException) -> None:
        """On the way out: write down what is finished, and say so if somebody stopped the work."""
        try:
            self.save()
        except PersonaTuiError as problem:
            if str(problem) != str(error):
                self._log(f"The most recent work is lost: {problem}")
            return
        if isinstance(error, (KeyboardInterrupt, JobCancelled)):
            self._log(self.left())

    def left(self) -> str:
        """Return what is left of the job that is under way, if it stops now, in a sentence."""
        if self._job is not None and self._has_parts(self._job):
            return KEPT
        return (
            f"{STOPPED} Nothing was kept of this step ({self._job}): run the same command to start it again."
        )

    # Files --------------------------------------------------------------------------------------------------

    def _recall(self, stage: Stage) -> frozenset[int]:
        """Read what any process, in any earlier run, has finished of a stage."""
        parts = {path: found for path in self._parts(stage) if (found := self._read(path, stage)) is not None}
        absorbed = {name for _, replaced in parts.values() for name in replaced}
        total = Tally()
        for path in sorted(parts):
            tally, _ = parts[path]
            # Written whole, but not yet removed when the run was killed; or, never seen, done by two.
            if path.name in absorbed or tally.items & total.items:
                _remove(path)
                continue
            total = total + tally
            stage.replaces = (*stage.replaces, path)
        self._used = self._used | set(stage.replaces)
        stage.tally = stage.saved = total
        return total.items

    def _parts(self, stage: Stage) -> list[Path]:
        """Return the files about this stage, also those that another job has left."""
        return list(self.folder.glob(f"*.{stage.key}.*{SUFFIX}"))

    def _read(self, path: Path, stage: Stage) -> tuple[Tally, list[str]] | None:
        try:
            return _read_part(path, stage.key)
        except VectorFileError as error:
            self._log(f"{error} Its work is done again.")
            _remove(path)
            return None

    def _write(self, stage: Stage) -> None:
        if not self._workspace.is_dir():
            raise WorkspaceError(f"the workspace {self._workspace} is gone: nothing can be saved there.")
        tally = stage.tally
        path = self.folder / f"{self._job}.{stage.key}.{stage.part}{SUFFIX}"
        _write_part(path, tally, stage.key, [each.name for each in stage.replaces])
        stage.saved = tally
        for replaced in stage.replaces:
            _remove(replaced)


_OPEN: WeakSet[PartialStore] = WeakSet()


def save_all() -> str:
    """Write what unfinished jobs have, from any thread, because the process ends.

    Returns:
        What is left of the last of them, in a sentence; "" if no job is under way.
    """
    said = ""
    for store in list(_OPEN):
        with contextlib.suppress(Exception):  # the process ends either way, and what was written before stays
            store.save()
        said = store.left()
    return said


# The app does not wait for a job when it is closed.
atexit.register(save_all)


def digest(parts: Iterable[object]) -> str:
    """Return a short hash of texts, numbers, lists of them, and tensors."""
    hashed = hashlib.sha256()
    for part in parts:
        if isinstance(part, Tensor):
            hashed.update(f"{part.dtype}{list(part.shape)}".encode())
            hashed.update(_raw(part))
        else:
            hashed.update(json.dumps(part, sort_keys=True, ensure_ascii=True).encode())
        hashed.update(b"\x1e")
    return hashed.hexdigest()[:24]


def _raw(tensor: Tensor) -> bytes:
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def _read_manifest(path: Path) -> dict[str, str] | None:
    try:
        found = json_value(read_plain(path))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, RecursionError):
        return {}  # as good as another recipe
    return found if isinstance(found, dict) else {}


def _write_part(path: Path, tally: Tally, key: str, replaces: list[str]) -> None:
    tensors = {f"sum.{name}": summed.contiguous() for name, summed in tally.sums.items()}
    tensors |= {f"row.{item}": row.contiguous() for item, row in tally.rows.items()}
    values = json.dumps({str(item): value for item, value in tally.values.items()})
    tensors["values"] = torch.frombuffer(bytearray(values, "ascii"), dtype=torch.uint8)
    metadata = {
        "kind": FOLDER,
        "format_version": FORMAT_VERSION,
        "key": key,
        "items": sorted(tally.items),
        "counts": dict(tally.counts),
        "replaces": replaces,
    }
    metadata["digest"] = _seal(tensors, metadata)
    data = serialize_tensors(tensors, {METADATA_KEY: json.dumps(metadata)})
    atomic_write_bytes(path, data, inside=path.parent)


def _read_part(path: Path, key: str) -> tuple[Tally, list[str]]:
    """Return a file's tally, and the names of the files that it replaces.

    Raises:
        VectorFileError: a single bit of it is not as it was written.
    """
    tensors, metadata = load_stored(path)
    check_kind(path, metadata, FOLDER)
    sealed = metadata.pop("digest", None)
    if metadata.get("key") != key or sealed != _seal(tensors, metadata):
        raise VectorFileError(f"{path} cannot be used: it is damaged.")
    try:
        values = json.loads(_raw(tensors["values"]))
        sums, rows = _named(tensors, "sum."), _named(tensors, "row.")
        tally = Tally(
            frozenset(metadata["items"]),
            sums,
            metadata["counts"],
            {int(item): value for item, value in values.items()},
            {int(item): row for item, row in rows.items()},
        )
        return tally, list(metadata["replaces"])
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise VectorFileError(f"{path} cannot be used: it is damaged.") from error


def _named(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): each for name, each in tensors.items() if name.startswith(prefix)}


def _seal(tensors: Mapping[str, Tensor], metadata: Mapping[str, Any]) -> str:
    names = sorted(tensors)
    return digest([dict(metadata), names, *(tensors[name] for name in names)])


def _remove(path: Path) -> None:
    with contextlib.suppress(OSError):  # a file that stays is replaced by name, or its items overlap
        path.unlink(missing_ok=True)


def _remove_if_empty(folder: Path) -> None:
    with contextlib.suppress(OSError):
        os.rmdir(folder)
