"""`dataset generate`, `dataset import` and `dataset validate`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from persona_tui.cli.options import Invocation, pass_invocation, via_option
from persona_tui.cli.output import check_free, echo, force_option, json_option, print_json, print_table
from persona_tui.cli.progress import note, work
from persona_tui.core.errors import JobCancelled
from persona_tui.core.processes import is_main

if TYPE_CHECKING:
    from persona_tui.datasets.validate import FileReport

KINDS = ("safe", "unsafe", "questions", "archetype")


@click.group()
def dataset() -> None:
    """Check the data sets, or have the model write more."""


@dataset.command("validate")
@click.argument("files", nargs=-1, metavar="[FILE]...", type=click.Path(dir_okay=False, path_type=Path))
@json_option
@pass_invocation
def validate(invocation: Invocation, /, files: tuple[Path, ...], as_json: bool) -> None:
    """Check every line and id, the categories of questions and queries, and look for near-duplicates.

    For queries, also check that no template is in both splits, and that no measuring set repeats what
    monitors are fitted on.

    Without a FILE, all data sets of the workspace: prompts, personas, monitors, traits and policies. A FILE
    of your own may be a trait (.jsonl, .yaml), a policy (.yaml), or queries for monitors (.jsonl). The exit
    status is 1 if something is wrong.
    """
    from persona_tui.cli.own_files import validate_own
    from persona_tui.datasets.validate import validate_datasets
    from persona_tui.traits.validate import validate_traits

    workspace = invocation.project.workspace
    if files:
        reports = [validate_own(path) for path in files]
    else:
        reports = [*validate_datasets(workspace), *validate_traits(workspace)]
    if as_json:
        print_json([_as_json(report) for report in reports])
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
                echo(f"{report.path}: {problem}")
    if not all(report.ok for report in reports):
        click.get_current_context().exit(1)


def _as_json(report: FileReport) -> dict[str, Any]:
    return {
        "file": str(report.path),
        "records": report.count,
        "categories": dict(report.categories),
        "problems": report.problems,
    }


def _categories(counts: dict[str, int]) -> str:
    return ", ".join(f"{category} {count}" for category, count in sorted(counts.items()))


@dataset.command("import")
@click.argument("paths", nargs=-1, required=True, metavar="PATH...", type=click.Path(path_type=Path))
@force_option
@pass_invocation
def import_(invocation: Invocation, paths: tuple[Path, ...], force: bool) -> None:
    """Read roles and traits of assistant-axis or persona_vectors as archetypes.

    PATH is a .json file or a folder of them. Each becomes an archetype of its name: make a persona of it with
    create --from-archetype, or all of them with init.
    """
    from persona_tui.core.files import atomic_write_text
    from persona_tui.datasets.records import archetype_path
    from persona_tui.formats.roles import read_role_files

    workspace = invocation.project.workspace
    roles = [role for path in paths for role in read_role_files(path)]
    files = {role.name: archetype_path(workspace, role.name) for role in roles}
    check_free(*files.values(), force=force)
    for role in roles:
        atomic_write_text(files[role.name], role.lines())
        if role.left_out:
            note(f"{role.name}: left out {role.left_out}.")
    names = ", ".join(role.name for role in roles[:5]) + (", ..." if roles[5:] else "")
    echo(f"Imported {len(roles)} archetypes: {names}")


@dataset.command("generate")
@click.argument("kind", type=click.Choice(KINDS))
@click.argument("name", required=False)
@click.option(
    "-n", "--count", type=click.IntRange(1, 10_000), help="How many. [default: 5 for an archetype, else 20]"
)
@click.option("--description", "-d", metavar="TEXT", help="For an archetype: who it is.")
@click.option("--output", "-o", type=click.Path(dir_okay=False, path_type=Path), help="Another file.")
@click.option(
    "--replace",
    "--force",
    "replace",
    is_flag=True,
    help="Replace what is in the file instead of adding to it.",
)
@click.option("--seed", type=int, default=0, show_default=True, help="The same seed gives the same records.")
@via_option
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
    via: tuple[str, str] | None,
) -> None:
    """Have a model write prompts, and add them to the workspace's file.

    KIND is safe, unsafe, questions or archetype; an archetype has a NAME and a --description. Every record
    says that a model wrote it, and which. Near-duplicates of existing records are left out.
    """
    from persona_tui.project.dataset_task import DatasetTask, Written, write

    if not DatasetTask.is_consistent(kind, name, description):
        raise click.UsageError(
            "NAME and --description are required for an archetype, and only for an archetype.",
            click.get_current_context(),
        )

    if via is not None:
        invocation.project.write_via(*via)

    def saved(written: Written) -> None:
        if is_main():
            for line in written.notes:
                note(line)
            echo(written.summary)

    write(
        DatasetTask(kind, name or "", description or "", count),
        invocation.project,
        seed,
        work,
        path=output,
        replace=replace,
        log=note if is_main() else None,
        on_saved=saved,
        interrupts=(click.Abort, JobCancelled),
    )
