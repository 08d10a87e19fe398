"""Deleting a persona or a trait, and taking that back: every front end does it here."""

from __future__ import annotations

from dataclasses import dataclass

from persona_tui.core.files import Trashed, discard_file, restore_file
from persona_tui.project.project import Project


@dataclass(frozen=True)
class Deleted:
    """A persona that was deleted.

    Attributes:
        name: of the persona, or `trait:` and that of a trait.
        file: where its file was, and where it lies now.
        was_loaded: whether it was loaded.
    """

    name: str
    file: Trashed
    was_loaded: bool


def delete(project: Project, name: str) -> Deleted:
    """Move a persona's file to the workspace's trash, and forget the persona. Ask the user before.

    A damaged file can be deleted as well.

    Raises:
        PersonaNotFoundError: no persona has this name.
        WorkspaceError: the file cannot be moved; nothing has changed.
    """
    personas = project.personas
    path = personas.path_of(name)
    if not path.is_file():
        personas.get(name)  # raises, and offers the nearest name
    was_loaded = name in personas.list_loaded()
    file = discard_file(project.workspace.root, path)
    personas.unload(name)
    return Deleted(name, file, was_loaded)


def restore(project: Project, deleted: Deleted) -> None:
    """Put a deleted persona back, and load it if it was loaded.

    Raises:
        WorkspaceError: another persona has its name by now, or the file cannot be moved.
    """
    restore_file(deleted.file)
    if deleted.was_loaded:
        project.personas.load(deleted.name)
