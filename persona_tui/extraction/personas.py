"""Making personas, start to end: read the prompts, extract, calibrate, save. Both front ends call these
functions.

Every vector is saved as soon as it is finished, and never before: a persona's file is the old one until the
new one is calibrated. What a job has besides is kept until it succeeds (`vectors.partial`), so that the same
call goes on where it was stopped. Several processes may call these functions together (`processes`).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from typing import Any

from persona_tui.core.errors import GenerationError, PersonaTuiError, VectorFileError
from persona_tui.core.processes import processes
from persona_tui.core.workspace import Workspace
from persona_tui.datasets.generator import DatasetGenerator, check_description
from persona_tui.datasets.records import (
    archetype_path,
    list_archetypes,
    read_archetype,
    read_questions,
    read_roles,
    read_safety,
)
from persona_tui.extraction.axes import extract_axes
from persona_tui.extraction.calibration import calibrate, response_count, weakness
from persona_tui.extraction.checkpoints import PartialStore
from persona_tui.extraction.extractor import ActivationExtractor
from persona_tui.vectors.axes import Axes
from persona_tui.vectors.manager import PROMPTS_PER_PERSONA, PersonaManager
from persona_tui.vectors.persona import PersonaVector

AXES_JOB = "axes"


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

    def extract_axes(self, archetypes: Sequence[str] | None = None) -> tuple[Axes, list[PersonaVector]]:
        """Extract the axes and the archetypes' personas, calibrate those (if configured), and save it all.

        Args:
            archetypes: their names; by default every archetype in the workspace that was not made from a
                description.

        Raises:
            DatasetError: a data set is missing or bad.
            JobCancelled: somebody asked for that; what was finished stays, and the next call goes on.
        """
        names = self.hand_written_archetypes() if archetypes is None else list(archetypes)
        safe, unsafe = read_safety(self.workspace, "safe"), read_safety(self.workspace, "unsafe")
        prompts = {name: read_archetype(self.workspace, name) for name in names}
        roles = read_roles(self.workspace)
        with self._job(
            AXES_JOB,
            archetypes=[[name, [each.system_prompt for each in prompts[name]]] for name in names],
            roles=[[each.id, each.system_prompt] for each in roles],
            safety_prompts=[[each.id, each.prompt, each.system] for each in [*safe, *unsafe]],
        ):
            axes, personas = extract_axes(self.extractor, safe, unsafe, prompts, roles)
            self._written(lambda: self.manager.save_axes(axes))
            if self.extractor.settings.calibration.enabled:
                self.extractor.expect(len(personas) * response_count(self.extractor))
            return axes, [self._saved(persona) for persona in personas]

    def hand_written_archetypes(self) -> list[str]:
        """The archetypes that people wrote: those that the assistant axis is made from."""
        return [
            name
            for name in list_archetypes(self.workspace)
            if all(prompt.source is None for prompt in read_archetype(self.workspace, name))
        ]

    def create_from_archetype(self, name: str, archetype: str, *, replace_old: bool = False) -> PersonaVector:
        """Extract, calibrate (if configured) and save a persona from an archetype's system prompts.

        Raises:
            PersonaTuiError: the name is taken, and the old persona is not to be replaced.
            DatasetError: there is no such archetype.
            VectorFileError: the model's axes have not been extracted.
            JobCancelled: somebody asked for that; the next call goes on.
        """
        self._claim(name, replace_old)
        prompts = [prompt.model_dump() for prompt in read_archetype(self.workspace, archetype)]
        with self._job(f"persona-{name}", prompts=[each["system_prompt"] for each in prompts]):
            return self._create(name, prompts, description=None, source="archetype")

    def create_from_prompts(
        self, name: str, prompts: Sequence[str], description: str | None = None, *, replace_old: bool = False
    ) -> PersonaVector:
        """Extract, calibrate (if configured) and save a persona from system prompts, and write nothing else.

        Args:
            name: its name.
            prompts: the system prompts.
            description: who it is, if a model drafted the prompts from that.
            replace_old: whether a persona of that name may be replaced.

        Raises:
            PersonaTuiError: the name is taken, and the old persona is not to be replaced.
            DatasetError: there are no prompts.
            VectorFileError: the model's axes have not been extracted.
            JobCancelled: somebody asked for that; the next call goes on.
        """
        self._claim(name, replace_old)
        written_by = "people" if description is None else "model"
        records = [{"system_prompt": prompt, "source": written_by} for prompt in prompts]
        source = "prompts" if description is None else "generated"
        with self._job(f"persona-{name}", prompts=list(prompts)):
            return self._create(name, records, description, source)

    def create_from_description(
        self, name: str, description: str, generator: DatasetGenerator, *, replace_old: bool = False
    ) -> PersonaVector:
        """Have system prompts written for a character, keep them as an archetype of that name, and extract
        it.

        Raises:
            PersonaTuiError: the name is taken, and the old persona is not to be replaced; or people wrote an
                archetype of that name, which is never replaced.
            GenerationError: no system prompts could be made from the description.
            VectorFileError: the model's axes have not been extracted.
            JobCancelled: somebody asked for that; the next call goes on.
        """
        self._claim(name, replace_old)
        if name in self.hand_written_archetypes():
            raise PersonaTuiError(
                f'there is an archetype "{name}" already: choose another name, or create from it'
            )
        check_description(description)
        self.extractor.matching_axes()
        generator.partial = self.partial
        with self._job(f"persona-{name}", description=description):
            prompts = generator.generate_persona_prompts(description, PROMPTS_PER_PERSONA)
            if not prompts:
                raise GenerationError(f"no system prompts could be made from the description of {name}")
            # Before the persona, whose file says that all is done.
            self._written(lambda: generator.save_jsonl(prompts, archetype_path(self.workspace, name)))
            return self._create(name, prompts, description, source="generated")

    def calibrate(self, name: str) -> PersonaVector:
        """Calibrate a persona anew and save it.

        Raises:
            PersonaNotFoundError: there is none of this name.
            DatasetError: its file has no system prompts.
        """
        persona = self.manager.get(name)
        if not set(self.extractor.layers) >= set(persona.layers):
            raise VectorFileError(
                f'"{name}" was extracted for other layers than the settings ask for: create it anew'
            )
        self.extractor.expect(response_count(self.extractor))
        with self._job(f"calibration-{name}", persona=persona.metadata.get("created")):
            persona = calibrated(self.extractor, persona)
            self._written(lambda: self.manager.save(persona))
            return persona

    def _job(self, name: str, **parts: object) -> AbstractContextManager[None]:
        """A job on this model's vectors; the recipe is what is given here, the settings and the questions."""
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
            **_flat("steering", settings.steering.model_dump(include={"safety_floor_percentile"})),
        }
        return self.partial.job(name, {part: json.dumps(value) for part, value in recipe.items()})

    def _written(self, write: Callable[[], object]) -> None:
        """Have the one process write that does."""
        processes().from_main(lambda: bool(write()))

    def _saved(self, persona: PersonaVector) -> PersonaVector:
        """The persona, calibrated if configured, and saved."""
        if self.extractor.settings.calibration.enabled:
            persona = calibrated(self.extractor, persona)
        self._written(lambda: self.manager.save(persona))
        return persona

    def _claim(self, name: str, replace_old: bool) -> None:
        """Raise an unusable name's error now and not after the work."""
        if self.manager.path_of(name).is_file() and not replace_old:
            raise PersonaTuiError(
                f'there is a persona "{name}" already: delete it first or choose another name'
            )

    def _create(
        self, name: str, prompts: Sequence[dict[str, Any]], description: str | None, source: str
    ) -> PersonaVector:
        extractor = self.extractor
        enabled = extractor.settings.calibration.enabled
        responses = len(prompts) * extractor.settings.extraction.num_samples_per_prompt
        extractor.expect(responses + (response_count(extractor) if enabled else 0))
        persona = extractor.extract_persona(name, prompts, description=description, source=source)
        persona.metadata["prompt_sources"] = sorted(
            {str(prompt.get("source") or "people") for prompt in prompts}
        )
        return self._saved(persona)


def _flat(section: str, values: dict[str, Any]) -> dict[str, Any]:
    return {f"{section}.{name}": value for name, value in values.items()}


def calibrated(extractor: ActivationExtractor, persona: PersonaVector) -> PersonaVector:
    """The persona with its calibration; its metadata say whether that is `weak`, and why."""
    calibration = calibrate(extractor, persona)
    reason = weakness(calibration)
    metadata = {**persona.metadata, "weak": reason is not None, "weak_reason": reason}
    return replace(persona, metadata=metadata, calibration=calibration)
