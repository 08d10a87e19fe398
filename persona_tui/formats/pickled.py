"""The `.pt` files of this field, read without unpickling anything but tensors and plain values."""

from __future__ import annotations

import io
import pickle
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from persona_tui.core.documents import read_plain
from persona_tui.formats.direction import Direction, refuse

Indices = Literal["auto", "blocks", "hidden-states"]
MOST_BYTES = 1 << 30


def read_pickled(
    path: Path, n_layers: int, layer: int | None, indices: Indices, wanted: str | None
) -> list[Direction]:
    """Read a `.pt` file.

    Args:
        path: the file.
        n_layers: of the model that its vectors are for.
        layer: where a vector belongs whose file does not say.
        indices: what rows count: the outputs of the blocks, or hidden states, whose first are the embeddings;
            "auto" tells by how many there are.
        wanted: of a file with several directions, the one to read; None = all.

    Raises:
        VectorFileError: it holds no vector, or one that does not fit the model.
    """
    content = _load(path)
    reader = _Reader(path.stem, n_layers, layer, indices)
    if isinstance(content, Tensor):
        content = {path.stem: content}
    if not isinstance(content, Mapping):
        refuse(path, f"it holds a {type(content).__name__} and not a tensor or a dictionary of tensors")
    try:
        found = list(reader.known(content))
    except (ValueError, TypeError, RuntimeError) as error:  # a layer that is no number, a sparse tensor, ...
        refuse(path, f"something in it is not what its form says ({type(error).__name__})")
    if wanted is not None:
        found = [each for each in found if each.name == wanted]
    if not found:
        keys = ", ".join(sorted(str(key) for key in content)[:8])
        refuse(path, f"no vector was found in it under a name that is known; it has {keys}")
    return found


def _load(path: Path) -> Any:
    try:
        data = read_plain(path, MOST_BYTES)
    except OSError as error:
        refuse(path, error.strerror or str(error))
    try:
        with warnings.catch_warnings(action="ignore"):  # about how the file was made, not what is in it
            # Only tensors and plain values: nothing in the file can run.
            return torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        refuse(
            path,
            "it is damaged, or holds Python objects, which could run code; only tensors and plain values are "
            "read",
        )
    except Exception as error:  # a damaged file raises nearly anything
        refuse(path, f"it is damaged, or not a PyTorch file ({type(error).__name__})")


