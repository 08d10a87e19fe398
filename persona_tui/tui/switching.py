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
    from persona_tui.tui.app import PersonaApp


class Switching:
    """Loads models as jobs. The one in use goes on answering meanwhile, and stays if another one fails."""

    def __init__(self, app: PersonaApp) -> None:
        self._app = app
        self._missing = False  # whether the first one could not be loaded, and no other was
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
            model = project.engine.model
            self._app.post_message(ModelReady(short(model.name), model.context_length))
            self._remember(project, ModelChoice.of(project.settings))
            if project.fell_back:
                self._app.main.chat.note(
                    f"This is the tiny model, which knows little: {self._app.key_label('model')} offers the"
                    " starter model."
                )
        elif project is self._app.project:
            self._missing = True
            self._app.post_message(ModelFailed(job.error or PersonaTuiError("the model was not loaded")))

    def check_model(self) -> None:
        """Raise an error that says what to do if there is no model to answer.

        Raises:
            PersonaTuiError: there is none, and none is being loaded.
        """
        if self._missing:
            raise PersonaTuiError(f"no model is loaded: {self._app.key_label('model')} chooses one")

    # --- another one

    def use(self, choice: ModelChoice) -> str:
        """Load another model and talk to that; what to show at once.

        Raises:
            ConfigError: a device, a dtype or a quantization that does not exist.
        """
        other = models.with_model(self._app.project, choice)
        work = self._work(other, gives_way=self._app.model_ready)
        self._app.jobs.submit(f"load {short(choice.name)}", work, lambda job: self._ended(job, other, choice))
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
            self._app.main.chat.note(stays)
        else:
            self._app.main.chat.note(f"{choice.name} was not loaded. {stays}")

    def settle(self) -> None:
        """Talk to a model that has been loaded, unless a reply is being written: then when that has ended."""
        if self._waiting is None or self._app.speaker.busy:
            return
        (other, choice), self._waiting = self._waiting, None
        before, self._app.project = self._app.project, other
        self._missing = False
        notes = [*models.keep_watch(before, other), *self._keep_voice(other)]
        self._app.slash.use(other)
        self._app.mixing.forget()
        self._app.inspecting.forget()
        self._app.speaker.forget_model()
        model = other.engine.model
        self._app.post_message(ModelReady(short(model.name), model.context_length))
        self._app.main.chat.note(" ".join([f"Now talking to {choice.name}.", *notes]))
        self._remember(other, choice)

    def _remember(self, project: Project, choice: ModelChoice) -> None:
        """Offer it again later. The tiny model is always offered."""
        recent = RecentModels(project.workspace)
        if choice in (ModelChoice(BUILTIN), ModelChoice(TINY)) and not recent.list():
            return
        try:
            recent.add(choice)
        except PersonaTuiError as error:
            self._app.jobs.log(f"the model will not be offered again: {error}")

    def _keep_voice(self, other: Project) -> list[str]:
        """Let those speak who are there with this model, too; what to say about the others."""
        faders, personas = self._app.voice.faders, other.personas
        there = {*personas.list_available(), *personas.list_traits()}
        gone = [name for name in faders.speaking if name not in there]
        self._app.voice.forget(gone)
        return [f"It has no {', '.join(gone)}."] if gone else []


def short(name: str) -> str:
    """Return a model's name without the folders that it lies in."""
    return Path(name).name if Path(name).expanduser().is_absolute() else name
