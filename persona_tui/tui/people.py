"""The app's personas: listing, loading, speaking as, deleting and making them."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

from textual.app import SystemCommand

from persona_tui.chat import personas
from persona_tui.chat.voice import shares
from persona_tui.core.errors import PersonaTuiError
from persona_tui.core.jobs import Job, JobContext
from persona_tui.core.mix import TRAIT_PREFIX
from persona_tui.project.about import calibrated_in_words
from persona_tui.project.preparation import is_prepared, price_preparation
from persona_tui.project.project import Created, FromArchetype, FromPrompts, Source
from persona_tui.project.requests import calibrate_request, create_request, dataset_request, prepare_request
from persona_tui.tui.details import about_line, details, kind_of
from persona_tui.tui.estimate import Pace, measure
from persona_tui.tui.messages import LogLine, PaceMeasured, PreparationPriced
from persona_tui.tui.screens.confirm import ConfirmScreen
from persona_tui.tui.screens.page import PageScreen
from persona_tui.tui.widgets.personas import PersonaRow

if TYPE_CHECKING:
    from persona_tui.project.dataset_task import DatasetTask
    from persona_tui.tui.mixer import Mixer
    from persona_tui.tui.screens.create import NewPersona
    from persona_tui.tui.stage import AppStage
    from persona_tui.vectors.manager import PersonaManager

_LOADING = "The model is still loading."
_NO_AXES = "This model has no axes yet, so there is no floor."


class People:
    """What the user does with personas. Reading a vector file takes milliseconds, so it happens here."""

    def __init__(self, app: AppStage, mixer: Mixer) -> None:
        self._app, self._mixer = app, mixer
        self._names: list[str] = []
        self._loaded: list[str] = []
        self._about: dict[str, Mapping[str, Any]] = {}  # metadata, by name
        self._pace: Pace | None = None
        self._measuring = False
        self._preparation: float | None = None  # seconds
        self._asks_to_prepare = False
        self._unprepared = False  # whether the model lacks axes, or anybody to speak as
        self._answers: dict[str, Callable[[str], None]] = {
            "load": self.toggle_loaded,
            "speak": self.speak_as,
            "info": self.info,
            "delete": self.delete,
            "trace": self.trace,
            "calibrate": self.calibrate,
        }

    @property
    def _manager(self) -> PersonaManager:
        if not self._app.model_ready:
            raise PersonaTuiError(_LOADING)
        return self._app.project.personas

    # --- showing

    def model_ready(self) -> None:
        """Load who should speak at first, and show everybody."""
        chat = self._app.chat
        try:
            for name in chat.mix.weights:
                self._manager.load(name)
            chat.change_mix()
            if not self._app.project.engine.can_cap:
                self._app.say(f"{_NO_AXES} {self.prepare_in_words()}.")
        except PersonaTuiError as error:
            self._app.show_error(error)
            with contextlib.suppress(PersonaTuiError):  # the same, if it is not about who speaks
                chat.change_mix(weights={})
        self.refresh()
        if self._unprepared:
            self._price_preparation()

    # --- preparing a model

    def prepare_in_words(self) -> str:
        """Return the one path of a model without vectors: `Prepare this model: about 9 minutes (ctrl+r)`."""
        from persona_tui.extraction.runner import in_words

        key = self._app.key_label("prepare")
        takes = f": {in_words(self._preparation)}" if self._preparation is not None else ""
        return f"Prepare this model{takes} ({key})"

    def next_step(self) -> str:
        """Return what to do next."""
        if not self._app.model_ready:
            return "the model is loading; what you type waits for it"
        if self._unprepared:
            return self.prepare_in_words()
        return (
            f"{self._app.key_label('personas')} chooses who speaks, {self._app.key_label('mixer')} how loud"
        )

    def _price_preparation(self) -> None:
        project, post = self._app.project, self._app.post_message
        self._preparation = None

        def work() -> None:
            try:
                post(PreparationPriced(project, price_preparation(project)))
            except PersonaTuiError as error:
                post(PreparationPriced(project, None))
                post(LogLine(f"no estimate of the time: {error}"))

        self._app.worker.submit_turn(work)

    def preparation_priced(self, message: PreparationPriced) -> None:
        """Take note of how long preparing the model takes, and ask if that was waited for."""
        if message.project is not self._app.project:
            return
        self._preparation = message.seconds
        self.show()
        self._app.welcome()
        if self._asks_to_prepare:
            self._asks_to_prepare = False
            self.prepare()

    def prepare(self) -> None:
        """Extract the axes and the archetypes' personas, as a job, after saying how long that takes.

        Raises:
            PersonaTuiError: the model is still loading.
        """
        self._app.check_model()
        if not self._unprepared:
            self._prepare(True)
        elif self._preparation is None and not self._asks_to_prepare:
            self._asks_to_prepare = True
            self._app.notify("Working out how long that takes …")
            self._price_preparation()
        else:
            question = (
                f"{self.prepare_in_words().partition(' (')[0]}. It makes axes and a few personas to begin "
                "with. You can chat meanwhile, and stop at any time: what is finished stays."
            )
            self._app.push_screen(ConfirmScreen(question, "Prepare", "Not now"), self._prepare)

    def _prepare(self, yes: bool | None) -> None:
        if yes:
            self._app.jobs.submit_request(prepare_request(self._app.project), self.made)

    def refresh(self) -> None:
        """Look at the disk, and draw what is there."""
        project = self._app.project
        if self._app.model_ready:
            self._names = [*self._manager.list_available(), *self._manager.list_traits()]
            self._loaded = self._manager.list_loaded()
            self._about = {name: _metadata(self._manager, name) for name in self._names}
            with contextlib.suppress(PersonaTuiError):  # damaged axes: whoever uses them says so
                self._unprepared = not is_prepared(project)
        else:
            folder = project.workspace.personas_dir(project.slug)
            self._names = sorted(path.stem for path in folder.glob("*.safetensors"))
        self.show()

    def show(self) -> None:
        """Draw the list of personas, the faders and the traces."""
        app = self._app
        parts, panel = shares(app.chat.mix), app.main.personas
        panel.show_rows([self._row(name, parts.get(name, 0.0)) for name in self._names])
        if not app.model_ready:
            panel.say(_LOADING)
        panel.offer(self.prepare_in_words() if self._unprepared else "")
        app.main.mixer.show(self._mixer.state(self._loaded))
        self._mixer.show_traces()

    def _row(self, name: str, share: float) -> PersonaRow:
        about = self._about.get(name, {})
        traced = name in self._app.main.trace.names
        return PersonaRow(name, name in self._loaded, share, kind_of(about), about_line(about), traced)

    # --- what is asked of the list

    def asked(self, what: str, name: str) -> None:
        """Do what the user wants done with a persona."""
        self._answers[what](name)

    def toggle_loaded(self, name: str) -> None:
        """Load a persona, or unload it."""
        if name in self._manager.list_loaded():
            self.unload(name)
        else:
            self.load(name)

    def load(self, name: str) -> None:
        """Load a persona and give it a fader."""
        self._app.check_model()
        personas.load(self._app.chat, name)
        self.refresh()

    def unload(self, name: str) -> bool:
        """Take a persona's fader away; whether it had one."""
        was_loaded = personas.unload(self._app.chat, name)
        self.refresh()
        return was_loaded

    def speak_as(self, name: str) -> None:
        """Let one persona speak alone, loading it first; once more, and nobody speaks."""
        self.load(name)
        alone, chat = {name: 1.0}, self._app.chat
        chat.change_mix(weights={} if chat.mix.weights == alone else alone)

    def trace(self, name: str) -> None:
        """Draw a persona's projection under the chat, or not any more; loads it first."""
        self.load(name)
        self._mixer.toggle_trace(name)
        self.show()

    def info(self, name: str) -> None:
        """Show details of a persona."""
        from persona_tui.vectors.likeness import axis_cosines, cosines_to_others

        manager = self._manager
        persona, axes = manager.get(name), manager.axes
        page = details(
            persona,
            strength=self._app.chat.mix.strength,
            others=cosines_to_others(manager, name),
            axes=axis_cosines(persona, axes) if axes is not None else {},
        )
        self._app.push_screen(PageScreen(name, page))

    def palette(self) -> Iterable[SystemCommand]:
        """Offer what can be done with each persona in the command palette."""
        for name in self._names:
            yield SystemCommand(
                f"Speak as {name}", "Alone, at the current strength", self._runner("speak", name)
            )
            loaded = name in self._loaded
            yield SystemCommand(
                f"{'Unload' if loaded else 'Load'} {name}",
                "Take its fader away" if loaded else "Give it a fader",
                self._runner("load", name),
            )
            yield SystemCommand(
                f"Details of {name}", "Metadata, calibration, cosines", self._runner("info", name)
            )
            if not name.startswith(TRAIT_PREFIX):
                yield SystemCommand(
                    f"Calibrate {name}", "Find its gain again", self._runner("calibrate", name)
                )
            yield SystemCommand(f"Trace {name}", "Show or hide its projection", self._runner("trace", name))
            yield SystemCommand(f"Delete {name}", "Asks before", self._runner("delete", name))

    def _runner(self, what: str, name: str) -> Callable[[], bool]:
        return lambda: self._app.attempt(lambda: self.asked(what, name))

    def delete(self, name: str) -> None:
        """Delete a persona's file, after asking."""

        def answered(yes: bool | None) -> None:
            if yes:
                self._app.attempt(lambda: self._delete(name))

        question = f"Delete {name}? {self._app.key_label('undelete')} brings it back."
        self._app.push_screen(ConfirmScreen(question, "Delete", "Keep"), answered)

    def _delete(self, name: str) -> None:
        chat, project = self._app.chat, self._app.project
        deleted = personas.delete(chat, name)
        self.refresh()

        def restore() -> None:
            if chat.project is not project:
                raise PersonaTuiError(f"{name} belongs to another model: go back to that first")
            personas.restore(chat, deleted)
            self.refresh()

        self._app.deleted(name, restore)

    # --- making

    def create(self, name: str = "", who: str = "") -> None:
        """Ask for a new persona, and make it as a job."""
        from persona_tui.tui.screens.create import CreateScreen, Making

        self._measure_pace()
        making = Making(self._archetypes(), self._names, self._draft, self._estimate)
        self._app.push_screen(CreateScreen(making, name, who), self._create)

    def _archetypes(self) -> dict[str, int]:
        """Return the archetypes, each with its number of prompts; those with a bad file are left out."""
        from persona_tui.datasets.records import list_archetypes, read_archetype

        workspace, found = self._app.project.workspace, dict[str, int]()
        for name in list_archetypes(workspace):
            with contextlib.suppress(PersonaTuiError):  # `dataset validate` says what is wrong with it
                found[name] = len(read_archetype(workspace, name))
        return found

    def _draft(self, description: str) -> Job[list[str]]:
        """Have the model write system prompts, as a job."""
        project = self._app.project

        def work(context: JobContext) -> list[str]:
            generator = project.generator(context)
            prompts = generator.generate_persona_prompts(description)
            context.log(f"System prompts: {generator.report.summary}.")
            return [str(prompt["system_prompt"]) for prompt in prompts]

        return self._app.jobs.submit("draft prompts", work, lambda job: None, quiet=True)

    def _measure_pace(self) -> None:
        """Find out how fast this machine is, once, beside everything else."""
        if self._pace is not None or self._measuring or not self._app.model_ready:
            return
        project, post = self._app.project, self._app.post_message

        def work() -> None:
            try:
                post(PaceMeasured(measure(project)))
            except PersonaTuiError as error:  # making a persona will say so, too
                post(LogLine(f"no estimate of the time: {error}"))

        self._measuring = True
        self._app.worker.submit_turn(work)

    def pace_measured(self, pace: Pace) -> None:
        """Take note of how fast this machine is."""
        from persona_tui.tui.screens.create import CreateScreen

        self._pace = pace
        if isinstance(self._app.screen, CreateScreen):
            self._app.screen.advise()

    def _estimate(self, prompts: int) -> str:
        return self._pace.estimate(prompts) if self._pace is not None else ""

    def _create(self, wanted: NewPersona | None) -> None:
        if wanted is not None:
            source: Source = (
                FromArchetype(wanted.archetype)
                if wanted.archetype
                else FromPrompts(wanted.prompts, wanted.description)
            )
            self._app.attempt(lambda: self.make(wanted.name, source))

    def make(self, name: str, source: Source) -> None:
        """Make a persona as a job; chat stays usable meanwhile.

        Raises:
            PersonaTuiError: it cannot be made, as far as that is known now.
        """
        self._app.project.check_new_name(name, source)
        request = create_request(self._app.project, name, source)
        self._app.jobs.submit_request(request, self.made)

    def made(self, job: Job[Any]) -> None:
        """Say what has become of a persona that was to be made, or of other long work."""
        if job.state == "done" and isinstance(job.result, Created):
            persona = job.result.persona
            weak = persona.metadata.get("weak_reason")
            self._app.notify(
                f"{persona.name} is ready: choose it in the list."
                if not weak
                else f"{persona.name} is weak: {weak}."
            )
        elif job.state == "done" and isinstance(job.result, str):
            self._app.say(job.result)
        elif job.state == "done" and job.result is not None and hasattr(job.result, "calibration"):
            self._app.say(calibrated_in_words(job.result))
        self.job_ended(job)

    def calibrate(self, name: str) -> None:
        """Calibrate a persona again, as a job.

        Raises:
            PersonaTuiError: there is no such persona, or it is a trait.
        """
        self._app.project.personas.get(name)
        self._app.jobs.submit_request(calibrate_request(self._app.project, name), self.made)

    def write(self, task: DatasetTask, seed: int) -> None:
        """Have the model write prompts, as a job."""
        self._app.jobs.submit_request(dataset_request(self._app.project, task, seed), self.made)

    def job_ended(self, job: Job[Any]) -> None:
        """Show what a job has changed, or why it failed."""
        if job.state == "failed" and job.error is not None:
            self._app.show_error(job.error)
        self.refresh()
        if not len(self._app.chat.conversation):
            self._app.welcome()


def _metadata(manager: PersonaManager, name: str) -> Mapping[str, Any]:
    """Return what a persona's file says about itself; of a damaged one, what is wrong with it."""
    try:
        return manager.about(name)
    except PersonaTuiError as error:
        return {"problem": str(error)}