class _Reader:
    """Finds the directions in a file's dictionary."""

    def __init__(self, stem: str, n_layers: int, layer: int | None, indices: Indices) -> None:
        self._stem = stem
        self._n_layers = n_layers
        self._layer = layer
        self._indices = indices

    def known(self, content: Mapping[Any, Any]) -> Iterator[Direction]:
        """Yield the directions of every form that is known."""
        if isinstance(content.get("direction"), Tensor):  # the trait form: one vector, one layer
            yield self._trait(content)
        elif isinstance(content.get("per_layer_vectors"), Mapping):
            yield self._by_layer(content, content["per_layer_vectors"])
        elif any(isinstance(content.get(key), Tensor) for key in ("raw_vector", "safe_vector")):
            yield self._everywhere(content)
        elif isinstance(content.get("axis"), Tensor):
            yield self.stack(self._stem, content["axis"], "assistant-axis", _text(content.get("metadata")))
        elif isinstance(content.get("vectors"), Mapping):
            yield from self._capping(content["vectors"])
        elif isinstance(content.get("vector"), Tensor):
            yield self._vector(content)
        elif all(isinstance(value, Tensor) for value in content.values()) and content:
            yield from self._tensors(content)

    def stack(self, name: str, value: Tensor, form: str, description: str | None = None) -> Direction:
        """Return a direction from `[rows, hidden]`, or from one vector where the layer is known."""
        if value.ndim == 1:
            return Direction(name, {self._given(name): value}, form, description)
        if value.ndim != 2:
            refuse(name, f"its tensor is {list(value.shape)}, not [layers, hidden]")
        rows, notes = self._rows(name, value)
        if not rows:
            refuse(name, "all its vectors are zero")
        return Direction(name, rows, form, description, notes=notes)

    def _rows(self, name: str, value: Tensor) -> tuple[dict[int, Tensor], tuple[str, ...]]:
        """Return the rows by layer, without those that say nothing."""
        blocks, given = self._n_layers, value.shape[0]
        shifted = self._indices == "hidden-states" or (self._indices == "auto" and given == blocks + 1)
        if given != blocks + (1 if shifted else 0):
            also = f" (or {blocks + 1} with one for the embeddings)" if not shifted else ""
            refuse(name, f"it has {given} rows, and this model has {blocks} layers{also}")
        notes: tuple[str, ...] = ()
        if shifted:
            # Row 0 is the embeddings; the last is after the final norm, which no block's output is.
            value = value[1:-1]
            notes = ("its rows count hidden states: shifted by one, without the first and the last",)
        return {at: row for at, row in enumerate(value) if row.any()}, notes

    def _trait(self, content: Mapping[Any, Any]) -> Direction:
        name = str(content.get("trait_name") or self._stem)
        layer = content.get("layer_idx")
        place = layer if isinstance(layer, int) and not isinstance(layer, bool) else self._given(name)
        return Direction(name, {self._real(name, place): content["direction"]}, "trait", _described(content))

    def _by_layer(self, content: Mapping[Any, Any], vectors: Mapping[Any, Any]) -> Direction:
        rows = {}
        for layer, vector in vectors.items():
            if not isinstance(vector, Tensor) or not str(layer).lstrip("-").isdigit():
                refuse(self._stem, f'its vector for layer "{layer}" is not a tensor with a number')
            rows[self._real(self._stem, int(layer))] = vector
        return Direction(self._stem, rows, "per-layer vectors", _described(content))

    def _everywhere(self, content: Mapping[Any, Any]) -> Direction:
        """One vector that is added at each of its layers: the safe one where there is one."""
        kind = "safe_vector" if isinstance(content.get("safe_vector"), Tensor) else "raw_vector"
        return self._at_its_layers(content, content[kind], "persona", (f"its {kind} was read",))

    def _vector(self, content: Mapping[Any, Any]) -> Direction:
        vector = content["vector"]
        name = str(content.get("role") or self._stem)
        if vector.ndim == 1 and content.get("layers"):
            return self._at_its_layers(content, vector, "axis")
        if vector.ndim == 1 and isinstance(content.get("layer"), int):
            return Direction(name, {self._real(name, content["layer"]): vector}, "vector")
        return self.stack(name, vector, "role" if "role" in content else "vector", _described(content))

    def _at_its_layers(
        self, content: Mapping[Any, Any], vector: Tensor, form: str, notes: tuple[str, ...] = ()
    ) -> Direction:
        layers = content.get("layers")
        chosen = layers if isinstance(layers, list | tuple) and layers else [self._given(self._stem)]
        rows = {self._real(self._stem, int(layer)): vector for layer in chosen}
        if len(rows) > 1:
            notes = (*notes, f"one vector for {len(rows)} layers")
        return Direction(self._stem, rows, form, _described(content), notes=notes)

    def _capping(self, vectors: Mapping[Any, Any]) -> Iterator[Direction]:
        """Return the vectors of a capping file; where they share a name up to the layer, they are one
        direction.
        """
        for name, entry in vectors.items():
            if not isinstance(entry, Mapping) or not isinstance(entry.get("vector"), Tensor):
                refuse(self._stem, f'its "{name}" has no vector')
            place = entry.get("layer")
            if not isinstance(place, int):
                refuse(self._stem, f'its "{name}" does not say its layer')
            yield Direction(
                str(name),
                {self._real(str(name), place): entry["vector"]},
                "capping",
                notes=("its caps were not read: floors here come from this model's own replies",),
            )

    def _tensors(self, content: Mapping[Any, Any]) -> Iterator[Direction]:
        """Yield a dictionary of tensors: by layer if its keys are numbers, else one direction for each."""
        if all(str(key).isdigit() for key in content):
            yield self._by_layer({}, content)
            return
        for name, value in content.items():
            yield self.stack(str(name), value, "tensor")

    def _given(self, name: str) -> int:
        if self._layer is None:
            refuse(name, "it does not say which layer it belongs to; name it with --layer")
        return self._real(name, self._layer)

    def _real(self, name: str, layer: int) -> int:
        place = layer + self._n_layers if layer < 0 else layer
        if not 0 <= place < self._n_layers:
            refuse(name, f"it is for layer {layer}, and this model has layers 0 to {self._n_layers - 1}")
        return place


def _described(content: Mapping[Any, Any]) -> str | None:
    return _text(content.get("description")) or _text(content.get("metadata"))


def _text(value: object) -> str | None:
    """Return what a file says, for people."""
    if isinstance(value, str):
        return value or None
    if isinstance(value, Mapping):
        plain = {str(k): v for k, v in value.items() if isinstance(v, str | int | float)}
        return ", ".join(f"{key}: {each}" for key, each in plain.items()) or None
    return None
