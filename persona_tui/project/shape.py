"""What is known of the model's sizes without loading it, and whether a vector file belongs to it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from persona_tui.core.documents import json_value, read_plain
from persona_tui.core.errors import PersonaTuiError, VectorFileError

if TYPE_CHECKING:
    from persona_tui.project.project import Project


def check_depth(project: Project, layers: Sequence[int]) -> None:
    """Raise PersonaTuiError for layers that the model does not have, if its depth is known."""
    if not layers:
        return
    engine = project.loaded_engine
    depth = engine.model.n_layers if engine is not None else _sizes(project).get("num_hidden_layers")
    if isinstance(depth, int) and max(layers) >= depth:
        raise PersonaTuiError(f"there is no layer {max(layers)}: this model's are 0 to {depth - 1}")


def belonging(project: Project) -> Callable[[Path, Mapping[str, Any]], None]:
    """Return what raises VectorFileError for a vector file that was made on another model.

    It is told by the sizes in the model's config.json, and by the axes in the same folder; whether the axes
    are the model's own is only known when it is loaded.
    """
    from persona_tui.core.identity import ModelSketch
    from persona_tui.vectors.files import check_model, read_metadata
    from persona_tui.vectors.manager import AXES_FILE

    model, sizes = project.settings.model.name, _sizes(project)
    axes: dict[str, Any] = {}
    try:
        path = project.personas.vectors_dir / AXES_FILE
        if path.is_file():
            axes = read_metadata(path)
            _check_sizes(path, axes, model, sizes)
    except VectorFileError:
        axes = {}  # they say nothing about the model

    def check(path: Path, metadata: Mapping[str, Any]) -> None:
        _check_sizes(path, metadata, model, sizes)
        check_model(path, metadata, axes.get("model_fingerprint"), model, ModelSketch.from_metadata(axes))

    return check


def _sizes(project: Project) -> dict[str, Any]:
    """Return the model's config.json; empty if it is not on this machine, or a server has it."""
    from persona_tui.model.sources import resolve

    elsewhere = project.lent or project.at is not None
    try:
        folder = None if elsewhere else resolve(project.settings.model.name).folder
        config = json_value(read_plain(folder / "config.json")) if folder is not None else {}
    except (PersonaTuiError, OSError, ValueError):
        return {}  # loading it says what is wrong
    inner = config.get("text_config", config) if isinstance(config, dict) else {}
    return inner if isinstance(inner, dict) else {}


def _check_sizes(path: Path, metadata: Mapping[str, Any], model: str, sizes: Mapping[str, Any]) -> None:
    layers = metadata.get("layers") or [0]
    width, depth = sizes.get("hidden_size"), sizes.get("num_hidden_layers")
    made = metadata.get("hidden_size")
    if isinstance(width, int) and isinstance(made, int) and width != made:
        why = f"vectors of {made} numbers, not {width}"
    elif isinstance(depth, int) and max(layers) >= depth:
        why = f"it names layer {max(layers)} of {depth}"
    else:
        return
    name = metadata.get("model_name") or "an unknown model"
    raise VectorFileError(f"{path.name} was made on {name} and cannot be used with {model} ({why}).")
