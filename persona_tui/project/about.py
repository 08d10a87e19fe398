"""What is known of a persona, and how preparing a workspace went, in words: for every front end."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from persona_tui.core.errors import VectorFileError

if TYPE_CHECKING:
    from persona_tui.project.preparation import Prepared
    from persona_tui.project.project import Created, Project
    from persona_tui.vectors.axes import Axes
    from persona_tui.vectors.persona import PersonaVector

_NOT_TOLD = ("name", "calibration", "model_sketch")  # told in another way, or of no use to a reader
_ELSEWHERE = ("calibration", "cosines", "prompts")


def about(project: Project, name: str) -> dict[str, Any]:
    """Return what is known of a persona: its file, how it was made, calibration, the length of its vectors.

    Raises:
        PersonaNotFoundError: no persona has this name.
        VectorFileError: its file is damaged.
    """
    from persona_tui.project.shape import belonging
    from persona_tui.vectors.likeness import axis_cosines, cosines_to_others

    manager = project.personas
    persona, axes, problem = manager.get(name), None, None
    try:
        belonging(project)(manager.path_of(name), persona.metadata)
    except VectorFileError as error:
        problem = str(error)
    with suppress(VectorFileError):  # whoever uses the axes says what is wrong with them
        axes = manager.axes if problem is None else None
    norms = {recipe: float(stack.norm(dim=-1).mean()) for recipe, stack in persona.safe.items()}
    return {
        "name": persona.name,
        "problem": problem,
        "file": str(project.personas.path_of(persona.name)),
        "loaded": persona.name in project.personas.list_loaded(),
        **{key: value for key, value in persona.metadata.items() if key not in _NOT_TOLD},
        "layers": list(persona.layers),
        "calibration": asdict(persona.calibration) if persona.calibration is not None else None,
        "calibrated": persona.calibration is not None or "loudness" in persona.metadata,
        "norms": {recipe: round(norm, 4) for recipe, norm in norms.items()},
        "cosines": {
            "personas": _rounded(cosines_to_others(manager, name)) if problem is None else {},
            "axes": _rounded(axis_cosines(persona, axes)) if axes is not None else {},
        },
    }


def sections(details: dict[str, Any]) -> dict[str, list[tuple[str, str]]]:
    """Return what `about` found, as rows of two columns under headings; the first heading is empty."""
    plain = [(key, shown(value)) for key, value in details.items() if key not in _ELSEWHERE]
    calibration = details.get("calibration") or {}
    found = {
        "": [(key, value) for key, value in plain if value],
        "calibration": [
            *([("", _uncalibrated(details))] if not details.get("calibrated", True) else []),
            *(
                (key.replace("_", " "), text)
                for key, value in calibration.items()
                if (text := _told(key, value))
            ),
        ],
        "cosines to other personas": _cosines(details, "personas"),
        "cosines to axes": _cosines(details, "axes"),
        "system prompts": [("-", str(prompt)) for prompt in details.get("prompts") or ()],
    }
    return {title: rows for title, rows in found.items() if rows}


def _rounded(cosines: Mapping[str, float]) -> dict[str, float]:
    return {name: round(value, 4) for name, value in cosines.items()}


def _cosines(details: dict[str, Any], kind: str) -> list[tuple[str, str]]:
    return [(name, f"{value:+.2f}") for name, value in details.get("cosines", {}).get(kind, {}).items()]


_LONG = ("curve", "recovery")  # tables of their own


def _told(key: str, value: Any) -> str:
    """Return a field of a calibration; "" if there is nothing to say."""
    if key in _LONG or value is None:
        return ""
    return f"{value:.0%} of the expression" if key == "floor_leaves" else shown(value)


def _uncalibrated(details: dict[str, Any]) -> str:
    name = details["name"]
    return f"Not calibrated: a typical gain is used. Calibrate it: persona-tui calibrate {name}"


def created_in_words(made: Created, calibrate: str = "/calibrate") -> str:
    """Return what to say about a new persona.

    Args:
        made: what was created.
        calibrate: the command that calibrates, as whoever reads this types it.
    """
    lines = [f"Created {made.persona.name}."]
    if made.prompts is not None and made.prompts.fallback:
        lines.append(
            "The model wrote too few usable system prompts; the description itself was used instead."
        )
    return "\n".join([*lines, *_loudness(made.persona, calibrate)])


def calibrated_in_words(persona: PersonaVector) -> str:
    """Return what to say about a persona that was calibrated again."""
    return "\n".join([f"Calibrated {persona.name}.", *_loudness(persona)])


def _loudness(persona: PersonaVector, calibrate: str = "/calibrate") -> list[str]:
    """Return what calibration has found."""
    lines: list[str] = []
    calibration = persona.calibration
    if calibration is not None:
        loud, share = calibration.default_strength, calibration.expression
        lines.append(f"At strength {loud:g} it has {share:.0%} of the effect of its system prompts.")
        if calibration.floor_leaves is not None:
            left, axis = calibration.floor_leaves, calibration.floor
            lines.append(f"The floor ({axis} axis) leaves {left:.0%} of what it expresses without one.")
    elif "loudness" in persona.metadata:
        lines.append(loudness_in_words(persona))
    else:
        lines.append(
            f"It is not calibrated: a typical gain is used until you run {calibrate} {persona.name}."
        )
    if reason := persona.metadata.get("weak_reason"):
        lines.append(f"This is a weak persona: {reason}.")
    return lines


def loudness_in_words(persona: PersonaVector) -> str:
    """Return what calibrating has found for something without system prompts, in a line."""
    found, gain = persona.metadata["loudness"], persona.metadata["gain"]
    layers = ", ".join(str(layer) for layer in persona.metadata["target_layers"])
    gained = (
        "" if found["gained"] is None else f" moves its replies' likelihoods by {found['gained']:+.2f} and"
    )
    return (
        f"{persona.name}: layers {layers}, gain {gain:.2f}: strength {found['strength']:g}{gained} costs "
        f"{found['fluency_drop']:+.2f} nats per token."
    )


def in_words(details: dict[str, Any]) -> str:
    """Return the same as lines of text."""
    lines: list[str] = []
    for title, rows in sections(details).items():
        width = max(len(key) for key, _ in rows)
        lines += ["", title] if title else []
        lines += [f"{key:<{width}}  {value}" for key, value in rows]
    return "\n".join(lines)


def shown(value: Any) -> str:
    """Return a value for people: numbers with four digits, lists and mappings on one line; "" for None."""
    if value is None:
        return ""
    if isinstance(value, dict):
        return ", ".join(f"{key} {shown(inner)}" for key, inner in value.items())
    if isinstance(value, list | tuple):
        return " ".join(shown(inner) for inner in value)
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def axes_in_words(axes: Axes) -> str:
    """Return what the safety axis is made of, and what to do if that is too little."""
    record = axes.metadata.get("refusals")
    if record is None:
        return axes.doubt("safety")
    unsafe, safe = record["unsafe"], record["safe"]
    said = (
        f"The safety axis: {unsafe['refused']} refusals to {unsafe['asked']} unsafe prompts "
        f"({record['known_by']}), {safe['answered']} answers to {safe['asked']} safe ones."
    )
    if axes.weakness("safety") is None:
        return said
    made_of = ", so it was made of all answers" if record.get("made_of") else ""
    return (
        f"{said}\nIt is weak: that is too few{made_of}. By default, floors are set on the "
        f"{axes.default_capping_axis} axis. {axes.remedy('safety')}"
    )


def prepared_in_words(project: Project, done: Prepared) -> str:
    """Return the outcome of preparing a workspace."""
    state = "extracted" if done.axes_extracted else "there already"
    return "\n".join(
        [
            f"Workspace {project.workspace.root}",
            *(f"Restored {path}" for path in done.restored),
            f"Data sets: {done.records} records, no problems.",
            f"Axes of {project.settings.model.name}: {state}.",
            *([axes_in_words(axes)] if (axes := project.personas.axes) is not None else []),
            *([f"Extracted {', '.join(done.personas)}."] if done.personas else []),
            f"Personas: {', '.join(project.personas.list_available()) or 'none'}.",
            *([f"Means of {done.roles} roles."] if done.roles is not None else []),
        ]
    )
