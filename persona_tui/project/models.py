"""Choosing a model: which were used recently, and loading another one beside the one in use.

Loading makes a second `Project` of the same workspace. The first goes on answering meanwhile, and stays when
the second fails to load or is cancelled.
"""

from __future__ import annotations

import contextlib
import json
import threading
import traceback
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from persona_tui.core.config import Settings, override
from persona_tui.core.documents import json_value, read_plain
from persona_tui.core.errors import JobCancelled, PersonaTuiError
from persona_tui.core.files import atomic_write_text, change
from persona_tui.core.jobs import JobContext
from persona_tui.core.workspace import Workspace
from persona_tui.project.project import Project

_FILE = "models.json"
_KEPT = 12
# While transformers loads a model it changes itself: a second load beside it would come out wrong. One that
# was cancelled is under way until its next tensor.
_one_loads = threading.Lock()
_LISTEN = 0.05  # seconds between two looks at whether somebody has cancelled, or wants to chat


@dataclass(frozen=True)
class ModelChoice:
    """A model and how it is loaded; the words are those of the settings."""

    name: str
    device: str = "auto"
    dtype: str = "auto"
    quantization: str = "none"

    @classmethod
    def of(cls, settings: Settings) -> ModelChoice:
        """Return what the settings say."""
        chosen = settings.model
        return cls(chosen.name, chosen.device, chosen.dtype, chosen.quantization)

    @property
    def how(self) -> str:
        """How it is loaded, as far as that differs from the default: `bfloat16 · 4bit`."""
        usual = ("auto", "none")
        return " · ".join(part for part in (self.device, self.dtype, self.quantization) if part not in usual)


class RecentModels:
    """The models that were used in a workspace, the last one first, in its models.json."""

    def __init__(self, workspace: Workspace) -> None:
        self._path = workspace.root / _FILE

    def list(self) -> list[ModelChoice]:
        """Return the models; none if the file is missing or holds something else."""
        with contextlib.suppress(OSError, ValueError, TypeError, RecursionError):
            records: list[Mapping[str, Any]] = json_value(read_plain(self._path))
            return [ModelChoice(**record) for record in records]
        return []

    def add(self, choice: ModelChoice) -> None:
        """Put a model first. A folder is remembered by its whole path.

        Raises:
            WorkspaceError: the workspace cannot be written to.
        """
        if Path(choice.name).expanduser().is_dir():
            choice = replace(choice, name=str(Path(choice.name).expanduser().absolute()))
        with change(self._path.parent, _FILE):
            others = [each for each in self.list() if each.name != choice.name]
            records = [asdict(each) for each in [choice, *others][:_KEPT]]
            atomic_write_text(self._path, json.dumps(records, indent=1, ensure_ascii=False))


def with_model(project: Project, choice: ModelChoice) -> Project:
    """Return a project of the same workspace with another model, which is not loaded yet.

    Raises:
        ConfigError: a device, a dtype or a quantization that does not exist.
        PersonaTuiError: the project's model is on another machine.
    """
    if project.at is not None:
        raise PersonaTuiError(f"this chat is connected to {project.at}: leave it to talk to another model")
    if project.lent:
        lent = project.settings.model
        raise PersonaTuiError(f"{lent.engine} lends {lent.name}, and no other model")
    values = {f"model.{key}": value for key, value in asdict(choice).items()}
    other = Project(project.workspace, override(project.settings, values))
    other.on_note = project.on_note
    return other


def load(project: Project, context: JobContext, *, gives_way: bool = True, fetches: bool = True) -> None:
    """Load a project's model and engine, on a thread of its own.

    Whoever else uses this thread goes on meanwhile, and a cancel is heard at once: the loading thread is left
    behind, and ends at the next tensor.

    Args:
        project: its model is not in use anywhere yet.
        context: told how far it is.
        gives_way: whether other work may run meanwhile; False while there is no other model to do it with.
        fetches: whether the starter model may be downloaded: somebody who knows its size has chosen it.

    Raises:
        ModelLoadError: one line that says why.
        JobCancelled: somebody asked for that.
    """
    loading = _Loading(project, context, fetches)
    loading.thread.start()
    try:
        while not loading.ended.wait(_LISTEN):
            if gives_way:
                context.checkpoint()
            else:
                context.raise_if_cancelled()
    except BaseException:
        loading.abandoned = True
        raise
    if loading.error is not None:
        raise loading.error


class _Loading:
    """A thread that loads a model, and its result."""

    def __init__(self, project: Project, context: JobContext, fetches: bool) -> None:
        self._fetches = fetches
        self._project = project
        self._context = context
        self.abandoned = False
        self.error: Exception | None = None
        self.ended = threading.Event()
        # A daemon, so that quitting never waits for a download.
        self.thread = threading.Thread(target=self._run, name="loading", daemon=True)

    def _run(self) -> None:
        try:
            self._load()
        except Exception as error:
            _let_go(error)
            self.error = error
        self.ended.set()

    def _load(self) -> None:
        from persona_tui.model import starter
        from persona_tui.model.progress import fetch, watched
        from persona_tui.model.sources import STARTER

        name = self._project.settings.model.name
        if self._project.at is not None:
            self._report(0, 0, f"fetching vectors from {self._project.at}")
            self._project.engine  # noqa: B018  # which fetches them
            return
        if self._project.lent:
            self._report(0, 0, f"asking {self._project.settings.model.engine}")
            self._project.engine  # noqa: B018  # which fetches the tokenizer
            return
        if name == STARTER and self._fetches:
            starter.fetch(self._report, self._context.log)
        fetch(name, self._report)
        if _one_loads.locked():
            self._report(0, 0, "waiting for another model to finish its work")
        with _one_loads:
            self._report(0, 0, "loading")
            with watched(self._report):
                self._project.engine  # noqa: B018  # which loads the model

    def _report(self, done: int, total: int, note: str) -> None:
        if self.abandoned or self._context.cancelled:
            raise JobCancelled("cancelled")
        self._context.progress(done, total, note)


def _let_go(error: BaseException) -> None:
    """Forget the variables of the calls that failed: half a model may be among them."""
    seen: BaseException | None = error
    while seen is not None:
        traceback.clear_frames(seen.__traceback__)
        seen = seen.__cause__ or seen.__context__


def known_choice(project: Project, name: str) -> ModelChoice:
    """Return a model as it was loaded last; one that was never used, as the settings say."""
    names = {name, str(Path(name).expanduser().absolute())}
    recent = RecentModels(project.workspace).list()
    chosen = ModelChoice.of(project.settings)
    return next((each for each in recent if each.name in names), replace(chosen, name=name))
