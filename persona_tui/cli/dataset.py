"""`dataset generate` and `dataset validate`."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from persona_tui.cli.output import json_option, print_json, print_table
from persona_tui.cli.progress import note, work
from persona_tui.cli.root import Invocation, pass_invocation
from persona_tui.errors import DatasetError, JobCancelled
from persona_tui.plain_files import read_plain
from persona_tui.processes import is_main, processes

if TYPE_CHECKING:
    from persona_tui.jobs import JobContext
    from persona_tui.prompts.generator import DatasetGenerator
    from persona_tui.prompts.schema import Record
    from persona_tui.runtime import Runtime
    from persona_tui.workspace import Workspace

KINDS = ("safe", "unsafe", "questions", "archetype")


@click.group()
def dataset() -> None:
    """Check the data sets, or have the model write more."""


@dataset.command("validate")
@click.argument("files", nargs=-1, metavar="[FILE]...", type=click.Path(dir_okay=False, path_type=Path))
@json_option
@pass_invocation
def validate(invocation: Invocation, /, files: tuple[Path, ...], as_json: bool) -> None:
    """Check every line, id and category, and look for near-duplicates.

    Without a FILE, all data sets of the workspace: prompts, personas, monitors, traits and policies. A FILE
    of your own may be a trait (.jsonl, .yaml), a policy (.yaml), or queries for monitors (.jsonl). The exit
    status is 1 if something is wrong.
    """
    from persona_tui.cli.own_files import validate_own
    from persona_tui.monitoring.traits.validate import validate_traits
    from persona_tui.prompts.validate import validate_datasets

    workspace = invocation.runtime.workspace
    if files:
        reports = [validate_own(path) for path in files]
    else:
        reports = [*validate_datasets(workspace), *validate_traits(workspace)]
    if as_json:
        print_json(
            [
                {
                    "file": str(report.path),
                    "records": report.count,
                    "categories": dict(report.categories),
                    "problems": report.problems,
                }
                for report in reports
            ]
        )
    else:
        print_table(
            [
                [
                    "ok" if report.ok else "WRONG",
                    str(report.count),
                    report.path.name,
                    _categories(report.categories),
                ]
                for report in reports
            ]
        )
        for report in reports:
            for problem in report.problems:
                click.echo(f"{report.path}: {problem}")
    if not all(report.ok for report in reports):
        click.get_current_context().exit(1)


def _categories(counts: dict[str, int]) -> str:
    return ", ".join(f"{category} {count}" for category, count in sorted(counts.items()))


@dataset.command("generate")
@click.argument("kind", type=click.Choice(KINDS))
@click.argument("name", required=False)
@click.option(
    "-n", "--count", type=click.IntRange(1, 10_000), help="How many. [default: 5 for an archetype, else 20]"
)
@click.option("--description", "-d", metavar="TEXT", help="Of an archetype: who it is.")
@click.option("--output", "-o", type=click.Path(dir_okay=False, path_type=Path), help="Another file.")
@click.option("--replace", is_flag=True, help="Do not keep what the file has already.")
@click.option("--seed", type=int, default=0, show_default=True, help="The same seed writes the same.")
@pass_invocation
def generate(
    invocation: Invocation,
    /,
    kind: str,
    name: str | None,
    count: int | None,
    description: str | None,
    output: Path | None,
    replace: bool,
    seed: int,
) -> None:
    """Have the model write prompts, and add them to the workspace's file.

    KIND is safe, unsafe, questions or archetype; an archetype has a NAME and a --description. Every record
    says that a model wrote it. What is nearly the same as something that is there is left out.
    """
    runtime = invocation.runtime
    task = _Task(kind, name, count, description)
    path = output or task.path(runtime.workspace)
    known = [] if replace else task.read(path)
    _write(path, known, runtime, task, seed)


class _Task:
    """One kind of data set: where it is, what its records are, who writes them."""

    def __init__(self, kind: str, name: str | None, count: int | None, description: str | None) -> None:
        if (kind == "archetype") != (name is not None) or (kind == "archetype") != (description is not None):
            raise click.UsageError(
                "An archetype, and nothing else, needs a NAME and a --description.",
                click.get_current_context(),
            )
        self.kind = kind
        self.name = name or ""
        self.description = description or ""
        self.count = count or (5 if kind == "archetype" else 20)

    def path(self, workspace: Workspace) -> Path:
        """The workspace's own file."""
        from persona_tui.prompts import reading

        if self.kind == "archetype":
            return reading.archetype_path(workspace, self.name)
        if self.kind == "questions":
            return reading.questions_path(workspace)
        return reading.safety_path(workspace, "safe" if self.kind == "safe" else "unsafe")

    @property
    def job(self) -> str:
        """What it is called while it is under way."""
        return f"dataset-{self.kind}-{self.name}" if self.name else f"dataset-{self.kind}"

    def recipe(self, known: list[dict[str, Any]], seed: int) -> dict[str, str]:
        """What its result depends on."""
        parts = {"count": self.count, "description": self.description, "seed": seed, "what is there": known}
        return {part: json.dumps(value) for part, value in parts.items()}

    @property
    def record(self) -> type[Record]:
        """What a line is."""
        from persona_tui.prompts import schema

        kinds: dict[str, type[Record]] = {
            "safe": schema.SafePrompt,
            "unsafe": schema.UnsafePrompt,
            "questions": schema.Question,
            "archetype": schema.ArchetypePrompt,
        }
        return kinds[self.kind]

    def read(self, path: Path) -> list[dict[str, Any]]:
        """The records that are there already, as they are written."""
        from persona_tui.prompts.reading import read_jsonl

        if not path.exists():
            return []
        list(read_jsonl(path, self.record))  # a file with mistakes is not added to
        lines = read_plain(path).decode("utf-8-sig").splitlines()
        return [json.loads(line) for line in lines if line.strip()]

    def generate(self, generator: DatasetGenerator, known: list[str]) -> None:
        """Write; the records are then in the generator."""
        if self.kind == "archetype":
            generator.generate_persona_prompts(self.description, self.count)
        elif self.kind == "questions":
            generator.generate_extraction_questions(self.count, known)
        elif self.kind == "safe":
            generator.generate_safe_prompts(self.count, known)
        else:
            generator.generate_unsafe_prompts(self.count, known)


