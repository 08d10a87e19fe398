"""The app's model: loading the first one, and another one beside it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from persona_tui.core.errors import PersonaTuiError
from persona_tui.core.jobs import Job, JobContext
from persona_tui.model.sources import BUILTIN, TINY
from persona_tui.project import models
from persona_tui.project.models import ModelChoice, RecentModels
from persona_tui.tui import collector
from persona_tui.tui.messages import ModelFailed, ModelReady

if TYPE_CHECKING:
    from persona_tui.project.project import Project
    from persona_tui.tui.stage import AppStage


class ModelSwitch:
    """Loads models as jobs. The one in use goes on answering meanwhile, and stays if another one fails."""

    def __init__(self, app: AppStage, changed: Callable[[], None]) -> None:
        """
        Args:
            app: whose model it is.
            changed: called when another model is talked to.
        """
        self._app = app
        self._changed = changed
        self._waiting: tuple[Project, ModelChoice] | None = None

    def begin(self) -> None:
        """Load the model that the app was started with."""
        project = self._app.project
        name = f"load {short(project.settings.model.name)}"
        work = self._work(project, gives_way=False, fetches=False)
        self._app.jobs.submit(name, work, lambda job: self._began(job, project), quiet=True, fleeting=True)

    def _work(self, project: Project, gives_way: bool, fetches: bool = True) -> Callable[[JobContext], None]:
        def work(context: JobContext) -> None:
            models.load(project, context, gives_way=gives_way, fetches=fetches)
            collector.freeze()

        return work

    def _began(self, job: Job[Any], project: Project) -> None:
        if job.state == "done":
            self._ready(project)
            if project.at is not None:
                return
            self._remember(project, ModelChoice.of(project.settings))
            if project.fell_back:
                self._app.main.chat.note(
                    f"This is the tiny model, which knows little: {self._app.key_label('model')} offers the"
                    " starter model."
                )
        elif project is self._app.project:
            self._app.model_missing = True
            self._app.post_message(ModelFailed(job.error or PersonaTuiError("the model was not loaded")))

    def _ready(self, project: Project) -> None:
        model = project.engine.model
        where = f" at {project.at.partition('://')[2]}" if project.at is not None else ""
        self._app.post_message(ModelReady(f"{short(model.name)}{where}", model.context_length))

    # --- another one

    def load(self, other: Project, choice: ModelChoice) -> str:
        """Load another model and talk to that; what to show at once."""
        work = self._work(other, gives_way=self._app.model_ready)
        self._app.jobs.submit(
            f"load {short(choice.name)}", work, lambda job: self._ended(job, other, choice), fleeting=True
        )
        until = f"; {self._present} answers until then" if self._app.model_ready else ""
        return f"Loading {choice.name}{until}. Progress: {self._app.key_label('jobs')}."

    @property
    def _present(self) -> str:
        return short(self._app.project.settings.model.name)

    def _ended(self, job: Job[Any], other: Project, choice: ModelChoice) -> None:
        stays = f"{self._present} stays." if self._app.model_ready else "There is no model yet."
        if job.state == "done":
            self._waiting = (other, choice)
            self.settle()
        elif job.error is not None:
            self._app.show_error(job.error)
            self._app.say(stays)
        else:
            self._app.say(f"{choice.name} was not loaded. {stays}")

    def settle(self) -> None:
        """Talk to a model that has been loaded, unless a reply is being written: then when that has ended."""
        if self._waiting is None or self._app.busy:
            return
        (other, choice), self._waiting = self._waiting, None
        said = self._app.chat.adopt(other, choice)
        self._app.model_missing = False
        self._changed()
        self._ready(other)
        self._app.say(said)

    def _remember(self, project: Project, choice: ModelChoice) -> None:
        """Offer the first model again later. The built-in one is always offered."""
        recent = RecentModels(project.workspace)
        if choice in (ModelChoice(BUILTIN), ModelChoice(TINY)) and not recent.list():
            return
        try:
            recent.add(choice)
        except PersonaTuiError as error:
            self._app.jobs.log(f"the model will not be offered again: {error}")


def short(name: str) -> str:
    """Return a model's name without the folders that it lies in."""
    return Path(name).name if Path(name).expanduser().is_absolute() else name
