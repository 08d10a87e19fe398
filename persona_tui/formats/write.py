"""Vectors for other programs, each in its own format.

What is added at strength 1, `gain` times the vector, is what leaves: a file without our calibration is as
loud as its reader makes it, and each format says below what its scale means.
"""

from __future__ import annotations

import io
import json
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save as serialize_tensors
from torch import Tensor

from persona_tui.core.errors import VectorFileError
from persona_tui.core.files import atomic_write_bytes
from persona_tui.formats.direction import table

# llama.cpp's names where transformers' model type differs.
_ARCHITECTURES = {"mistral": "llama", "gemma3_text": "gemma3", "gpt_neox": "gptneox"}


@dataclass(frozen=True, eq=False)
class Outgoing:
    """Something that leaves: a persona, a blend, a trait or an axis.

    Attributes:
        name: what to call it.
        kind: "persona", "trait" or "axis".
        vectors: by layer, what is added at strength 1, `[hidden]`; of an axis, the unit vector.
        raw: the same with its safety component, for formats that have both.
        strength: the strength that is written where a format has no scale of its own.
        n_layers: of the model.
        model: its name.
        model_type: its architecture, as transformers calls it.
        description: what it is.
        reading_layer: where a trait is read, if it is one.
        floors: by layer, the floor of an axis.
    """

    name: str
    kind: str
    vectors: Mapping[int, Tensor]
    raw: Mapping[int, Tensor]
    strength: float
    n_layers: int
    model: str
    model_type: str
    description: str | None = None
    reading_layer: int | None = None
    floors: Mapping[int, float] | None = None


@dataclass(frozen=True)
class Exported:
    """What became of an export.

    Attributes:
        path: the file or folder.
        notes: what the format could not hold, and how to use it, one sentence each.
        request: what a request to a server says, for formats that are used in requests.
    """

    path: Path
    notes: tuple[str, ...] = ()
    request: dict[str, Any] | None = None


def write_foreign(out: Outgoing, form: str, path: Path) -> Exported:
    """Write a file in another program's format; it is replaced if it exists.

    Args:
        out: what is written.
        form: a key of `FORMS`.
        path: the file.

    Raises:
        VectorFileError: the format cannot hold it.
        WorkspaceError: the file cannot be written.
    """
    return FORMS[form](out, path)


def _gguf(out: Outgoing, path: Path) -> Exported:
    """Return a control vector for llama.cpp, repeng and saklas. The strength is multiplied in: scale 1 is
    right.
    """
    from gguf import GGUFWriter

    held = {layer: out.strength * vector for layer, vector in out.vectors.items() if layer > 0}
    if not held:
        raise VectorFileError(f'"{out.name}" acts at layer 0 only, which llama.cpp\'s format cannot hold.')
    writer = GGUFWriter(None, "controlvector", use_temp_file=False)
    writer.add_string("controlvector.model_hint", _ARCHITECTURES.get(out.model_type, out.model_type))
    writer.add_uint32("controlvector.layer_count", len(held))
    writer.add_float32("persona_tui.strength", out.strength)
    for layer, vector in held.items():
        writer.add_tensor(f"direction.{layer}", vector.float().contiguous().numpy())
    with tempfile.TemporaryDirectory() as folder:  # the writer knows files only
        whole = Path(folder) / "whole.gguf"
        writer.write_header_to_file(whole)
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        atomic_write_bytes(path, whole.read_bytes())
    notes = [f"llama-server -m MODEL.gguf --control-vector {path}"]
    if 0 in out.vectors:
        notes.append("layer 0 was left out: llama.cpp does not read direction.0")
    return Exported(path, tuple(notes))


def _hotwire(out: Outgoing, path: Path) -> Exported:
    """Return a tensor `[blocks, hidden]` for hotwire-vllm; the request has the strength, layer by layer."""
    _torch(path, table(out.vectors, out.n_layers))
    steps = [
        {"id": path.stem, "layer": layer, "scale": out.strength, "decode_only": False}
        for layer in out.vectors
    ]
    return Exported(
        path,
        (f"put it into the folder that HOTWIRE_VECTORS names, as {path.name}",),
        {"vllm_xargs": {"hotwire": json.dumps(steps)}},
    )


