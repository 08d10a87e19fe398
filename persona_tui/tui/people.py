"""The app's personas: listing, loading, speaking as, deleting and making them."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from persona_tui.errors import PersonaTuiError
from persona_tui.job_requests import create_request, prepare_request
from persona_tui.jobs import Job
from persona_tui.prompts.reading import list_archetypes
from persona_tui.runtime import Created, FromArchetype, FromDescription, Source
from persona_tui.tui.details import details
from persona_tui.tui.screens.confirm import ConfirmScreen
from persona_tui.tui.screens.create import CreateScreen, NewPersona
from persona_tui.tui.screens.page import PageScreen
from persona_tui.tui.widgets.personas import PersonaRow

if TYPE_CHECKING:
    from persona_tui.tui.app import PersonaApp
    from persona_tui.vectors.manager import PersonaManager

_LOADING = "The model is still loading."
_NO_AXES = "This model has no axes yet: there is no floor, and no persona can be made."


class People:
    """What the user does with personas. Reading a vector file takes milliseconds, so it happens here."""

    def __init__(self, app: PersonaApp) -> None:
        self._app = app
        self._names: list[str] = []
        self._loaded: list[str] = []
        self._answers: dict[str, Callable[[str], None]] = {
            "load": self.toggle_loaded,
            "speak": self.speak_as,
            "info": self.info,
            "delete": self.delete,
        }

    @property
    def _manager(self) -> PersonaManager:
        if not self._app.model_ready:
            raise PersonaTuiError(_LOADING)
        return self._app.runtime.personas

    # --- showing

    def model_ready(self) -> None:
        """Load who should speak at first, and show everybody."""
        faders = self._app.voice.faders
        try:
            for name in faders.speaking:
                self._manager.load(name)
            self._app.voice.set(faders)
            if not self._app.runtime.engine.can_cap:
                self._app.main.chat.note(f"{_NO_AXES} /init makes them.")
        except PersonaTuiError as error:
            self._app.show_error(error)
            with contextlib.suppress(PersonaTuiError):  # the same, if it is not about who speaks
                self._app.voice.solo({})
        self.refresh()

    def refresh(self) -> None:
        """Look at the disk, and draw what is there."""
        runtime = self._app.runtime
        if self._app.model_ready:
            self._names, self._loaded = self._manager.list_available(), self._manager.list_loaded()
        else:
            folder = runtime.workspace.personas_dir(runtime.slug)
            self._names = sorted(path.stem for path in folder.glob("*.safetensors"))
        self.show()

    def show(self) -> None:
        """Draw the list of personas and the faders."""
        faders, panel = self._app.voice.faders, self._app.main.personas
        panel.show_rows(
            [PersonaRow(name, name in self._loaded, faders.speaking.get(name, 0.0)) for name in self._names]
        )
        if not self._app.model_ready:
            panel.say(_LOADING)
        weights = {name: faders.weights.get(name, 0.0) for name in self._loaded}
        self._app.main.mixer.show(faders.strength, faders.capping, self._floor(), weights)

    def _floor(self) -> str:
        engine = self._app.runtime.loaded_engine if self._app.model_ready else None
        try:
            if engine is None or not engine.can_cap:
                return "no floor: no axes yet"
            return f"floor: {engine.safety_floor:g}th percentile, {engine.capping_axis()} axis"
        except PersonaTuiError:  # said in the chat already
            return "no floor: the axes cannot be used"

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
        self._manager.load(name)
        self.refresh()

    def unload(self, name: str) -> bool:
        """Take a persona's fader away; whether it had one."""
        was_loaded = self._manager.unload(name)
        self._app.voice.keep_only(self._manager.list_loaded())
        self.refresh()
        return was_loaded

    def speak_as(self, name: str) -> None:
        """Let one persona speak alone, loading it first; once more, and nobody speaks."""
        self._manager.load(name)
        self.refresh()
        alone = {name: 1.0}
        self._app.voice.solo({} if self._app.voice.faders.speaking == alone else alone)

    def info(self, name: str) -> None:
        """Show what is known of a persona."""
        self._app.push_screen(PageScreen(name, details(self._manager.get(name))))

    def delete(self, name: str) -> None:
        """Delete a persona's file, after asking."""

        def answered(yes: bool | None) -> None:
            if yes:
                self._app.attempt(lambda: self._delete(name))

        self._app.push_screen(
            ConfirmScreen(f"Delete the persona {name}? Its file is removed.", "Delete", "Keep"), answered
        )

    def _delete(self, name: str) -> None:
        self._manager.delete(name)
        self._app.voice.keep_only(self._manager.list_loaded())
        self.refresh()
        self._app.notify(f"{name} is deleted.")

    # --- making

    def create(self, name: str = "", who: str = "") -> None:
        """Ask for a new persona, and make it as a job."""
        archetypes = list_archetypes(self._app.runtime.workspace)
        self._app.push_screen(CreateScreen(archetypes, self._names, name, who), self._create)

    def _create(self, wanted: NewPersona | None) -> None:
        if wanted is not None:
            source = (
                FromArchetype(wanted.archetype)
                if wanted.archetype
                else FromDescription(wanted.description or "")
            )
            self.make(wanted.name, source)

    def make(self, name: str, source: Source) -> None:
        """Make a persona as a job; chat stays usable meanwhile."""
        request = create_request(self._app.runtime, name, source)
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
        self.job_ended(job)

    def prepare(self) -> None:
        """Extract the axes and the archetypes' personas, as a job."""
        self._app.jobs.submit_request(prepare_request(self._app.runtime), self.made)

    def job_ended(self, job: Job[Any]) -> None:
        """Show what a job has changed, or why it failed."""
        if job.state == "failed" and job.error is not None:
            self._app.show_error(job.error)
        self.refresh()
