"""What goes with a chat to another model: the voice and the policy, as far as that model has them."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from persona_tui.core.errors import PersonaTuiError
from persona_tui.core.mix import TRAIT_PREFIX, Mix
from persona_tui.project.project import Project

if TYPE_CHECKING:
    from persona_tui.monitors.guard import Guard
    from persona_tui.traits.policy import Policy


def mix_there(mix: Mix, other: Project) -> tuple[Mix, list[str]]:
    """Return a mix as another model can speak with it, and what to say about the rest."""
    lost, there = [], {*other.personas.list_available(), *other.personas.list_traits()}
    gone = [name for name in mix.speaking if name not in there]
    if gone:
        lost.append(f"It has no {', '.join(gone)}.")
    found = replace(mix, weights={name: by for name, by in mix.weights.items() if name in there})
    try:
        other.engine.interventions(found)
    except PersonaTuiError as error:
        lost.append(f"No persona is speaking: {error}")
        found = Mix(strength=mix.strength, capping=mix.capping, plausibility=mix.plausibility)
    return found, lost


def lacking_traits(policy: Policy | None, other: Project) -> list[str]:
    """Return the traits that a policy needs and another model does not have."""
    wanted = {f"{TRAIT_PREFIX}{name}" for name in policy.traits} if policy is not None else set()
    return sorted(wanted - set(other.personas.list_traits()))


def guard_without_monitor(guard: Guard, error: PersonaTuiError) -> str:
    """Keep a guard that was to refuse from letting everything pass; what to say about it."""
    problem = str(error).rstrip(".")
    if guard.mode == "refuse":
        return f"The guard cannot judge anything here, so nothing is answered: {problem}; or /guard off."
    guard.set_mode("off")
    return f"The guard is off: {problem}."
