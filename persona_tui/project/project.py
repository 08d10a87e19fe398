"""`Project`: a workspace and a model, and the long work that is done with them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from persona_tui.core.errors import DatasetError, PersonaTuiError, VectorFileError
from persona_tui.core.files import atomic_write_bytes, check_case
from persona_tui.core.jobs import JobContext
from persona_tui.core.mix import TRAIT_PREFIX
from persona_tui.core.processes import processes
from persona_tui.core.workspace import packaged_root
from persona_tui.project.preparation import Prepared, preparation_work
from persona_tui.project.resources import ProjectResources

if TYPE_CHECKING:
    from persona_tui.datasets.generator import GenerationReport
    from persona_tui.extraction.personas import PersonaStudio, Refusals
    from persona_tui.monitors.evaluation import Evaluation
    from persona_tui.monitors.monitor import SelfMonitor
    from persona_tui.monitors.trade import Trade
    from persona_tui.traits.definition import TraitDefinition
    from persona_tui.traits.extract import Recipe
    from persona_tui.traits.vector import TraitVector
    from persona_tui.vectors.axes import Axes
    from persona_tui.vectors.persona import PersonaVector


@dataclass(frozen=True)
class FromArchetype:
    """A persona is made from an archetype's system prompts."""

    archetype: str


@dataclass(frozen=True)
class FromDescription:
    """A persona is made from a description.

    Attributes:
        description: who it is.
        by_model: whether a model writes the system prompts (the one in use, or the one that the settings
            name); else they are put together from the description.
    """

    description: str
    by_model: bool = False


@dataclass(frozen=True)
class FromPrompts:
    """A persona is made from these system prompts.

    Attributes:
        prompts: the system prompts.
        description: who it is, if a model drafted the prompts from that; None = people wrote them.
    """

    prompts: tuple[str, ...]
    description: str | None = None


Source: TypeAlias = FromArchetype | FromDescription | FromPrompts


@dataclass(frozen=True)
class Created:
    """A new persona, and how its system prompts came about (None: they were there already)."""

    persona: PersonaVector
    prompts: GenerationReport | None = None


