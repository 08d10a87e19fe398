"""Vectors that come from other programs, and vectors that leave for them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from persona_tui.core.errors import DatasetError, GenerationError, PersonaTuiError, VectorFileError
from persona_tui.core.files import check_case, safe_name
from persona_tui.core.jobs import JobContext
from persona_tui.core.mix import TRAIT_PREFIX
from persona_tui.core.processes import processes
from persona_tui.extraction.runner import persona_requests
from persona_tui.formats.bake import bake
from persona_tui.formats.direction import Direction
from persona_tui.formats.pickled import Indices
from persona_tui.formats.read import check_there, read_foreign
from persona_tui.formats.write import FORMS, Exported, Outgoing, write_foreign
from persona_tui.model import Sampling
from persona_tui.model.sources import sha256_of
from persona_tui.vectors.files import RECIPE
from persona_tui.vectors.maths import orthogonalize_persona
from persona_tui.vectors.persona import DEFAULT_STRENGTH, PersonaVector, default_gains

if TYPE_CHECKING:
    from persona_tui.extraction.extractor import ActivationExtractor
    from persona_tui.project.project import Project

AXIS_PREFIX = "axis:"
BAKED = "baked"
FORMATS = (*FORMS, BAKED)

_REPLIES = 16  # ordinary ones, that an imported direction's size is compared with
_REPLY_TOKENS = 48


def import_vectors(
    project: Project,
    path: Path,
    context: JobContext,
    name: str | None = None,
    *,
    layer: int | None = None,
    indices: Indices = "auto",
    wanted: str | None = None,
) -> list[PersonaVector]:
    """Read another program's vectors and save each as a persona of the model, uncalibrated.

    Args:
        project: its model is loaded: a vector belongs to one.
        path: see `formats.read.read_foreign` for the formats.
        context: where progress goes.
        name: of the persona; by default what the file says. Only for a file with one direction.
        layer: where a vector belongs whose file does not say.
        indices: what the rows of a `.pt` count.
        wanted: of a file with several directions, the one to import.

    Raises:
        VectorFileError: the file cannot be read, or does not fit the model.
        PersonaTuiError: a name is taken or cannot be used.
        DatasetError: the workspace has no extraction questions.
        JobCancelled: somebody asked for that; what was saved stays.
    """
    check_there(path)
    directions = read_foreign(path, project.model.n_layers, layer=layer, indices=indices, wanted=wanted)
    if name is not None and len(directions) > 1:
        known = ", ".join(each.name for each in directions)
        raise PersonaTuiError(f"{path} holds {len(directions)} directions ({known}): choose one with --only.")
    names = [name or _name_of(each) for each in directions]
    for chosen, direction in zip(names, directions, strict=True):
        _check_new(project, chosen)
        if direction.hidden_size != project.model.hidden_size:
            raise VectorFileError(
                f"{path} cannot be imported: its vectors are {direction.hidden_size} wide, and "
                f"{project.model.name} is {project.model.hidden_size} wide."
            )
    extractor = project.studio(context).extractor
    layers = sorted({layer for each in directions for layer in each.vectors})
    ordinary = _ordinary(project, extractor, layers, context)
    saved = []
    for chosen, direction in zip(names, directions, strict=True):
        persona = _persona(project, extractor, chosen, direction, ordinary, path)
        processes().from_main(lambda persona=persona: bool(project.personas.save(persona)))  # type: ignore[misc]
        saved.append(persona)
    return saved


def _name_of(direction: Direction) -> str:
    """Return what a file calls it, as a persona may be called."""
    kept = "".join(letter if letter.isalnum() or letter in "-_" else "-" for letter in direction.name.lower())
    return kept.strip("-") or "imported"


def _check_new(project: Project, name: str) -> None:
    safe_name(name)
    path = project.personas.path_of(name)
    check_case(path)
    if name.startswith(TRAIT_PREFIX) or path.exists():
        raise PersonaTuiError(f'a persona "{name}" already exists: choose another name with --name')


def _ordinary(
    project: Project, extractor: ActivationExtractor, layers: Sequence[int], context: JobContext
) -> dict[int, Tensor]:
    """Return the mean activation of ordinary replies at some layers: from the axes or a few replies."""
    axes = project.personas.axes
    if axes is not None and set(layers) <= set(axes.layers) and RECIPE in axes.baseline:
        return {layer: axes.baseline[RECIPE][axes.layers.index(layer)] for layer in layers}
    if not extractor.questions:
        raise DatasetError("there are no extraction questions; generate some: dataset generate questions")
    requests = persona_requests(
        [None], extractor.questions, _REPLIES, project.settings.extraction.seed, "import"
    )
    sampling = Sampling(_REPLY_TOKENS, project.settings.extraction.temperature)
    total, count, size = (
        torch.zeros(len(layers), project.model.hidden_size),
        0,
        extractor.settings.extraction.batch_size,
    )
    for start in range(0, len(requests), size):
        context.checkpoint()
        context.progress(start, len(requests), "ordinary replies")
        batch = requests[start : start + size]
        for each in project.model.generate(batch, sampling, capture_layers=layers):
            if each.activations is not None and each.activations.n_tokens:
                total, count = total + each.activations.response, count + 1
    if not count:
        raise GenerationError(
            "the model gave only empty replies: a vector's size cannot be compared with them"
        )
    return {layer: row / count for layer, row in zip(layers, total, strict=True)}


def _persona(
    project: Project,
    extractor: ActivationExtractor,
    name: str,
    direction: Direction,
    ordinary: dict[int, Tensor],
    path: Path,
) -> PersonaVector:
    layers = tuple(direction.vectors)
    raw = torch.stack([direction.vectors[layer] for layer in layers])
    mean = torch.stack([ordinary[layer] for layer in layers]) + raw
    safe, notes = _safe(project, layers, raw)
    band = [layer for layer in extractor.band if layer in layers]
    targets = band if band and len(layers) >= len(extractor.band) else list(layers)
    persona = PersonaVector(
        name,
        layers,
        {RECIPE: mean},
        {RECIPE: raw},
        {RECIPE: safe},
        {**_provenance(extractor), **_origin(direction, path, notes), "name": name, "target_layers": targets},
    )
    gains = {"gain": 1 / direction.strength} if direction.strength else default_gains(persona, targets)
    return replace(persona, metadata={**persona.metadata, **gains})


def _safe(project: Project, layers: Sequence[int], raw: Tensor) -> tuple[Tensor, list[str]]:
    """Return the vectors without their safety component, where the model's axes reach."""
    axes = project.personas.axes
    if axes is None or RECIPE not in axes.safety:
        return raw.clone(), ["it keeps its safety component: the model has no axes yet"]
    rows = [
        orthogonalize_persona(row, axes.axis("safety", layer)) if layer in axes.layers else row
        for layer, row in zip(layers, raw, strict=True)
    ]
    beyond = [str(layer) for layer in layers if layer not in axes.layers]
    kept = f"it keeps its safety component at layers {', '.join(beyond)}, where there is no axis"
    return torch.stack(rows), [kept] if beyond else []


