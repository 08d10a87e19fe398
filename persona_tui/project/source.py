"""What a persona is made from, and what was made of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from persona_tui.datasets.generator import GenerationReport
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
