"""Making personas, start to end: read the prompts, extract, save, calibrate, save again.

A persona's file is written as soon as its vectors are finished: from then on it can be used, at the loudness
that personas usually need, and it says that it is not calibrated. What a job has besides is kept until it
succeeds (`checkpoints`), so that the same call goes on where it was stopped. Several processes may call
these functions together (`processes`).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal

from persona_tui.core.documents import json_value, read_plain
from persona_tui.core.errors import GenerationError, PersonaTuiError, VectorFileError
from persona_tui.core.files import atomic_write_text, safe_name
from persona_tui.core.processes import processes
from persona_tui.core.workspace import Workspace
from persona_tui.datasets.records import (
    archetype_path,
    check_archetype_free,
    find_archetype,
    list_archetypes,
    read_archetype,
    read_questions,
    read_refusals,
    read_roles,
    read_safety,
)
from persona_tui.datasets.templates import check_description, fallback_prompts
from persona_tui.extraction.axes import axes_work, extract_axes
from persona_tui.extraction.bench import calibration_plan
from persona_tui.extraction.calibration import calibrated, find_band, fit_contrast
from persona_tui.extraction.checkpoints import PartialStore
from persona_tui.extraction.extractor import ActivationExtractor, completed
from persona_tui.extraction.runner import Work
from persona_tui.extraction.sums import BASELINE_FILE, Baseline
from persona_tui.model import Message
from persona_tui.vectors.axes import Axes
from persona_tui.vectors.files import check_model
from persona_tui.vectors.manager import PROMPTS_PER_PERSONA, PersonaManager
from persona_tui.vectors.persona import PersonaVector, default_gains

if TYPE_CHECKING:
    from persona_tui.datasets.generator import DatasetGenerator

AXES_JOB = "axes"
Refusals = Literal["own", "given"]
BAND_FILE = "band.json"
FEWEST_FOR_BAND = 3  # personas; with fewer, a band fits those and no others


@dataclass
class PersonaStudio:
    """Everything that making a persona takes.

    Attributes:
        workspace: where prompts are read from and written to.
        manager: where vectors are kept.
        extractor: what asks the model; it is given the workspace's questions and the model's axes.
        log: told what was found of interrupted jobs, in one line.
        partial: what is kept of them.
    """

    workspace: Workspace
    manager: PersonaManager
    extractor: ActivationExtractor
    log: Callable[[str], None] | None = None
    partial: PartialStore = field(init=False)

    def __post_init__(self) -> None:
        self.partial = PartialStore(self.manager.vectors_dir, self.workspace.root, self.log)
        self.extractor.partial = self.partial
        if not self.extractor.questions:
            self.extractor.use_questions(read_questions(self.workspace))
        if self.extractor.axes is None:
            self.extractor.axes = self.manager.axes
        self.extractor.baseline = self._known_baseline()
        self.extractor.band = self._known_band()

    # What is known of the model -----------------------------------------------------------------------------

    def _known_baseline(self) -> Baseline | None:
        path, model = self.manager.vectors_dir / BASELINE_FILE, self.extractor.model
        if not path.is_file():
            return None
        try:
            baseline = Baseline.load(path)
            note = check_model(path, baseline.metadata, model.fingerprint, model.name, model.sketch)
        except VectorFileError as error:
            note = str(error)
        # A persona is the difference of two means: both must be of the same weights.
        if note:
            self._say(f"{note} The baseline is made again.")
            return None
        return baseline

    def _known_band(self) -> tuple[int, ...]:
        """Return this model's band: what the settings name, else what was found, else the usual one."""
        path, extractor = self.manager.vectors_dir / BAND_FILE, self.extractor
        if extractor.settings.extraction.target_layers != "auto" or not path.is_file():
            return extractor.band
        try:
            layers = tuple(int(layer) for layer in json_value(read_plain(path))["layers"])
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            self._say(f"{path} cannot be read; using the default band.")
            return extractor.band
        return layers if layers and set(layers) <= set(extractor.layers) else extractor.band

    def _say(self, line: str) -> None:
        if self.log is not None:
            self.log(line)

    # Axes ---------------------------------------------------------------------------------------------------

    def extract_axes(
        self, archetypes: Sequence[str] | None = None, refusals: Refusals = "own"
    ) -> tuple[Axes, list[PersonaVector]]:
        """Extract the axes and the archetypes' personas, calibrate those (if configured), and save it all.

        Args:
            archetypes: their names; by default all in the workspace that were not made from a description.
            refusals: whether the model writes them, or given ones are read, which every model can do.

        Raises:
            DatasetError: a data set is missing or bad.
            JobCancelled: somebody asked for that; what was finished stays, and the next call goes on.
        """
        names = self.hand_written_archetypes() if archetypes is None else list(archetypes)
        safe, unsafe = read_safety(self.workspace, "safe"), read_safety(self.workspace, "unsafe")
        prompts = {name: read_archetype(self.workspace, name) for name in names}
        roles = read_roles(self.workspace)
        given = read_refusals(self.workspace) if refusals == "given" else []
        with self.job(
            AXES_JOB,
            archetypes=[[name, [each.system_prompt for each in prompts[name]]] for name in names],
            roles=[[each.id, each.system_prompt] for each in roles],
            safety_prompts=[[each.id, each.prompt, each.system] for each in [*safe, *unsafe]],
            refusals=given,
        ):
            axes, personas = extract_axes(self.extractor, safe, unsafe, prompts, roles, given)
            self._written(lambda: self.manager.save_axes(axes))
            self._complete()
            for persona in personas:
                self._save(persona)
            if self.extractor.settings.calibration.enabled:
                personas = [self._saved(calibrated(self.extractor, persona)) for persona in personas]
            return axes, personas

    def axes_work(self) -> dict[str, Work]:
        """Return how much work `extract_axes` is, by what it is for."""
        names = self.hand_written_archetypes()
        prompts = {name: read_archetype(self.workspace, name) for name in names}
        work = axes_work(
            self.extractor,
            read_safety(self.workspace, "safe"),
            read_safety(self.workspace, "unsafe"),
            prompts,
            read_roles(self.workspace),
        )
        if self.extractor.has_baseline:
            del work["baseline"]
        texts = {name: [each.system_prompt for each in found] for name, found in prompts.items()}
        calibration = sum((self._calibration_work(each) for each in texts.values()), Work())
        return work | ({"calibration": calibration} if calibration.tokens else {})

    def _complete(self) -> None:
        """Give the personas that were made before the axes their `safe` vectors."""
        for name in self.manager.list_available():
            try:
                persona = self.manager.get(name)
            except VectorFileError as error:
                self._say(str(error))
                continue
            if persona.metadata.get("orthogonalised") is False:
                self._save(completed(persona, self.manager.axes))
                self._say(f"{name} has lost its component along the safety axis.")

    def hand_written_archetypes(self) -> list[str]:
        """Return the archetypes that people wrote: those that the assistant axis is made from."""
        return [
            name
            for name in list_archetypes(self.workspace)
            if all(prompt.source is None for prompt in read_archetype(self.workspace, name))
        ]

    # Personas -----------------------------------------------------------------------------------------------

    def create_from_archetype(self, name: str, archetype: str) -> PersonaVector:
        """Extract, save and calibrate (if configured) a persona from an archetype's system prompts.

        Raises:
            PersonaTuiError: the name is taken.
            DatasetError: there is no such archetype.
            VectorFileError: the model's axes are for other layers than the settings ask for.
            JobCancelled: somebody asked for that; the next call goes on.
        """
        prompts = [prompt.model_dump() for prompt in find_archetype(self.workspace, archetype)]
        return self._create(name, prompts, None, "archetype")

    def create_from_prompts(
        self, name: str, prompts: Sequence[str], description: str | None = None
    ) -> PersonaVector:
        """Extract, save and calibrate (if configured) a persona from system prompts; write nothing else.

        Args:
            name: its name.
            prompts: the system prompts.
            description: who it is, if a model drafted the prompts from that.

        Raises:
            PersonaTuiError: the name is taken.
            DatasetError: there are no prompts.
            VectorFileError: the model's axes are for other layers than the settings ask for.
            JobCancelled: somebody asked for that; the next call goes on.
        """
        written_by = "people" if description is None else "model"
        records = [{"system_prompt": prompt, "source": written_by} for prompt in prompts]
        source = "prompts" if description is None else "generated"
        return self._create(name, records, description, source)

    def create_from_description(
        self,
        name: str,
        description: str,
        generator: DatasetGenerator | None = None,
    ) -> PersonaVector:
        """Write system prompts for a character, keep them as an archetype of that name, and extract it.

        Args:
            name: its name.
            description: who it is.
            generator: writes the prompts with a model; None = they are put together from the description.

        Raises:
            PersonaTuiError: the name is taken.
            DatasetError: there is an archetype of that name with other prompts, which is never replaced.
            GenerationError: no system prompts could be made from the description.
            VectorFileError: the model's axes are for other layers than the settings ask for.
            JobCancelled: somebody asked for that; the next call goes on.
        """
        if generator is None:
            prompts = self.write_prompts(name, description)
            return self._create(name, prompts, description, "generated")
        check_description(description)
        if f"persona-{name}" not in self.partial.interrupted():
            check_archetype_free(self.workspace, name)
        self._check_free(name, None)
        generator.partial = self.partial
        with self.job(f"persona-{name}", description=description):
            prompts = generator.generate_persona_prompts(description, PROMPTS_PER_PERSONA)
            if not prompts:
                raise GenerationError(f"no system prompts could be made from the description of {name}")
            check_archetype_free(self.workspace, name, [each["system_prompt"] for each in prompts])
            # Before the persona, whose file says that all is done.
            self._written(lambda: generator.save_jsonl(prompts, archetype_path(self.workspace, name)))
            enabled = self.extractor.settings.calibration.enabled
            persona = self._extracted(name, prompts, description, "generated", pending=enabled)
        return self._calibrated(persona) if enabled else persona

    def write_prompts(self, name: str, description: str) -> list[dict[str, Any]]:
        """Put a described character's system prompts together, in its archetype's file, for people to edit.

        The arguments and errors are those of `create_from_description`.
        """
        check_description(description)
        texts = fallback_prompts(description, PROMPTS_PER_PERSONA)
        check_archetype_free(self.workspace, name, [each["system_prompt"] for each in texts])
        self._check_free(name, [each["system_prompt"] for each in texts])
        prompts: list[dict[str, Any]] = [
            {"id": f"prompt_{number:03d}", **each, "source": "fallback"}
            for number, each in enumerate(texts, 1)
        ]
        path = archetype_path(self.workspace, name)
        lines = "".join(f"{json.dumps(each, ensure_ascii=False)}\n" for each in prompts)
        self._written(lambda: atomic_write_text(path, lines))
        return prompts

    def persona_work(self, prompts: Sequence[str], count: int = 1) -> dict[str, Work]:
        """Return how much work it is to make personas, by what it is for.

        Args:
            prompts: the system prompts of one of them.
            count: how many personas.
        """
        extractor = self.extractor
        replies = extractor.work(extractor.persona_requests(list(prompts), "persona")) * count
        work = {"replies": replies}
        if not (extractor.axes_serve or extractor.has_baseline):
            work = {"baseline": extractor.work(extractor.baseline_requests()), **work}
        calibration = self._calibration_work(prompts) * count
        return work | ({"calibration": calibration} if calibration.tokens else {})

    def _calibration_work(self, prompts: Sequence[str], counts: Mapping[str, int] | None = None) -> Work:
        """Return how much work it is to calibrate a persona; `counts` is what is known of its extraction."""
        extractor = self.extractor
        if not extractor.settings.calibration.enabled:
            return Work()
        if not counts:
            requests = extractor.persona_requests(list(prompts), "persona")
            counts = {"passed": extractor.work(requests).tokens, "responses": len(requests)}
        return calibration_plan(extractor, prompts, counts)[1]

    def calibrate(self, name: str) -> PersonaVector:
        """Find a persona's gain and save it; without system prompts, the largest that is fluent.

        Raises:
            PersonaNotFoundError: no persona has this name.
        """
        persona = self.manager.get(name)
        if not persona.metadata.get("prompts"):
            return self.calibrate_contrast(name)
        self._check_layers(persona)
        return self._calibrated(persona)

    def calibrate_contrast(
        self, name: str, high: Sequence[Sequence[Message]] = (), low: Sequence[Sequence[Message]] = ()
    ) -> PersonaVector:
        """Find the gain of a trait (`trait:NAME`), or of anything without system prompts, and save it.

        The arguments are those of `fit_contrast`.

        Raises:
            PersonaNotFoundError: no persona has this name.
        """
        vector = self.manager.get(name)
        job = f"calibration-{name.replace(':', '-')}"
        with self.job(job, persona=vector.metadata.get("created"), sides=[list(high), list(low)]):
            return self._saved(fit_contrast(self.extractor, vector, high, low))

    def calibration_work(self, name: str) -> dict[str, Work]:
        """Return how much work `calibrate` is."""
        metadata = self.manager.get(name).metadata
        counts = metadata.get("counts", {})
        known = {each: int(counts[each]) for each in ("passed", "responses") if counts.get(each)}
        prompts = [str(each) for each in metadata.get("prompts") or ()]
        if not prompts:
            return {}
        return {"calibration": self._calibration_work(prompts, known if len(known) == 2 else None)}

    def find_band(self) -> tuple[tuple[int, ...], dict[tuple[int, ...], float]]:
        """Find this model's band with the personas there are, remember it, and fit every gain again.

        Returns:
            The band, and what steering recovers in every band that was compared, on average.

        Raises:
            PersonaTuiError: fewer than `FEWEST_FOR_BAND` personas have system prompts.
            JobCancelled: somebody asked for that; what was finished stays, and the next call goes on.
        """
        usable = [
            each
            for each in self.manager.usable().values()
            if each.metadata.get("prompts") and set(each.layers) == set(self.extractor.layers)
        ]
        if len(usable) < FEWEST_FOR_BAND:
            raise PersonaTuiError(
                f"the search for a band needs {FEWEST_FOR_BAND} personas with system prompts, "
                f"and {self.extractor.model.name} has {len(usable)}"
            )
        with self.job("band", personas=[[each.name, each.metadata.get("created")] for each in usable]):
            band, table = find_band(self.extractor, usable)
        record = {
            "layers": list(band),
            "recovered": {f"{each[0]}-{each[-1]}": round(value, 4) for each, value in table.items()},
        }
        path = self.manager.vectors_dir / BAND_FILE
        text = json.dumps(record, indent=1) + "\n"
        self._written(lambda: atomic_write_text(path, text, inside=self.manager.vectors_dir))
        self.extractor.band = band
        for persona in usable:
            placed = {**persona.metadata, "target_layers": list(band), **default_gains(persona, band)}
            self._calibrated(replace(persona, metadata=placed))
        return band, table

    def _check_layers(self, persona: PersonaVector) -> None:
        if persona.metadata.get("source") == "imported":  # it has the layers that its file has
            return
        if not set(self.extractor.layers) >= set(persona.layers):
            raise VectorFileError(
                f'"{persona.name}" was extracted for other layers than the settings ask for: create it again'
            )

    def _calibrated(self, persona: PersonaVector) -> PersonaVector:
        with self.job(
            f"calibration-{persona.name}",
            persona=persona.metadata.get("created"),
            band=list(self.extractor.band),
        ):
            return self._saved(calibrated(self.extractor, persona))

    @contextmanager
    def job(self, name: str, **parts: object) -> Iterator[None]:
        """Run a job on this model's vectors; its recipe is what is given, the settings and the questions."""
        extractor, settings = self.extractor, self.extractor.settings
        recipe = {
            "model": list(extractor.model.identity),
            "layers": [extractor.layers, extractor.target_layers],
            "questions": [[each.id, each.question] for each in extractor.questions],
            "held-out questions": [[each.id, each.question] for each in extractor.held_out_questions],
            **{name.replace("_", " "): value for name, value in parts.items()},
            **_flat("extraction", settings.extraction.model_dump(exclude={"batch_size", "target_layers"})),
            **_flat("calibration", settings.calibration.model_dump()),
            **_flat("generation", settings.generation.model_dump(include={"temperature", "top_p"})),
            **_flat(
                "steering", settings.steering.model_dump(include={"safety_floor_percentile", "plausibility"})
            ),
        }
        texts = {part: json.dumps(value) for part, value in recipe.items()}
        with ExitStack() as stack:
            stack.enter_context(self.partial.job(name, texts))
            # A persona is the difference of two means: both are of one date, where a template writes it.
            means = (extractor.axes or extractor.baseline) if name != "axes" else None
            record = means.metadata.get("rendering") if means is not None else None
            stack.enter_context(extractor.model.rendered_as(record))
            stack.enter_context(self.partial.rendered(extractor.model))
            yield

    def _written(self, write: Callable[[], object]) -> None:
        """Have the one process write that does."""
        processes().from_main(lambda: bool(write()))

    def _save(self, persona: PersonaVector) -> None:
        self._written(lambda: self.manager.save(persona))

    def _saved(self, persona: PersonaVector) -> PersonaVector:
        self._save(persona)
        return persona

    def _check_free(self, name: str, prompts: Sequence[str] | None) -> PersonaVector | None:
        """Raise an unusable name's error now and not after the work.

        Returns:
            What an earlier call with the same prompts has made and not yet calibrated.
        """
        if not self.manager.path_of(safe_name(name)).is_file():
            return None
        old = self.manager.get(name)
        if prompts is not None and old.metadata.get("pending") and old.metadata["prompts"] == list(prompts):
            return old
        raise PersonaTuiError(f'a persona "{name}" already exists: delete it first or choose another name')

    def _create(
        self,
        name: str,
        prompts: Sequence[dict[str, Any]],
        description: str | None,
        source: str,
    ) -> PersonaVector:
        """Extract and save; then calibrate and save again, if that is configured."""
        texts = [str(each["system_prompt"]) for each in prompts]
        persona = self._check_free(name, texts)
        enabled = self.extractor.settings.calibration.enabled
        if persona is None:
            with self.job(f"persona-{name}", prompts=texts):
                persona = self._extracted(name, prompts, description, source, pending=enabled)
        return self._calibrated(persona) if enabled else persona

    def _extracted(
        self,
        name: str,
        prompts: Sequence[dict[str, Any]],
        description: str | None,
        source: str,
        *,
        pending: bool,
    ) -> PersonaVector:
        extractor = self.extractor
        known = extractor.baseline
        persona = extractor.extract_persona(name, prompts, description=description, source=source)
        if (baseline := extractor.baseline) is not None and baseline is not known:
            folder = self.manager.vectors_dir
            self._written(lambda: baseline.save(folder / BASELINE_FILE, inside=folder))
        persona.metadata["prompt_sources"] = sorted(
            {str(prompt.get("source") or "people") for prompt in prompts}
        )
        if pending:
            persona.metadata["pending"] = True
        return self._saved(persona)


def _flat(section: str, values: dict[str, Any]) -> dict[str, Any]:
    return {f"{section}.{name}": value for name, value in values.items()}
