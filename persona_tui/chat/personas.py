"""What a chat does with personas: load, forget and delete them. The session is told."""

from __future__ import annotations

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


def delete(chat: Chat, name: str) -> None:
    """Delete a persona's file, and do not speak as it any more. Ask the user before."""
    _stop_speaking_as(chat, name)
    chat.project.personas.delete(name)
    chat.note("persona", action="deleted", name=name)


def there(chat: Chat) -> list[str]:
    """Return everybody that can be spoken as: personas, then traits."""
    return [*chat.project.personas.list_available(), *chat.project.personas.list_traits()]


def _stop_speaking_as(chat: Chat, name: str) -> None:
    if name in chat.mix.weights:
        chat.change_mix(weights={other: by for other, by in chat.mix.weights.items() if other != name})
