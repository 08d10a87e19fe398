"""What is known of a persona, and what preparing a workspace came to, in words: for every front end."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from persona_tui.project.project import Prepared, Project

_ELSEWHERE = ("calibration", "prompts")


def about(project: Project, name: str) -> dict[str, Any]:
    """What is known of a persona: its file, how it was made, calibration, the length of its vectors.

    Raises:
        PersonaNotFoundError: there is none of this name.
    """
    persona = project.personas.get(name)
    norms = {recipe: float(stack.norm(dim=-1).mean()) for recipe, stack in persona.safe.items()}
    return {
        "name": persona.name,
        "file": str(project.personas.path_of(persona.name)),
        "loaded": persona.name in project.personas.list_loaded(),
        **{key: value for key, value in persona.metadata.items() if key not in ("name", "calibration")},
        "layers": list(persona.layers),
        "calibration": asdict(persona.calibration) if persona.calibration is not None else None,
        "norms": {recipe: round(norm, 4) for recipe, norm in norms.items()},
    }


def sections(details: dict[str, Any]) -> dict[str, list[tuple[str, str]]]:
    """What `about` found, as rows of two columns under headings; the first heading is empty."""
    plain = [(key, shown(value)) for key, value in details.items() if key not in _ELSEWHERE]
    calibration = details.get("calibration") or {}
    found = {
        "": [(key, value) for key, value in plain if value],
        "calibration": [(key, shown(value)) for key, value in calibration.items() if key != "curve"],
        "system prompts": [("-", str(prompt)) for prompt in details.get("prompts") or ()],
    }
    return {title: rows for title, rows in found.items() if rows}


def in_words(details: dict[str, Any]) -> str:
    """The same as lines of text."""
    lines: list[str] = []
    for title, rows in sections(details).items():
        width = max(len(key) for key, _ in rows)
        lines += ["", title] if title else []
        lines += [f"{key:<{width}}  {value}" for key, value in rows]
    return "\n".join(lines)


def shown(value: Any) -> str:
    """A value for people: numbers with four digits, lists and mappings on one line; "" for None."""
    if value is None:
        return ""
    if isinstance(value, dict):
        return ", ".join(f"{key} {shown(inner)}" for key, inner in value.items())
    if isinstance(value, list | tuple):
        return " ".join(shown(inner) for inner in value)
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def prepared_in_words(project: Project, done: Prepared) -> str:
    """What preparing a workspace came to."""
    state = "extracted" if done.axes_extracted else "there already"
    return "\n".join(
        [
            f"Workspace {project.workspace.root}",
            *(f"Restored {path}" for path in done.restored),
            f"Data sets: {done.records} records, no problems.",
            f"Axes of {project.settings.model.name}: {state}.",
            *([f"Extracted {', '.join(done.personas)}."] if done.personas else []),
            f"Personas: {', '.join(project.personas.list_available()) or 'none'}.",
        ]
    )
