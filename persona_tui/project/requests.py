"""Jobs as data: what was asked for, written down, so that another run of the program can do it.

A front end that works in the background writes a request down before the job begins and forgets it when the
job has ended. What is still there afterwards was cut short, by quitting or by a crash, and can be offered
again; extraction goes on from where it was.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from pydantic import TypeAdapter

from persona_tui.core.documents import json_value, read_plain
from persona_tui.core.errors import PersonaTuiError, WorkspaceError
from persona_tui.core.files import atomic_write_text, only_writer
from persona_tui.core.jobs import JobContext
from persona_tui.core.workspace import Workspace
from persona_tui.project.project import Project, Source

if TYPE_CHECKING:
    from persona_tui.project.dataset_task import DatasetTask

_FOLDER = "jobs"
_SUFFIX = ".json"


@dataclass(frozen=True)
class JobRequest:
    """What a job is asked to do.

    Attributes:
        kind: a key of `KINDS`.
        arguments: what it is done with, as JSON has it.
        model: the name of the model that it is done with.
    """

    kind: str
    arguments: Mapping[str, Any] = field(default_factory=dict)
    model: str = ""

    @property
    def name(self) -> str:
        """What it does, for people."""
        return " ".join([self.kind, *([str(self.arguments["name"])] if self.arguments.get("name") else [])])

    def run(self, project: Project, context: JobContext) -> Any:
        """Do it.

        Raises:
            PersonaTuiError: the job's own errors, or nobody knows how to do this.
        """
        if self.kind not in KINDS:
            raise PersonaTuiError(
                f'"{self.kind}" is a job of another version of persona-tui: remove it from the list'
            )
        return KINDS[self.kind](project, context, self.arguments)


def create_request(project: Project, name: str, source: Source) -> JobRequest:
    """Return the making of a persona."""
    made_from = {"from": type(source).__name__, **TypeAdapter(type(source)).dump_python(source, mode="json")}
    return JobRequest("create", {"name": name, "source": made_from}, project.settings.model.name)


def prepare_request(project: Project) -> JobRequest:
    """Return the extraction of the axes and of the archetypes' personas."""
    return JobRequest("prepare", {}, project.settings.model.name)


def calibrate_request(project: Project, name: str) -> JobRequest:
    """Return a persona's calibration."""
    return JobRequest("calibrate", {"name": name}, project.settings.model.name)


def dataset_request(project: Project, task: DatasetTask, seed: int) -> JobRequest:
    """Return the writing of prompts; the same seed writes the same."""
    what = {**asdict(task), "name": f"{task.kind} {task.name}".strip(), "archetype": task.name, "seed": seed}
    return JobRequest("write", what, project.settings.model.name)


def fit_request(
    project: Project, name: str, data: str = "both", file: Path | None = None, method: str = "auto"
) -> JobRequest:
    """Return the fitting of a monitor, and measuring it; arguments as of `Project.fit_monitor`."""
    arguments = {"name": name, "data": data, "file": file and str(file), "method": method}
    return JobRequest("fit", arguments, project.settings.model.name)


def evaluate_request(project: Project, name: str) -> JobRequest:
    """Return the measuring of a monitor."""
    return JobRequest("measure", {"name": name}, project.settings.model.name)


def extract_request(project: Project, names: Sequence[str], recipe: str | None = None) -> JobRequest:
    """Return the extraction of traits, by their names or the paths of their files."""
    which = {"name": ", ".join(names), "traits": list(names), "recipe": recipe}
    return JobRequest("extract", which, project.settings.model.name)


def _fit(project: Project, context: JobContext, arguments: Mapping[str, Any]) -> Any:
    name, file = str(arguments["name"]), arguments["file"]
    project.fit_monitor(
        name, context, arguments["data"], Path(file) if file else None, method=arguments["method"]
    )
    return project.evaluate_monitor(name, context)