class Project(ProjectResources):
    """A workspace and its model.

    Attributes:
        workspace: where everything is.
        settings: its configuration, with what the command line overrides.
        asked_model: the model's name as the settings have it; `settings` has what that stands for.
        on_model_load: called with the model's name before it loads, which may take minutes.
        notes: what is worth knowing about the vectors in use: that they were made on a near copy of the
            model, that a loaded one is damaged, or that a floor cannot be enforced.
        on_note: called with each of them once, on the thread that reads the vectors.
        opens_without: whether a model folder that does not exist is an error only when it is loaded.
        at: the address of the server that has the model; None = it is, or will be, loaded here.
    """

    def create_persona(self, name: str, source: Source, context: JobContext) -> Created:
        """Extract, save, load and calibrate a persona; cancelled while it is calibrated, it stays.

        Raises:
            PersonaTuiError: the name cannot be used, or the prompts are missing.
            JobCancelled: somebody asked for that; the next call goes on.
        """
        return self.create_personas({name: source}, context)[0]

    def create_personas(self, sources: Mapping[str, Source], context: JobContext) -> list[Created]:
        """Make several personas, by name, as `create_persona` does. They share baseline and questions."""
        for name, source in sources.items():
            self.check_new_name(name, source)
        studio = self.studio(context)
        prompts = [self.prompts_of(source) for source in sources.values()]
        studio.extractor.announce(studio.persona_work(prompts[0], len(prompts)))
        return [self._create(name, source, studio, context) for name, source in sources.items()]

    def prompts_of(self, source: Source) -> list[str]:
        """Return the system prompts that a persona is made from, or such as the model will write."""
        from persona_tui.datasets.records import find_archetype
        from persona_tui.datasets.templates import fallback_prompts
        from persona_tui.vectors.manager import PROMPTS_PER_PERSONA

        if isinstance(source, FromPrompts):
            return list(source.prompts)
        if isinstance(source, FromArchetype):
            return [each.system_prompt for each in find_archetype(self.workspace, source.archetype)]
        return [each["system_prompt"] for each in fallback_prompts(source.description, PROMPTS_PER_PERSONA)]

    def _create(self, name: str, source: Source, studio: PersonaStudio, context: JobContext) -> Created:
        report = None
        try:
            if isinstance(source, FromPrompts):
                persona = studio.create_from_prompts(name, source.prompts, source.description)
            elif isinstance(source, FromArchetype):
                persona = studio.create_from_archetype(name, source.archetype)
            else:
                generator = self.generator(context) if source.by_model else None
                persona = studio.create_from_description(name, source.description, generator)
                report = generator.report if generator is not None else None
        finally:  # what was cancelled while it was calibrated can be heard
            if self.personas.path_of(name).is_file():
                processes().from_main(lambda: self.personas.load(name))
        return Created(persona, report)

    def check_new_name(self, name: str, source: Source) -> None:
        """Raise what `create_persona` would, as far as that is known without the model."""
        self.check_here("Making a persona")
        from persona_tui.datasets.records import check_archetype_free, find_archetype
        from persona_tui.datasets.templates import check_description

        path = self.personas.path_of(name)
        check_case(path)
        if path.is_file() and not self.personas.get(name).metadata.get("pending"):
            raise PersonaTuiError(
                f'a persona "{name}" already exists: delete it first or choose another name'
            )
        if isinstance(source, FromArchetype):
            find_archetype(self.workspace, source.archetype)
        elif isinstance(source, FromPrompts):
            if not any(prompt.strip() for prompt in source.prompts):
                raise PersonaTuiError("a persona needs at least one system prompt")
        else:
            check_description(source.description)
            if not source.by_model:
                check_archetype_free(self.workspace, name, self.prompts_of(source))
            elif f"persona-{name}" not in self.partial().interrupted():
                check_archetype_free(self.workspace, name)

    def extract_axes(
        self, context: JobContext, refusals: Refusals = "own"
    ) -> tuple[Axes, list[PersonaVector]]:
        """Extract the model's axes and the archetypes' personas, replacing what there is.

        Args:
            context: where progress goes.
            refusals: what the safety axis is made of: the model's own refusals, or given ones that it reads.

        Raises:
            DatasetError: a data set is missing or bad.
            JobCancelled: somebody asked for that; what was finished stays, and the next call goes on.
        """
        self.check_datasets()
        studio = self.studio(context)
        studio.extractor.announce(studio.axes_work())
        return studio.extract_axes(refusals=refusals)

    def calibrate(
        self,
        name: str,
        context: JobContext,
        prompts: Sequence[str] | None = None,
        description: str | None = None,
    ) -> PersonaVector:
        """Calibrate a persona or a trait (`trait:NAME`), and save it.

        Args:
            name: of the persona.
            context: where progress goes.
            prompts: system prompts of the character that it should sound like, kept with it; for what was
                imported, whose file has none.
            description: who that is, instead of `prompts`.

        Raises:
            PersonaNotFoundError: no persona has this name.
            DatasetError: a trait's conversations, or a persona's system prompts, are missing.
            JobCancelled: somebody asked for that; the next call goes on.
        """
        from persona_tui.vectors.manager import check_own

        check_own(name)
        self.check_here("Calibrating")
        self.personas.get(name)  # not found is an error now, not after loading the model
        studio = self.studio(context)
        if name.startswith(TRAIT_PREFIX):
            return self._calibrate_trait(name, studio)
        if description is not None:
            prompts = self.prompts_of(FromDescription(description))
        if prompts:
            self._give_prompts(name, prompts, description)
        studio.extractor.announce(studio.calibration_work(name))
        return studio.calibrate(name)

    def _give_prompts(self, name: str, prompts: Sequence[str], description: str | None) -> None:
        persona = self.personas.get(name)
        said = {"prompts": list(prompts)} | ({"description": description} if description else {})
        given = replace(persona, metadata={**persona.metadata, **said})
        processes().from_main(lambda: bool(self.personas.save(given)))

    def _calibrate_trait(self, name: str, studio: PersonaStudio) -> PersonaVector:
        from persona_tui.traits.definition import SIDES, find_definition

        try:
            definition = find_definition(self.workspace, name.removeprefix(TRAIT_PREFIX))
        except DatasetError as error:
            raise DatasetError(
                f"{name} is calibrated on the conversations that it was made of: put their file into "
                f"{self.workspace.datasets / 'traits'} ({error})"
            ) from error
        high, low = ([messages for _, messages in definition.conversations("train", side)] for side in SIDES)
        return studio.calibrate_contrast(name, high, low)

    def find_band(self, context: JobContext) -> tuple[tuple[int, ...], dict[tuple[int, ...], float]]:
        """Find the layers where steering works best on this model, and fit every persona's gain to them.

        Returns:
            The band, and what steering recovers in every band that was compared.

        Raises:
            PersonaTuiError: there are too few personas.
            JobCancelled: somebody asked for that; the next call goes on.
        """
        return self.studio(context).find_band()

    def init(
        self, context: JobContext, refusals: Refusals = "own", roles: Sequence[str] | None = ()
    ) -> Prepared:
        """Make the workspace ready: data sets, axes, the archetypes' personas. What is there already stays.

        Args:
            context: where progress goes.
            refusals: what the safety axis is made of, if it is made; see `extract_axes`.
            roles: archetypes that a mean is kept of, for a map of persona space; None = all, the catalogue's
                too.

        Raises:
            DatasetError: a data set is bad.
            JobCancelled: somebody asked for that; what was finished stays.
        """
        from persona_tui.datasets.records import archetype_prompts
        from persona_tui.extraction.roles import roles_work, save_roles

        self.check_here("Preparing a model")
        done = Prepared(restored=processes().from_main(self.restore_datasets))
        done.records = self.check_datasets()
        archetype_prompts(self.workspace, roles)  # a name that nobody has is an error now
        self.model  # noqa: B018  # from here on, vectors of another model are told from this one's
        if self.personas.axes is None or "axes" in self.partial().interrupted():
            _, personas = self.extract_axes(context, refusals)
            done.axes_extracted = True
            done.personas = [persona.name for persona in personas]
        studio = self.studio(context)
        studio.extractor.announce(preparation_work(self, studio))
        for name in studio.hand_written_archetypes():
            if name not in self.personas.list_available():
                context.log(f"Extracting {name}.")
                studio.create_from_archetype(name, name)
                done.personas.append(name)
        if roles is None or roles:
            wanted = archetype_prompts(self.workspace, roles)
            studio.extractor.announce(roles_work(studio, wanted))
            done.roles = len(save_roles(studio, wanted).names)
        return done

    def fit_monitor(
        self,
        name: str,
        context: JobContext,
        which: str = "both",
        file: Path | None = None,
        like: Path | None = None,
        method: str = "auto",
        seed: int = 0,
        trade: Trade | None = None,
    ) -> SelfMonitor:
        """Fit a monitor and save it, replacing what has its name.

        Args:
            name: of the monitor.
            context: where progress goes.
            which: the data to fit on (see `training.load_training`).
            file: labelled queries of the user's own instead.
            like: the file of a monitor, of this model or another, to take the data from instead.
            method: the one to use; "auto" = the one with the fewest false alarms in cross-validation.
            seed: of the folds.
            trade: what its threshold has to achieve; by default `Trade()`.

        Raises:
            DatasetError: the data are missing, bad or too few.
            VectorFileError: `like` cannot be read.
            MonitorError: there is no such method.
            JobCancelled: somebody asked for that; the next call goes on.
        """
        from persona_tui.monitors.monitor import SelfMonitor
        from persona_tui.monitors.training_data import load_training

        self.monitors.path_of(name)  # a bad name is an error now
        if like is not None:
            data = SelfMonitor.load(like).training
        else:
            data = load_training(self.workspace, which, file)
        partial = self.partial(context.log)
        recipe = {"model": " ".join(self.model.identity), "data": repr(data.record())}
        with partial.job(f"monitor-{name}", recipe), partial.rendered(self.model):
            monitor = SelfMonitor.fit(self.model, data, name, method, seed, context, partial, trade)
            processes().from_main(lambda: self.monitors.save(monitor))
        self.forget_monitor()
        return monitor

    def evaluate_monitor(self, name: str, context: JobContext) -> Evaluation:
        """Measure a monitor on the shipped test sets, and keep what was found beside it.

        Raises:
            MonitorError: there is no such monitor, or a test query is among what it was fitted on.
            DatasetError: a data set is missing or bad.
            JobCancelled: somebody asked for that; nothing was written.
        """
        from persona_tui.monitors.evaluation import evaluate
        from persona_tui.monitors.query_sets import load_sets

        self.monitors.check_exists(name)  # before the model loads
        sets = load_sets(self.workspace)
        found = evaluate(self.monitors.load(name, self.model), sets, context)
        processes().from_main(lambda: self.monitors.keep_evaluation(found))
        self.forget_monitor()
        return found

    def extract_traits(
        self, definitions: Sequence[TraitDefinition], context: JobContext, recipe: Recipe | None = None
    ) -> list[TraitVector]:
        """Extract traits and save each as soon as it is made, replacing what has its name.

        Args:
            definitions: what they are.
            context: where progress goes.
            recipe: which replies they are made from; None = those of the definition, if it has any.

        Raises:
            DatasetError: a definition has too few conversations, or no system prompts for "prompts".
            GenerationError: too few replies could be used.
            JobCancelled: somebody asked for that; the next call goes on.
        """
        from persona_tui.traits.extract import PersonaVectorExtractor
        from persona_tui.traits.health import Surroundings

        partial = self.partial(context.log)
        extractor = PersonaVectorExtractor(
            self.model,
            self.settings,
            self._axes_if_good(context),
            context.progress,
            context.checkpoint,
            context.log,
            partial,
            Surroundings.of(self.workspace, context.log),
        )
        made = []
        for definition in definitions:
            parts = self._trait_recipe(definition, recipe or definition.recipe)
            with partial.job(f"trait-{definition.name}", parts), partial.rendered(self.model):
                trait = extractor.extract(definition, recipe)
                processes().from_main(lambda trait=trait: bool(self.traits.save(trait)))  # type: ignore[misc]
            made.append(trait)
        return made

    def _axes_if_good(self, context: JobContext) -> Axes | None:
        """Return the model's axes, for steering. Measuring does without them, so that bad ones do not stop
        it.
        """
        try:
            return self.personas.axes
        except VectorFileError as error:
            context.log(f"Traits are made without a safety axis: {error}")
            return None

    def _trait_recipe(self, definition: TraitDefinition, recipe: str) -> dict[str, str]:
        """Return what a trait depends on, for those who go on with an interrupted extraction."""
        extraction = self.settings.extraction.model_dump(exclude={"batch_size"})
        return {
            "model": " ".join(self.model.identity),
            "recipe": recipe,
            "definition": definition.model_dump_json(),
            **{f"extraction.{key}": repr(value) for key, value in extraction.items()},
        }

    # Data sets --------------------------------------------------------------------------------------------

    def restore_datasets(self) -> list[Path]:
        """Copy the data sets that are missing from the package; what was copied."""
        source = packaged_root() / "datasets"
        if source.resolve() == self.workspace.datasets.resolve():
            return []
        wanted = [
            "safety/safe_prompts.jsonl",
            "safety/unsafe_prompts.jsonl",
            "safety/refusals.jsonl",
            "personas/extraction_questions.jsonl",
            *sorted(str(path.relative_to(source)) for path in (source / "monitors").glob("*.jsonl")),
        ]
        # Archetypes are the user's own choice as soon as there is one.
        if not list((self.workspace.datasets / "personas" / "archetypes").glob("*.jsonl")):
            found = (source / "personas" / "archetypes").glob("*.jsonl")
            wanted += sorted(str(path.relative_to(source)) for path in found)
        missing = [name for name in wanted if not (self.workspace.datasets / name).exists()]
        for name in missing:
            atomic_write_bytes(self.workspace.datasets / name, (source / name).read_bytes())
        return [self.workspace.datasets / name for name in missing]

    def check_datasets(self) -> int:
        """Return how many records there are.

        Raises:
            DatasetError: names the first problem.
        """
        from persona_tui.datasets.validate import validate_datasets

        reports = validate_datasets(self.workspace)
        problems = [f"{report.path}: {problem}" for report in reports for problem in report.problems]
        if problems:
            more = f" ({len(problems) - 1} more: `persona-tui dataset validate`)" if problems[1:] else ""
            raise DatasetError(f"{problems[0]}{more}")
        return sum(report.count for report in reports)
