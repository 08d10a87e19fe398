"""What a chat does with personas: load, forget, delete and restore them. The session is told."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from persona_tui.project import deletion
from persona_tui.project.deletion import Deleted

if TYPE_CHECKING:
    from persona_tui.chat.chat import Chat


def load(chat: Chat, name: str) -> None:
    """Load a persona or trait, if it is not.

    Raises:
        PersonaNotFoundError: no persona has this name.
    """
    before = chat.project.personas.list_loaded()
    chat.project.personas.load(name)
    if name not in before:
        chat.note("persona", action="loaded", name=name)


def unload(chat: Chat, name: str) -> bool:
    """Forget a loaded persona, and do not speak as it any more; False if it was not loaded."""
    if not chat.project.personas.unload(name):
        return False
    chat.note("persona", action="unloaded", name=name)
    _stop_speaking_as(chat, name)
    return True


@dataclass(frozen=True)
class DeletedVoice:
    """A persona that was deleted while a chat was open.

    Attributes:
        persona: what was deleted.
        weights: whom the chat was spoken as before.
        left: whom it was spoken as after that.
    """

    persona: Deleted
    weights: Mapping[str, float]
    left: Mapping[str, float]


def delete(chat: Chat, name: str) -> DeletedVoice:
    """Move a persona's file to the trash, and do not speak as it any more. Ask the user before."""
    chat.project.check_here("Deleting a persona")
    weights = chat.mix.weights
    _stop_speaking_as(chat, name)
    deleted = deletion.delete(chat.project, name)
    chat.note("persona", action="deleted", name=name)
    return DeletedVoice(deleted, weights, chat.mix.weights)


def restore(chat: Chat, deleted: DeletedVoice) -> None:
    """Put a deleted persona back, and speak as before unless the voice has been changed since.

    Raises:
        WorkspaceError: another persona has its name by now, or its file cannot be moved.
    """
    deletion.restore(chat.project, deleted.persona)
    chat.note("persona", action="restored", name=deleted.persona.name)
    if chat.mix.weights == deleted.left:
        chat.change_mix(weights=deleted.weights)


def there(chat: Chat) -> list[str]:
    """Return everybody that can be spoken as: personas, then traits."""
    return [*chat.project.personas.list_available(), *chat.project.personas.list_traits()]


def _stop_speaking_as(chat: Chat, name: str) -> None:
    if name in chat.mix.weights:
        chat.change_mix(weights={other: by for other, by in chat.mix.weights.items() if other != name})