def _extract(project: Project, context: JobContext, arguments: Mapping[str, Any]) -> Any:
    from persona_tui.traits.definition import find_definition

    definitions = [find_definition(project.workspace, name) for name in arguments["traits"]]
    return project.extract_traits(definitions, context, arguments["recipe"])


def _write(project: Project, context: JobContext, arguments: Mapping[str, Any]) -> str:
    from persona_tui.project.dataset_task import DatasetTask, write

    of = dict(arguments)
    task = DatasetTask(of["kind"], of["archetype"], of["description"], of["wanted"])
    written = write(task, project, int(of["seed"]), lambda work: work(context), log=context.log)
    return " ".join([written.summary, *written.notes])


def _create(project: Project, context: JobContext, arguments: Mapping[str, Any]) -> Any:
    fields = dict(arguments["source"])
    kinds = {kind.__name__: kind for kind in get_args(Source)}
    source: Source = TypeAdapter(kinds[fields.pop("from")]).validate_python(fields)
    return project.create_persona(str(arguments["name"]), source, context)


KINDS: dict[str, Callable[[Project, JobContext, Mapping[str, Any]], Any]] = {
    "create": _create,
    "prepare": lambda project, context, arguments: project.init(context),
    "fit": _fit,
    "measure": lambda project, context, arguments: project.evaluate_monitor(str(arguments["name"]), context),
    "extract": _extract,
    "write": _write,
    "calibrate": lambda project, context, arguments: project.calibrate(str(arguments["name"]), context),
}


class Unfinished:
    """The requests of this run that have not ended, on the disk, and those that earlier runs left there.

    Every run has a folder of its own in the workspace's `jobs`, locked as long as the process lives.
    """

    def __init__(self, workspace: Workspace) -> None:
        self._root = workspace.root / _FOLDER
        self._own = self._root / f"{os.getpid()}-{secrets.token_hex(2)}"
        self._lock = ExitStack()
        self._locked = False
        self._count = 0

    def add(self, request: JobRequest) -> str:
        """Write a request down, before its job begins; returns what `remove` wants.

        Raises:
            WorkspaceError: the workspace cannot be written to.
        """
        if not self._locked:
            self._lock.enter_context(only_writer(self._own, "jobs"))
            self._locked = True
        self._count += 1
        key = f"{self._count:03}"
        atomic_write_text(self._path(key), json.dumps(asdict(request), ensure_ascii=False))
        return key

    def remove(self, key: str) -> None:
        """Forget a request: its job has ended."""
        self._path(key).unlink(missing_ok=True)

    def _path(self, key: str) -> Path:
        return self._own / f"{key}{_SUFFIX}"

    def take_over(self) -> dict[str, JobRequest]:
        """Return the requests that runs which are gone have left, oldest first. They are this run's from now
        on.

        Raises:
            WorkspaceError: the workspace cannot be written to.
        """
        found: dict[str, JobRequest] = {}
        for folder in sorted(self._root.glob("*/"), key=lambda folder: folder.stat().st_mtime):
            if folder == self._own or not _is_free(folder):
                continue
            with only_writer(folder, "jobs"):
                found |= {self.add(request): request for request in _requests(folder)}
                for path in folder.glob(f"*{_SUFFIX}"):
                    path.unlink(missing_ok=True)
            with contextlib.suppress(OSError):
                folder.rmdir()
        return found

    def close(self) -> None:
        """Let go of the folder; what is in it stays for the next run."""
        self._lock.close()
        self._locked = False
        with contextlib.suppress(OSError):  # not empty, or never made
            self._own.rmdir()


def _is_free(folder: Path) -> bool:
    """Return whether the run that this folder belonged to is gone."""
    try:
        with only_writer(folder, "jobs"):
            return True
    except WorkspaceError:
        return False


def _requests(folder: Path) -> Iterator[JobRequest]:
    """Yield the requests in a folder, oldest first; what is none is passed over."""
    for path in sorted(folder.glob(f"*{_SUFFIX}")):
        with contextlib.suppress(OSError, ValueError, TypeError):
            yield JobRequest(**json_value(read_plain(path)))
