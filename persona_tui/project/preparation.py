"""What a model lacks before anybody can be spoken as, how long making it takes, and what was made."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from persona_tui.core.jobs import JobContext

if TYPE_CHECKING:
    from persona_tui.extraction.personas import PersonaStudio
    from persona_tui.extraction.runner import Work
    from persona_tui.project.project import Project


@dataclass
class Prepared:
    """What `Project.init` did.

    Attributes:
        restored: data sets that were missing and have been copied from the package.
        records: records in all data sets.
        axes_extracted: whether the axes were extracted; False = they were there.
        personas: the personas that were extracted.
        roles: how many roles there are means of; None = they were not asked for.
    """

    restored: list[Path] = field(default_factory=list)
    records: int = 0
    axes_extracted: bool = False
    personas: list[str] = field(default_factory=list)
    roles: int | None = None


def is_prepared(project: Project) -> bool:
    """Return whether a model has axes, and anybody to speak as."""
    return project.personas.axes is not None and bool(project.personas.list_available())


def preparation_work(project: Project, studio: PersonaStudio) -> dict[str, Work]:
    """Return what `Project.init` still has to do, by what it is for."""
    from persona_tui.datasets.records import read_archetype
    from persona_tui.extraction.runner import Work

    if project.personas.axes is None:
        return studio.axes_work()
    missing = [
        name for name in studio.hand_written_archetypes() if name not in project.personas.list_available()
    ]
    found: dict[str, Work] = {}
    for name in missing:
        prompts = [each.system_prompt for each in read_archetype(project.workspace, name)]
        for what, work in studio.persona_work(prompts).items():
            found[what] = found.get(what, Work()) + work
    return found


def price_preparation(project: Project) -> float:
    """Return how many seconds `Project.init` will take here; runs on the model's thread, for a batch.

    Raises:
        PersonaTuiError: the model or the data sets cannot be used.
    """
    from persona_tui.extraction.runner import Work

    project.restore_datasets()
    studio = project.studio(JobContext())
    reading = studio.extractor.time_a_batch()
    work = sum(preparation_work(project, studio).values(), Work())
    return work.cost(studio.extractor.price) * reading
