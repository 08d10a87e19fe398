"""Another program's vectors, whatever their format."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as parse_tensors
from torch import Tensor

from persona_tui.core.documents import json_value, open_plain, read_plain
from persona_tui.formats.direction import Direction, refuse
from persona_tui.formats.pickled import MOST_BYTES, Indices, read_pickled

_STRENGTH = "persona_tui.strength"
_BASIS = re.compile(r"layer_(\d+)\.basis")


def check_there(path: Path) -> None:
    """Raise a VectorFileError unless there is a file or a folder, for those who first load a model."""
    if not path.is_file() and not path.is_dir():
        refuse(path, "it does not exist" if not path.exists() else "it is not a regular file")


def read_foreign(
    path: Path,
    n_layers: int,
    *,
    layer: int | None = None,
    indices: Indices = "auto",
    wanted: str | None = None,
) -> list[Direction]:
    """Read the directions in a file, or in a folder of saklas'.

    Formats: control vectors in GGUF (llama.cpp, repeng, saklas), `.pt` of persona_vectors, assistant-axis,
    hotwire-vllm and of scripts that save one vector by layer, `.svec` of IBM's activation-steering,
    safetensors with one tensor by layer, and saklas' packs as far as they hold plain vectors.

    Args:
        path: the file or folder.
        n_layers: of the model that the vectors are for.
        layer: where a vector belongs whose file does not say, counted from 0 at the first block's output.
        indices: what the rows of a `.pt` count; "auto" tells by how many there are.
        wanted: of a file with several directions, the one to read; None = all.

    Raises:
        VectorFileError: one line that names the file and what is wrong with it.
    """
    path = Path(path)
    check_there(path)
    if path.is_dir():
        return [_saklas(path, n_layers)]
    suffix = path.suffix.lower()
    if suffix in (".pt", ".pth", ".bin"):
        return read_pickled(path, n_layers, layer, indices, wanted)
    if suffix == ".gguf":
        return [_gguf(path, n_layers)]
    if suffix == ".svec":
        return [_svec(path, n_layers)]
    if suffix == ".safetensors":
        return [_tensors(path, n_layers, path.stem)]
    refuse(path, "its name ends with none of .pt, .pth, .bin, .gguf, .svec and .safetensors")


def _placed(path: Path, vectors: Mapping[int, Tensor], n_layers: int) -> dict[int, Tensor]:
    beyond = [layer for layer in vectors if not 0 <= layer < n_layers]
    if beyond:
        refuse(path, f"it is for layer {beyond[0]}, and this model has layers 0 to {n_layers - 1}")
    return {layer: vector.float() for layer, vector in vectors.items() if vector.any()}


def _gguf(path: Path, n_layers: int) -> Direction:
    from gguf import GGUFReader

    try:
        with open_plain(path) as file:
            if file.read(4) != b"GGUF":
                refuse(path, "it is not a GGUF file")
    except OSError as error:
        refuse(path, error.strerror or str(error))
    try:
        reader = GGUFReader(path)
        fields = {name: field.contents() for name, field in reader.fields.items()}
        found = {each.name: torch.from_numpy(each.data.copy()) for each in reader.tensors}
    except Exception as error:  # a damaged file raises nearly anything
        refuse(path, f"it is damaged, or not a GGUF file ({type(error).__name__})")
    if (kind := fields.get("general.architecture")) != "controlvector":
        refuse(path, f'it holds "{kind}" and not a control vector')
    vectors = {int(name[10:]): each for name, each in found.items() if re.fullmatch(r"direction\.\d+", name)}
    strength = fields.get(_STRENGTH)
    return Direction(
        path.stem,
        _placed(path, vectors, n_layers),
        "control vector",
        strength=float(strength) if isinstance(strength, float) else None,
        notes=(f"made for the architecture {hint}",)
        if (hint := fields.get("controlvector.model_hint"))
        else (),
    )


def _svec(path: Path, n_layers: int) -> Direction:
    try:
        content = json_value(read_plain(path))
        rows = {
            int(layer): torch.tensor(row, dtype=torch.float32) for layer, row in content["directions"].items()
        }
    except OSError as error:
        refuse(path, error.strerror or str(error))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        refuse(path, f"it is not a steering vector in JSON ({type(error).__name__})")
    # Its numbers count blocks, as ours do: hidden state i + 1 is read for layer i.
    placed = {layer + n_layers if layer < 0 else layer: row for layer, row in rows.items()}
    return Direction(path.stem, _placed(path, placed, n_layers), "svec")


def _stored(path: Path) -> dict[str, Tensor]:
    try:
        return parse_tensors(read_plain(path, MOST_BYTES))
    except OSError as error:
        refuse(path, error.strerror or str(error))
    except (SafetensorError, ValueError, KeyError, RuntimeError) as error:
        refuse(path, f"it is damaged ({type(error).__name__})")


def _tensors(path: Path, n_layers: int, name: str) -> Direction:
    """Return a safetensors file with one tensor for each layer, named by its number."""
    stored = _stored(path)
    if any(_BASIS.fullmatch(key) for key in stored):
        return _saklas_fit(path, stored, n_layers, name)
    vectors = {}
    for key, value in stored.items():
        number = re.fullmatch(r"(?:.*[^0-9])?(\d+)", key)
        if number is not None and value.ndim == 1 and value.is_floating_point():
            vectors[int(number[1])] = value
    if not vectors:
        names = ", ".join(sorted(stored)[:5])
        refuse(path, f"it has no tensor [hidden] whose name ends with a layer's number; it has {names}")
    return Direction(name, _placed(path, vectors, n_layers), "safetensors")


def _saklas(folder: Path, n_layers: int) -> Direction:
    """Return a pack of saklas': its fit, if that is a plain vector at every layer."""
    try:
        about: Any = json_value(read_plain(folder / "manifold.json"))
    except (OSError, ValueError):
        refuse(folder, "it is a folder without a readable manifold.json, so it is not a saklas pack")
    fits = sorted(folder.glob("*.safetensors"))
    if not fits:
        refuse(folder, "it has no fit (*.safetensors): fit it with saklas first")
    if len(fits) > 1:
        refuse(folder, f"it has fits for {len(fits)} models; name one of them: {fits[0].name}")
    name = str(about.get("name") or folder.name) if isinstance(about, dict) else folder.name
    return _saklas_fit(fits[0], _stored(fits[0]), n_layers, name)


def _saklas_fit(path: Path, stored: Mapping[str, Tensor], n_layers: int, name: str) -> Direction:
    vectors = {}
    for key, basis in stored.items():
        place = _BASIS.fullmatch(key)
        if place is None:
            continue
        if basis.ndim != 2 or basis.shape[0] != 1 or f"layer_{place[1]}.node_params" in stored:
            refuse(path, "it is a surface with more than one dimension, and not a plain vector")
        ends = stored.get(f"layer_{place[1]}.node_coords")
        # With two nodes, the vector leads from the second to the first.
        size = float(ends[0, 0] - ends[1, 0]) if ends is not None and ends.shape == (2, 1) else 1.0
        vectors[int(place[1])] = basis[0] * size
    return Direction(name, _placed(path, vectors, n_layers), "saklas")
