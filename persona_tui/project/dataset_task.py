"""Having the model add to a data set: which file, what its records are, who writes them.

1. `DatasetTask` says what is wanted.
2. `write` has it written and saved. What is there by the time of an interrupt is saved, too.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from persona_tui.core.documents import json_value, read_plain
from persona_tui.core.errors import DatasetError, JobCancelled
from persona_tui.core.processes import processes
from persona_tui.datasets import records, schema

if TYPE_CHECKING:
    from persona_tui.core.jobs import JobContext
    from persona_tui.core.workspace import Workspace
    from persona_tui.datasets.generator import DatasetGenerator
    from persona_tui.project.project import Project

ARCHETYPE = "archetype"
KINDS = ("safe", "unsafe", "questions", ARCHETYPE)
_USUAL = {ARCHETYPE: 5}  # records, where nothing else is said
_USUAL_COUNT = 20

Item = dict[str, Any]
Work = Callable[["JobContext"], None]


@dataclass(frozen=True)
class DatasetTask:
    """What is to be written.

    Attributes:
        kind: one of `KINDS`.
        name: of an archetype; "" for the others.
        description: of an archetype: who it is.
        wanted: how many records; None = the usual number.

    Raises:
        DatasetError: there is no such kind, or an archetype has no name or description, or another kind has.
    """

    kind: str
    name: str = ""
    description: str = ""
    wanted: int | None = None

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise DatasetError(f'a data set is {", ".join(KINDS[:-1])} or {KINDS[-1]}, not "{self.kind}"')
        if not self.is_consistent(self.kind, self.name, self.description):
            raise DatasetError("an archetype needs a name and a description; other data sets take neither")

    @staticmethod
    def is_consistent(kind: str, name: str | None, description: str | None) -> bool:
        """Return whether an archetype has a name and a description, and nothing else has."""
        return bool(name) == bool(description) == (kind == ARCHETYPE)

    @property
    def count(self) -> int:
        """How many records."""
        return self.wanted or _USUAL.get(self.kind, _USUAL_COUNT)

    @property
    def job(self) -> str:
        """What it is called while it is under way."""
        return f"dataset-{self.kind}-{self.name}" if self.name else f"dataset-{self.kind}"

    @property
    def record(self) -> type[schema.Record]:
        """What a line is."""
        kinds: dict[str, type[schema.Record]] = {
            "safe": schema.SafePrompt,
            "unsafe": schema.UnsafePrompt,
            "questions": schema.Question,
            ARCHETYPE: schema.ArchetypePrompt,
        }
        return kinds[self.kind]

    def path(self, workspace: Workspace) -> Path:
        """Return the workspace's own file."""
        if self.kind == ARCHETYPE:
            return records.archetype_path(workspace, self.name)
        if self.kind == "questions":
            return records.questions_path(workspace)
        return records.safety_path(workspace, "safe" if self.kind == "safe" else "unsafe")

    def read(self, path: Path) -> list[Item]:
        """Return the records that are there already, as they are written.

        Raises:
            DatasetError: one is not as it should be: nothing is added to such a file.
        """
        if not path.exists():
            return []
        list(records.read_jsonl(path, self.record))
        lines = read_plain(path).decode("utf-8-sig").splitlines()
        return [json_value(line) for line in lines if line.strip()]

    def recipe(self, known: list[Item], seed: int) -> dict[str, str]:
        """Return what its result depends on."""
        parts = {"count": self.count, "description": self.description, "seed": seed, "what is there": known}
        return {part: json.dumps(value) for part, value in parts.items()}

    def generate(self, generator: DatasetGenerator, known: list[str]) -> None:
        """Have it written; the records are then in the generator."""
        if self.kind == ARCHETYPE:
            generator.generate_persona_prompts(self.description, self.count)
        elif self.kind == "questions":
            generator.generate_extraction_questions(self.count, known)
        elif self.kind == "safe":
            generator.generate_safe_prompts(self.count, known)
        else:
            generator.generate_unsafe_prompts(self.count, known)


@dataclass(frozen=True)
class Written:
    """The result of a task.

    Attributes:
        path: the file.
        count: new records in it.
        notes: what else there is to say.
    """

    path: Path
    count: int
    notes: tuple[str, ...] = ()

    @property
    def summary(self) -> str:
        """One line for people."""
        return f"Wrote {self.count} records to {self.path}."


def write(
    task: DatasetTask,
    project: Project,
    seed: int,
    run: Callable[[Work], None],
    *,
    path: Path | None = None,
    replace: bool = False,
    log: Callable[[str], None] | None = None,
    on_saved: Callable[[Written], None] = lambda written: None,
    interrupts: tuple[type[BaseException], ...] = (JobCancelled,),
) -> Written:
    """Have a task done, and save what was written; an interrupted one, too, and goes on next time.

    Args:
        task: what is to be written.
        project: with the model that writes.
        seed: the same seed writes the same.
        run: does long work, with a context that it has.
        path: another file than the workspace's own.
        replace: whether what the file has is left out.
        log: told of what was found of an earlier, interrupted attempt.
        on_saved: told what was saved, also if it was interrupted.
        interrupts: what ends the work early, and is raised again when what there is has been saved.

    Raises:
        DatasetError: the file has a mistake, or the model wrote nothing that could be used.
    """
    from persona_tui.datasets.generator import main_text

    target = path or task.path(project.workspace)
    known = [] if replace else task.read(target)
    generator: DatasetGenerator | None = None
    interrupt: BaseException | None = None
    saved: Written | None = None
    partial = project.partial(log)

    def generate(context: JobContext) -> None:
        nonlocal generator
        generator = project.generator(context, seed)
        generator.partial = partial
        with partial.rendered(project.model):
            task.generate(generator, [main_text(record) for record in known])

    with partial.job(task.job, task.recipe(known, seed)):
        try:
            run(generate)
        except interrupts as error:
            interrupt = error
        if (records := generator) is not None and records.records:
            saved = processes().from_main(lambda: _save(target, known, records, task))
            on_saved(saved)
    if interrupt is not None:
        raise interrupt
    if saved is None:
        why = f" ({_rejected(generator)})" if generator is not None and generator.report.rejected else ""
        raise DatasetError(f"the model wrote nothing usable{why}; try a larger model")
    return saved


def _save(path: Path, known: list[Item], generator: DatasetGenerator, task: DatasetTask) -> Written:
    new = _renumbered(generator.records, {record["id"] for record in known}, task.name)
    generator.save_jsonl([*known, *new], path)
    report, notes = generator.report, []
    if report.made or len(new) < task.count:
        notes.append(f"The model wrote {len(new) - report.made} of {task.count}.")
    if report.made:
        notes.append(f"{report.made} were put together from the description, without the model.")
    if report.rejected:
        notes.append(f"Not kept: {_rejected(generator)}.")
    return Written(path, len(new), tuple(notes))


def _rejected(generator: DatasetGenerator) -> str:
    """Return what was not kept, and why, with numbers."""
    return ", ".join(f"{count} {problem}" for problem, count in generator.report.rejected.items())


def _renumbered(records: list[Item], taken: set[str], name: str) -> list[Item]:
    """Return the records with ids that the file does not have yet."""
    stem = str(records[0]["id"]).rpartition("_")[0]
    prefix = f"{name}_{stem}" if name else stem
    identities = (f"{prefix}_{number:03d}" for number in itertools.count(1))
    free = (identity for identity in identities if identity not in taken)
    return [{**record, "id": identity} for record, identity in zip(records, free, strict=False)]