def _write(path: Path, known: list[dict[str, Any]], runtime: Runtime, task: _Task, seed: int) -> None:
    """Generate and save. An interrupt saves what there is by then, and is still an interrupt."""
    from persona_tui.prompts.generator import main_text

    generator: DatasetGenerator | None = None
    interrupt: BaseException | None = None
    partial = runtime.partial(note if is_main() else None)

    def generate(context: JobContext) -> None:
        nonlocal generator
        generator = runtime.generator(context, seed)
        generator.partial = partial
        task.generate(generator, [main_text(record) for record in known])

    with partial.job(task.job, task.recipe(known, seed)):
        try:
            work(generate)
        except (click.Abort, JobCancelled) as error:
            interrupt = error
        if generator is not None and generator.records:
            records = generator
            processes().from_main(lambda: _save(path, known, records, task))
    if interrupt is not None:
        raise interrupt
    if generator is None or not generator.records:
        raise DatasetError("the model wrote nothing that could be used; a larger one may")


def _save(path: Path, known: list[dict[str, Any]], generator: DatasetGenerator, task: _Task) -> None:
    taken = {record["id"] for record in known}
    new = _renumbered(generator.records, taken, task.name)
    generator.save_jsonl([*known, *new], path)
    if generator.report.fallback:
        note("The model wrote too few usable prompts; the description itself served instead.")
    elif len(new) < task.count:
        note(f"The model wrote {len(new)} of {task.count}.")
    click.echo(f"Wrote {len(new)} records to {path}.")


def _renumbered(records: list[dict[str, Any]], taken: set[str], name: str) -> list[dict[str, Any]]:
    """The records with ids that the file does not have yet."""
    stem = str(records[0]["id"]).rpartition("_")[0]
    prefix = f"{name}_{stem}" if name else stem
    identities = (f"{prefix}_{number:03d}" for number in itertools.count(1))
    free = (identity for identity in identities if identity not in taken)
    return [{**record, "id": identity} for record, identity in zip(records, free, strict=False)]