def _persona_vectors(out: Outgoing, path: Path) -> Exported:
    """Return a tensor `[blocks + 1, hidden]` as persona_vectors reads it: row k is block k - 1."""
    stack = torch.cat([torch.zeros(1, _width(out)), table(out.vectors, out.n_layers)])
    _torch(path, stack)
    first, last = min(out.vectors), max(out.vectors)
    return Exported(
        path,
        (
            f"its rows count hidden states: layers {first} to {last} are rows {first + 1} to {last + 1}",
            f"a coefficient of {out.strength:g} at all of these layers is strength {out.strength:g}",
        ),
    )


def _assistant_axis(out: Outgoing, path: Path) -> Exported:
    """Return the dictionary of an axis, or of a role, with `[blocks, hidden]`."""
    stack = table(out.vectors, out.n_layers)
    if out.kind == "axis":
        _torch(path, {"axis": stack, "metadata": _metadata(out)})
    else:
        _torch(path, {"vector": stack, "type": "persona-tui", "role": out.name})
    return Exported(path)


def _capping(out: Outgoing, path: Path) -> Exported:
    """Return the capping file of assistant-axis: an axis' unit vectors with their floors.

    Its code caps from above, so that the axis is turned round: what is not above −floor along −axis is not
    below the floor along the axis.
    """
    if out.kind != "axis" or not out.floors:
        raise VectorFileError("only an axis has floors: export axis:assistant or axis:safety in this format.")
    vectors = {
        f"{out.name}_{layer}": {"layer": layer, "vector": -out.vectors[layer]} for layer in sorted(out.floors)
    }
    caps = [{"vector": f"{out.name}_{layer}", "cap": -floor} for layer, floor in sorted(out.floors.items())]
    _torch(path, {"vectors": vectors, "experiments": [{"id": out.name, "interventions": caps}]})
    return Exported(path, (f'caps from above along the reverse of the axis; the experiment is "{out.name}"',))


def _plain(out: Outgoing, path: Path) -> Exported:
    """One dictionary with one vector for all layers, their mean, and the vectors by layer beside it."""
    layers = sorted(out.vectors)
    mean = torch.stack([out.vectors[layer].float() for layer in layers]).mean(dim=0)
    by_layer = {layer: out.vectors[layer].float().contiguous() for layer in layers}
    metadata = _metadata(out)
    if out.kind == "trait" and out.reading_layer is not None:
        at = out.reading_layer
        direction = out.vectors.get(at, mean)
        _torch(
            path,
            {
                "trait_name": out.name,
                "direction": direction.float(),
                "layer_idx": at,
                "strength": float(direction.norm()),
                "metadata": metadata,
            },
        )
        return Exported(path)
    common = {"layers": layers, "per_layer_vectors": by_layer, "metadata": metadata}
    if out.kind == "axis":
        floors = list((out.floors or {}).values())
        floor = sum(floors) / len(floors) if floors else None
        _torch(path, {"vector": mean, "floor": floor, **common})
    else:
        raw = torch.stack([out.raw[layer].float() for layer in layers]).mean(dim=0)
        source = {"source": out.kind, "description": out.description}
        _torch(path, {"raw_vector": raw, "safe_vector": mean, **source, **common})
    return Exported(
        path, ("raw_vector and safe_vector are means over the layers, as that form has one for all",)
    )


def _safetensors(out: Outgoing, path: Path) -> Exported:
    """One tensor for each layer, `layer_N`, with the rest as text in the header."""
    tensors = {f"layer_{layer}": each.float().contiguous().clone() for layer, each in out.vectors.items()}
    atomic_write_bytes(path, serialize_tensors(tensors, {k: str(v) for k, v in _metadata(out).items()}))
    return Exported(path)


FORMS: dict[str, Callable[[Outgoing, Path], Exported]] = {
    "gguf": _gguf,
    "hotwire": _hotwire,
    "persona-vectors": _persona_vectors,
    "assistant-axis": _assistant_axis,
    "capping": _capping,
    "pt": _plain,
    "safetensors": _safetensors,
}
SUFFIXES = {"gguf": ".gguf", "safetensors": ".safetensors"}  # every other format's is .pt


def _torch(path: Path, content: Any) -> None:
    buffer = io.BytesIO()
    torch.save(content, buffer)
    atomic_write_bytes(path, buffer.getvalue())


def _metadata(out: Outgoing) -> dict[str, Any]:
    return {
        "model": out.model,
        "name": out.name,
        "strength": out.strength,
        "made_by": "persona-tui",
        **({"description": out.description} if out.description else {}),
    }


def _width(out: Outgoing) -> int:
    return int(next(iter(out.vectors.values())).shape[0])