def _provenance(extractor: ActivationExtractor) -> dict[str, Any]:
    """Return what the file says about the model; nothing was extracted here."""
    return {key: value for key, value in extractor.provenance().items() if key != "extraction"}


def _origin(direction: Direction, path: Path, notes: Sequence[str]) -> dict[str, Any]:
    digest = sha256_of(path) if path.is_file() else None
    return {
        "kind": "persona",
        "source": "imported",
        "description": direction.description,
        "imported": {
            "format": direction.form,
            "file": path.name,
            **({"sha256": digest} if digest else {}),
            "units": "as in the file; the sign and the size are its maker's",
            **({"notes": [*direction.notes, *notes]} if direction.notes or notes else {}),
        },
    }


# Out --------------------------------------------------------------------------------------------------------


def export_vectors(
    project: Project,
    weights: dict[str, float],
    form: str,
    path: Path,
    strength: float | None = None,
    *,
    safe: bool = True,
    axis: str | None = None,
) -> tuple[Exported, dict[int, float]]:
    """Write a persona, a trait, a blend or an axis in another program's format.

    Args:
        project: its model is loaded: formats need its size and architecture.
        weights: of personas and traits, as in a mix; with one, that one leaves as it is.
        form: one of `FORMATS`.
        path: the file, or the folder of a baked model.
        strength: what is multiplied in where the format has no scale; by default the calibrated 0.3.
        safe: the vectors without their safety component.
        axis: the axis to export instead of personas.

    Returns:
        What was written, and its dose by layer: what is added at this strength, as a share of the length of
        ordinary replies' mean activation (empty for an axis, and without axes).

    Raises:
        PersonaNotFoundError: a name is unknown.
        VectorFileError: the format cannot hold it.
        WorkspaceError: the file cannot be written.
    """
    out = _axis(project, axis) if axis is not None else _mix(project, weights, strength, safe)
    if form == BAKED:
        if axis is not None:
            raise VectorFileError("An axis is for measuring, not for speaking: it cannot be baked.")
        added = {layer: out.strength * vector for layer, vector in out.vectors.items()}
        project.model.need_weights("Baking")
        written = bake(project.model.model, project.model.tokenizer, added, path)
    else:
        written = write_foreign(out, form, path)
    return written, {} if axis is not None else _doses(project, out)


def _mix(project: Project, weights: dict[str, float], strength: float | None, safe: bool) -> Outgoing:
    model, personas = project.model, project.personas
    vectors = personas.get_composite(weights, safe)
    if not vectors:
        raise PersonaTuiError("there is nothing to export: every weight is 0")
    single = personas.get(next(iter(weights))) if len(weights) == 1 else None
    reading = (single.metadata.get("trait") or {}).get("layer") if single is not None else None
    return Outgoing(
        name="+".join(weights),
        kind=single.kind if single is not None else "persona",
        vectors=vectors,
        raw=personas.get_composite(weights, False),
        strength=DEFAULT_STRENGTH if strength is None else strength,
        n_layers=model.n_layers,
        model=model.name,
        model_type=str(model.model.config.model_type),
        description=single.metadata.get("description") if single is not None else None,
        reading_layer=reading,
    )


def _axis(project: Project, name: str) -> Outgoing:
    model, axes = project.model, project.personas.axes
    if axes is None:
        raise VectorFileError(f"{model.name} has no axes yet: run `persona-tui init`.")
    vectors = {layer: axes.axis(name, layer) for layer in axes.layers}
    percentile = project.settings.steering.safety_floor_percentile
    capped = project.engine.capping_layers if name in axes.projections else ()
    return Outgoing(
        name=name,
        kind="axis",
        vectors=vectors,
        raw=vectors,
        strength=1.0,
        n_layers=model.n_layers,
        model=model.name,
        model_type=str(model.model.config.model_type),
        description=f"the {name} axis, unit length",
        floors={layer: axes.floor(name, layer, percentile) for layer in capped if layer in axes.layers},
    )


def _doses(project: Project, out: Outgoing) -> dict[int, float]:
    axes = project.personas.axes
    if axes is None:
        return {}
    ordinary = next(iter(axes.baseline.values())).norm(dim=-1)
    return {
        layer: float(out.strength * vector.norm() / ordinary[axes.layers.index(layer)])
        for layer, vector in out.vectors.items()
        if layer in axes.layers
    }
