"""What every front end holds: one workspace, one model, and what there is for it.

Opening a project is cheap. The model and everything that needs it load on first use, on the thread that uses
them.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Self
from weakref import WeakSet

from persona_tui.core.config import Settings, override
from persona_tui.core.errors import ConfigError, ModelLoadError, PersonaTuiError, WorkspaceError
from persona_tui.core.jobs import JobContext
from persona_tui.core.processes import processes
from persona_tui.core.workspace import Workspace, model_slug

if TYPE_CHECKING:
    from persona_tui.core.connection import Connection
    from persona_tui.core.identity import ModelSketch
    from persona_tui.core.mix import Mix
    from persona_tui.datasets.generator import DatasetGenerator, PromptWriter
    from persona_tui.extraction.checkpoints import PartialStore
    from persona_tui.extraction.personas import PersonaStudio
    from persona_tui.model import ModelWrapper
    from persona_tui.monitors.guard import Guard, GuardMode
    from persona_tui.monitors.store import MonitorStore
    from persona_tui.steering.engine import SteeringEngine
    from persona_tui.traits.vector import TraitStore
    from persona_tui.vectors.manager import PersonaManager
    from persona_tui.vllm.client import ServedAbout

_SMALL = 50_000_000  # parameters; below that, one thread writes as fast as many


class ProjectResources:
    """What there is in a workspace for one model; `Project` says what its attributes are."""

    def __init__(self, workspace: Workspace, settings: Settings) -> None:
        self.workspace = workspace
        self.asked_model = settings.model.name
        self._lender: tuple[Connection, ServedAbout] | None = None
        if settings.model.engine.startswith("http"):
            from persona_tui.vllm.client import connect

            self._lender = connect(settings.model.engine)
            # A server does not promise the guide.
            values = {"model.name": self._lender[1].name, "steering.plausibility": 0.0}
            settings = override(settings, values)
        self.settings = _with_chosen_model(settings)
        self.on_model_load: Callable[[str], None] = lambda name: None
        self.notes: list[str] = []
        self.on_note: Callable[[str], None] = lambda note: None
        self.opens_without = False
        self.at: str | None = None
        self._model: ModelWrapper | None = None
        self._personas: PersonaManager | None = None
        self._engine: SteeringEngine | None = None
        self._guards: WeakSet[Guard] = WeakSet()

    @classmethod
    def open(
        cls,
        workspace: Path | None = None,
        model: str | None = None,
        device: str | None = None,
        dtype: str | None = None,
        quantization: str | None = None,
        trusted_model: str | None = None,
        engine: str | None = None,
    ) -> Self:
        """Find the workspace and read its settings; None = as config.yaml says.

        `trusted_model` names the one model whose own code may run, as `model.trust_remote_code` does.

        Raises:
            WorkspaceError: the workspace cannot be used.
            ConfigError: a setting, there or here, is not allowed.
        """
        found = processes().from_main(lambda: Workspace.find(workspace))
        given = {
            "name": model,
            "device": device,
            "dtype": dtype,
            "quantization": quantization,
            "trust_remote_code": trusted_model,
            "engine": engine,
        }
        values = {f"model.{key}": value for key, value in given.items() if value is not None}
        project = cls(found, override(found.settings, values))
        if model is not None and project._lender is not None and project.settings.model.name != model:
            lent = project.settings.model.name
            raise ConfigError(f"{engine} lends {lent}, and not {model}: leave --model out.")
        return project

    def override(self, values: dict[str, object]) -> None:
        """Replace settings, by dotted key, for this run only. Call it before the model is used.

        Raises:
            ConfigError: a key is unknown or a value not allowed.
        """
        if values:
            self.settings = override(self.settings, values)

    @property
    def lent(self) -> bool:
        """Whether a server lends the model: its weights need not be on this machine."""
        return self._lender is not None

    @property
    def fell_back(self) -> bool:
        """Whether the tiny model is used only because the starter model is not on this machine."""
        from persona_tui.model.sources import AUTO, TINY

        return self.asked_model == AUTO and self.settings.model.name == TINY

    # What there is ----------------------------------------------------------------------------------------

    @property
    def slug(self) -> str:
        """The name of the model's folder of vectors.

        The starter model's original on the hub has the starter model's, as long as it has none of its own.
        """
        from persona_tui.model.sources import STARTER, STARTER_REPO

        name = self.settings.model.name
        try:
            slug = self.workspace.slug(name)
        except WorkspaceError:
            if not self.opens_without:
                raise
            return model_slug(name)
        original = name == STARTER_REPO and not (self.workspace.vectors / slug).is_dir()
        return STARTER if original else slug

    def check_known(self) -> None:
        """Raise ModelLoadError if the model is not on this machine and nothing was ever made for it here.

        A list of nothing would hide that its name is misspelt.
        """
        from persona_tui.model.sources import resolve

        if self.lent or (self.workspace.vectors / self.slug).is_dir():
            return
        source = resolve(self.settings.model.name)
        if source.kind == "hub" and source.folder is None:
            raise ModelLoadError(
                f'"{source.name}" is not on this machine, and nothing was made for it here: check the name, '
                f"or make something: persona-tui --model {source.name} init."
            )

    @property
    def model_loaded(self) -> bool:
        """Whether the model is in memory."""
        return self._model is not None

    @property
    def model(self) -> ModelWrapper:
        """The model, loaded on first use.

        Raises:
            ModelLoadError: one line that says why.
        """
        self.check_here("That")
        if self._model is None:
            chosen = self.settings.model
            if self._lender is None:
                self.on_model_load(chosen.name)
            # Trust is for one model by name; it does not pass to another that a session or /model names.
            trusted = chosen.trust_remote_code
            trusts = trusted is not None and model_slug(trusted) == model_slug(chosen.name)
            how = (chosen.name, chosen.device, chosen.dtype, chosen.quantization, trusts)
            if self._lender is not None:
                from persona_tui.vllm.client import ServedModel

                if chosen.name != self._lender[1].name:
                    raise ModelLoadError(
                        f"{chosen.engine} lends {self._lender[1].name}, and not {chosen.name}."
                    )
                model: ModelWrapper = ServedModel.connect(*self._lender)
            elif chosen.engine == "vllm":
                from persona_tui.vllm.engine import VllmModel

                model = VllmModel.start(*how, self.settings.vllm)
            else:
                from persona_tui.model import ModelWrapper

                model = ModelWrapper.load(*how)
                _share_cores(model)
            if chosen.compile:
                model.compile()
            self._model = model
            # What was read before is read again, now that it can be checked against the model.
            self._personas = None
        return self._model

    def check_here(self, what: str) -> None:
        """Make sure that something can be done which takes the model itself.

        Args:
            what: in words that begin a sentence.

        Raises:
            PersonaTuiError: the model is on another machine.
        """
        if self.at is not None:
            raise PersonaTuiError(f"{what} needs the model itself, which is at {self.at}: do it there")

    @property
    def n_parameters(self) -> int:
        """How many parameters the model has; loads it."""
        return self.model.n_parameters

    @property
    def personas(self) -> PersonaManager:
        """The model's personas. Once the model is loaded, vectors made on another one are refused."""
        if self._personas is None:
            from persona_tui.vectors.manager import PersonaManager

            self._personas = PersonaManager(self.workspace.model_dir(self.slug), *self._made_on())
        return self._personas

    def _made_on(self) -> tuple[str | None, str, ModelSketch | None, Callable[[str], None]]:
        """Return what a store checks its files against, once the model is loaded."""
        model, name = self._model, self.settings.model.name
        if model is None:
            return None, name, None, self._note
        return model.fingerprint, name, model.sketch, self._note

    def _note(self, note: str) -> None:
        if note not in self.notes:
            self.notes.append(note)
            self.on_note(note)

    @property
    def engine(self) -> SteeringEngine:
        """What generates and steers; loads the model."""
        if self._engine is None:
            from persona_tui.steering.engine import SteeringEngine

            model = self.model
            self._engine = SteeringEngine(model, self.personas, self.settings)
            self._engine.on_note = self._note
        return self._engine

    @property
    def loaded_engine(self) -> SteeringEngine | None:
        """The engine if it is there already; never loads anything."""
        return self._engine

    @property
    def monitors(self) -> MonitorStore:
        """The model's monitors; nothing is loaded."""
        from persona_tui.monitors.store import MonitorStore

        return MonitorStore(self.workspace, self.slug, self.settings.model.name, self._note)

    @property
    def traits(self) -> TraitStore:
        """The model's traits. Once the model is loaded, those of another one are refused."""
        from persona_tui.traits.vector import TraitStore

        return TraitStore(self.workspace.traits_dir(self.slug), *self._made_on())

    def new_guard(self, mode: GuardMode | None = None) -> Guard:
        """Return what judges the messages and replies of one chat, or of one answer, in whichever front end.

        Given to the engine (`stream_rows`, `reply`) or to `ChatReply.write`, it keeps what the settings
        promise. Where there is no monitor, it fails closed: nothing is answered.

        Args:
            mode: to guard in; None = as the settings say. It can be changed.
        """
        from persona_tui.monitors.guard import Guard

        chosen = self.settings.monitoring
        guard = Guard(  # the store imports torch, which a chat does without until it is needed
            lambda: self.monitors.load(chosen.monitor, self.model),
            mode or chosen.guard,
            lambda: self.monitors.check_exists(chosen.monitor),
            lambda: self.monitors.load(chosen.monitor).weakness,
        )
        self._guards.add(guard)
        return guard

    def forget_monitor(self) -> None:
        """Have the guards of all chats read their monitor again: it is another one now."""
        for guard in list(self._guards):
            guard.forget_monitor()

    def default_mix(self) -> Mix:
        """Return what the settings say about steering, with no persona."""
        from persona_tui.core.mix import Mix

        return Mix.of(self.settings.steering)

    # What makes more ----------------------------------------------------------------------------------------

    def write_via(self, url: str, model: str) -> None:
        """Have data sets and system prompts written by a model behind an HTTP endpoint, for this run.

        Raises:
            ConfigError: this is no address, or there is no name.
        """
        self.override({"writing.url": url, "writing.model": model})

    def generator(self, context: JobContext, seed: int = 0) -> DatasetGenerator:
        """Return what writes data sets: with the model in use, or with the one that the settings name."""
        from persona_tui.datasets.generator import DatasetGenerator

        return DatasetGenerator(self._writer(), context.progress, context.checkpoint, seed)

    def _writer(self) -> PromptWriter:
        from persona_tui.datasets.endpoint import Endpoint

        writing = self.settings.writing
        if writing.url is None:
            return self.model
        if writing.model is None:
            raise ConfigError(f"writing.model must be the name of a model at {writing.url}")
        return Endpoint(writing.url, writing.model, writing.key_variable, writing.timeout)

    def studio(self, context: JobContext) -> PersonaStudio:
        """Return what makes personas and axes with the loaded model."""
        from persona_tui.extraction.extractor import ActivationExtractor
        from persona_tui.extraction.personas import PersonaStudio

        extractor = ActivationExtractor(
            self.model,
            self.settings,
            context.progress,
            context.checkpoint,
            log=context.log,
            on_prompt=context.working_on,
            on_reply=lambda reply: context.working_on(f"“{' '.join(reply.split())}”"),
        )
        return PersonaStudio(self.workspace, self.personas, extractor, context.log)

    def partial(self, log: Callable[[str], None] | None = None) -> PartialStore:
        """Return what is kept of the model's interrupted jobs; no model is loaded."""
        from persona_tui.extraction.checkpoints import PartialStore

        return PartialStore(self.workspace.model_dir(self.slug), self.workspace.root, log)


def _with_chosen_model(settings: Settings) -> Settings:
    """Return the settings with the name of a model in place of `auto`."""
    from persona_tui.model.sources import chosen

    name = chosen(settings.model.name)
    return settings if name == settings.model.name else override(settings, {"model.name": name})


@cache
def _all_threads() -> int:
    """Return how many threads torch takes by itself."""
    import torch

    return torch.get_num_threads()


def _share_cores(model: ModelWrapper) -> None:
    """Keep a small model to one thread: more of them wait for each other longer than they compute."""
    if "OMP_NUM_THREADS" in os.environ:  # whoever sets it means it
        return
    import torch

    small = model.device.type == "cpu" and model.n_parameters < _SMALL
    threads = _all_threads()
    torch.set_num_threads(1 if small else threads)
