"""The files of everything that was extracted: safetensors with one JSON metadata entry, in folders by kind.

Nothing is ever unpickled. A file from a stranger can at worst be refused, with one line that names it. What a
damaged file means is the same everywhere: it is listed, its summary is the error, and using it raises that.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar, NoReturn

import torch
from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors.torch import load as parse_tensors
from safetensors.torch import save as serialize_tensors
from torch import Tensor

from persona_tui.core.documents import json_value, open_plain, read_plain
from persona_tui.core.errors import PersonaTuiError, VectorFileError, WorkspaceError, nearest
from persona_tui.core.files import atomic_write_bytes, atomic_write_text, safe_name
from persona_tui.core.identity import EQUAL, FAR, ModelSketch
from persona_tui.core.mistakes import mistake_of
from persona_tui.vectors.metadata import check_metadata

METADATA_KEY = "persona_tui"
SUFFIX = ".safetensors"
FORMAT_VERSION = 1
SUMMARY_FILE = "summary.json"
# Where a model's files lie, by kind: in a folder, or under one name.
PLACES = {
    "persona": "personas/",
    "trait": "traits/",
    "monitor": "monitors/",
    "axes": f"axes{SUFFIX}",
    "roles": f"roles{SUFFIX}",
}

# The positions a vector is taken from: the mean over the response, or the last token before it.
RECIPES = ("response", "prompt_last")
RECIPE = "response"  # replies are compared with replies, whatever a persona is steered with
# Or fitted to what the system prompts do (`extraction/distil.py`); only personas have it, and not all.
DISTILLED = "distilled"

# Far above anything real: 128 layers of 16384 in six kinds are 50 MB, a long calibration curve 100 kB.
MAX_FILE_BYTES = 1 << 30
MAX_HEADER_BYTES = 8 << 20

# Far below and above anything that a model's activations, or their differences, come to.
SHORTEST = 1e-9
LARGEST = 1e9

_FLOATS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)


def save_tensors(
    path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, Any], *, inside: Path | None = None
) -> None:
    """Write tensors and metadata to `path`, whole or not at all.

    Args:
        path: the file, replaced if it exists.
        tensors: name to tensor; stored as contiguous float32.
        metadata: anything JSON can say.
        inside: the folder that links must not lead out of; by default the file's own.

    Raises:
        VectorFileError: a tensor holds NaN or infinity, or the metadata is not JSON.
        WorkspaceError: the file cannot be written.
    """
    plain = {name: t.detach().to("cpu", torch.float32).contiguous().clone() for name, t in tensors.items()}
    _check_tensors(path, plain)
    try:
        text = json.dumps(dict(metadata), allow_nan=False, ensure_ascii=False)
    except (TypeError, ValueError) as error:
        raise VectorFileError(f"{path} was not written: its metadata is not JSON ({error}).") from error
    atomic_write_bytes(path, serialize_tensors(plain, {METADATA_KEY: text}), inside=inside)


def load_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read a file that `save_tensors` wrote; return its tensors (float32, CPU) and its metadata.

    Raises:
        VectorFileError: the file is missing, cut off, too large, of another kind, or holds NaN, infinity or
            numbers that no model writes.
    """
    stored, metadata = load_stored(path)
    for name, tensor in stored.items():
        if tensor.dtype not in _FLOATS:
            _refuse(path, f'its tensor "{name}" is {tensor.dtype}, not floating point')
    tensors = {name: tensor.float() for name, tensor in stored.items()}
    _check_tensors(path, tensors)
    return tensors, metadata


def load_stored(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read any safetensors file with our metadata; return its tensors, as they are, and its metadata.

    Raises:
        VectorFileError: the file is missing, cut off, too large, or of another kind.
    """
    data = _read(path)
    metadata = _metadata(path, _header(path, data))
    try:
        return parse_tensors(data), metadata
    except (SafetensorError, ValueError, RuntimeError, KeyError) as error:
        raise VectorFileError(f"{path} is damaged: {_first_line(error)}.") from error


def read_metadata(path: Path) -> dict[str, Any]:
    """Read a file's metadata only, however large its tensors are.

    Raises:
        VectorFileError: the file is missing, cut off in its header, or of another kind.
    """
    try:
        with open_plain(path) as file:
            front = file.read(8)
            length = min(int.from_bytes(front, "little"), MAX_HEADER_BYTES + 1)
            data = front + file.read(length)
    except OSError as error:
        raise VectorFileError(f"{path} cannot be read: {error.strerror or error}.") from error
    return _metadata(path, _header(path, data))


def check_kind(path: Path, metadata: Mapping[str, Any], kind: str) -> None:
    """Raise VectorFileError unless the file says that it holds `kind`, in a format this version reads."""
    if (held := metadata.get("kind")) != kind:
        place = PLACES.get(str(held))
        where = f"in {place}" if place and place.endswith("/") else f"at {place}"
        what_to_do = f"; it belongs {where}" if place else ""
        _refuse(path, f"it holds {held or 'something else'!r}, not {kind!r}{what_to_do}")
    version = metadata.get("format_version")
    if version != FORMAT_VERSION:
        _refuse(path, f"its format version is {version!r}; this persona-tui reads {FORMAT_VERSION}")


def check_model(
    file: Path | str,
    metadata: Mapping[str, Any],
    fingerprint: str | None,
    model: str,
    sketch: ModelSketch | None = None,
) -> str:
    """Refuse a file that was made on another model.

    Without a fingerprint, that is without a loaded model, nothing is checked. Where the file or the loaded
    model has no sketch, the fingerprints must match.

    Args:
        file: its path, or what to call it.
        metadata: what it says about the model that it was made on.
        fingerprint: of the loaded model.
        model: what to call that.
        sketch: of the loaded model.

    Returns:
        "" if it is the same model; a note, one sentence, if it is a near copy of it: in another precision,
        quantised, or fine-tuned.

    Raises:
        VectorFileError: it is another model; names both.
    """
    if fingerprint is None:
        return ""
    made_on, theirs = metadata.get("model_fingerprint"), ModelSketch.from_metadata(metadata)
    same, name = same_model(made_on, fingerprint), _made_on(metadata)
    file = file.name if isinstance(file, Path) else file
    if theirs is not None and sketch is not None:
        if theirs.shape != sketch.shape:
            name, model = f"{name} ({theirs.shape})", f"{model} ({sketch.shape})"
            raise VectorFileError(f"{file} was made on {name} and cannot be used with {model}.")
        layers = metadata.get("layers") or [0]
        if max(layers) >= sketch.shape.layers:
            raise VectorFileError(
                f"{file} cannot be used: it names layer {max(layers)}, and {model} has {sketch.shape.layers}."
            )
        difference = theirs.difference(sketch)
        if difference is not None:
            return _judged(file, name, model, difference, same)
    if not same:
        short = f"{str(made_on)[:8]} against {fingerprint[:8]}"
        raise VectorFileError(
            f"{file} was made on {name} and cannot be used with {model} (fingerprints {short})."
        )
    return ""


def _made_on(metadata: Mapping[str, Any]) -> str:
    """Return what to call the model behind a file; one name may stand for weights from several places."""
    name = str(metadata.get("model_name") or "an unknown model")
    source = metadata.get("model_source")
    return f"{name} ({source})" if source else name


def _judged(file: str, name: str, model: str, difference: float, same: bool) -> str:
    """Return the note about weights that differ by a share of their size; "" if there is nothing to say."""
    if difference > FAR:
        raise VectorFileError(
            f"{file} was made on {name} and cannot be used with {model}: it has the same shape, "
            f"but other weights (they differ by {difference:.0%}; copies, by less than {FAR:.0%})."
        )
    if same and difference <= EQUAL:
        return ""
    return (
        f"The vectors were made on {name}; {model} is a near copy (its weights differ by {difference:.1%})."
    )


def same_model(one: object, other: object) -> bool:
    """Return whether two fingerprints are of one model, as far as both tell.

    They are `plain.weights`, the second part missing where a model is quantized; see `model/fingerprint.py`.
    """
    plain, _, weights = str(one).partition(".")
    other_plain, _, other_weights = str(other).partition(".")
    return plain == other_plain and (not weights or not other_weights or weights == other_weights)


def _read(path: Path) -> bytes:
    try:
        if not path.is_file():
            if path.is_symlink() and not path.exists():
                _refuse(path, "it is a link to nowhere; mend it or delete it")
            _refuse(path, "it is not a file" if path.exists() else "there is no such file")
        size = path.stat().st_size
        if size > MAX_FILE_BYTES:
            _refuse(path, f"it is too large ({size:,} bytes)")
        return read_plain(path, MAX_FILE_BYTES)
    except OSError as error:
        raise VectorFileError(f"{path} cannot be read: {error.strerror or error}.") from error


def _header(path: Path, data: bytes) -> dict[str, Any]:
    """Parse the JSON header by hand first: what is wrong is then said in words of ours."""
    # A header's length may begin with the same bytes as a pickle, but then a JSON object follows.
    if data[8:9] != b"{" and (data[:2] == b"PK" or data[:1] == b"\x80"):
        _refuse(path, "it is a pickle, which could run code; only safetensors files are read")
    if len(data) < 8:
        _refuse(path, "it is cut off, or not a vector file")
    length = int.from_bytes(data[:8], "little")
    if length > MAX_HEADER_BYTES:
        _refuse(path, "its header is too large; it is damaged, or not a vector file")
    if length > len(data) - 8:
        _refuse(path, "it is cut off within its header")
    try:
        header = json_value(data[8 : 8 + length])
    except ValueError as error:
        raise VectorFileError(f"{path} cannot be used: its header is damaged.") from error
    if not isinstance(header, dict):
        _refuse(path, "its header is damaged")
    return header


def _metadata(path: Path, header: Mapping[str, Any]) -> dict[str, Any]:
    entries = header.get("__metadata__")
    text = entries.get(METADATA_KEY) if isinstance(entries, dict) else None
    if not isinstance(text, str):
        _refuse(path, "it has no persona-tui metadata; `persona-tui import` reads other programs' files")
    try:
        metadata = json_value(text, constants=False)
    except ValueError as error:
        raise VectorFileError(f"{path} cannot be used: its metadata is damaged.") from error
    if not isinstance(metadata, dict):
        _refuse(path, "its metadata is damaged")
    if fault := fault_of(metadata):
        _refuse(path, f"its metadata is wrong ({fault})")
    return metadata


def _check_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    if not tensors:
        _refuse(path, "it holds no tensors")
    for name, tensor in tensors.items():
        if not tensor.isfinite().all():
            _refuse(path, f'its tensor "{name}" holds NaN or infinity')
        if tensor.numel() and tensor.abs().max() > LARGEST:
            _refuse(path, f'its tensor "{name}" holds numbers above {LARGEST:g}, which no model writes')


def check_direction(what: str, vectors: Tensor) -> None:
    """Raise ValueError unless each of some vectors `[..., hidden]` is long enough to point anywhere."""
    shortest = float(vectors.float().norm(dim=-1).min())
    if not shortest >= SHORTEST:
        raise ValueError(f"{what} has the length {shortest:g}: it is too short to be a direction")


def by_recipe(tensors: Mapping[str, Tensor], kind: str) -> dict[str, Tensor]:
    """Return the stored tensors of one kind, `<kind>.<recipe>`, by recipe."""
    known = (*RECIPES, DISTILLED)
    return {recipe: tensors[f"{kind}.{recipe}"] for recipe in known if f"{kind}.{recipe}" in tensors}


def check_layers(layers: tuple[int, ...]) -> None:
    """Raise ValueError unless the layers are ascending numbers from 0, without repetition."""
    if not layers or layers[0] < 0 or list(layers) != sorted(set(layers)):
        raise ValueError(f"its layers {list(layers)} are not ascending numbers from 0")


def check_stacks(n_layers: int, kinds: Mapping[str, Mapping[str, Tensor]]) -> None:
    """Raise ValueError unless all kinds have the same recipes and one shape, `[n_layers, hidden]`."""
    recipes = set(next(iter(kinds.values())))
    if not recipes & set(RECIPES) or not recipes <= {*RECIPES, DISTILLED}:
        raise ValueError(f"it has none of the recipes {', '.join(RECIPES)}, or others")
    hidden: int | None = None
    for kind, stacks in kinds.items():
        if set(stacks) != recipes:
            raise ValueError(f'its "{kind}" vectors lack a recipe that the others have')
        for stack in stacks.values():
            hidden = hidden if hidden is not None else int(stack.shape[-1]) if stack.ndim else 0
            if tuple(stack.shape) != (n_layers, hidden) or not hidden:
                expected = [n_layers, hidden or "hidden"]
                raise ValueError(f'its "{kind}" vectors are {list(stack.shape)}, not {expected}')


def fault_of(metadata: Mapping[str, Any]) -> str | None:
    """Return what is wrong with a file's metadata, in a few words that name the field; None if nothing is."""
    try:
        check_metadata(metadata)
    except ValidationError as error:
        return mistake_of(error, metadata)
    return None


def explain_fault(error: Exception) -> str:
    """Say in a few words what is wrong with the contents of a file."""
    if isinstance(error, ValidationError):
        return f"its metadata is wrong ({mistake_of(error)})"
    if isinstance(error, KeyError):
        return f"it has no {error}"
    return (str(error).splitlines() or ["its contents are wrong"])[0].rstrip(".")


def _refuse(path: Path, reason: str) -> NoReturn:
    raise VectorFileError(f"{path} cannot be used: {reason}.")


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or ["unreadable"])[0].rstrip(".")


class VectorStore:
    """Lists, finds, checks and deletes the vector files in one folder of one model. Opening it reads nothing.

    Attributes:
        folder: where the files are; it need not exist.
        fingerprint: of the loaded model; files made on another one are refused. None: not checked.
        model_name: what to call the model in errors.
        sketch: of the loaded model's weights: with it, files made on a near copy of it are used.
        on_copy: told that, in one sentence, whenever such a file is read.
    """

    word: ClassVar[str] = "persona"
    prefix: ClassVar[str] = ""  # what names may begin with, and files do not
    missing: ClassVar[type[PersonaTuiError]] = VectorFileError
    aliases: ClassVar[Mapping[str, str]] = {}  # other names, which are only looked up

    def __init__(
        self,
        folder: Path,
        fingerprint: str | None = None,
        model_name: str | None = None,
        sketch: ModelSketch | None = None,
        on_copy: Callable[[str], None] | None = None,
    ) -> None:
        self.folder = folder
        self.fingerprint = fingerprint
        self.model_name = model_name or folder.parent.name
        self.sketch = sketch
        self.on_copy = on_copy or (lambda note: None)

    def names(self) -> list[str]:
        """Return the names there are, sorted and without a prefix."""
        return sorted(path.stem for path in self.folder.glob(f"*{SUFFIX}") if _is_vector_file(path))

    def path_of(self, name: str) -> Path:
        """Return the file of a name, whether it exists or not.

        Raises:
            WorkspaceError: the name cannot be a file name.
        """
        return self.folder / f"{safe_name(name.removeprefix(self.prefix))}{SUFFIX}"

    def has(self, name: str) -> bool:
        """Return whether there is a file of this name."""
        try:
            return self.path_of(name).is_file()
        except WorkspaceError:
            return False

    def find(self, name: str) -> Path:
        """Return the file of a name; nothing is read.

        Raises:
            PersonaTuiError: it does not exist (the class is `missing`).
        """
        path = self.path_of(name)
        if not _is_there(path) and (other := self.aliases.get(name.removeprefix(self.prefix))):
            path = self.path_of(other)
        if not _is_there(path):
            known = [f"{self.prefix if name.startswith(self.prefix) else ''}{each}" for each in self.names()]
            there = nearest(name, known) or (f" There are {', '.join(known)}." if known else "")
            advice = self._advice(name, bool(there))
            raise self.missing(f'There is no {self.word} "{name}" for {self.model_name}.{there}{advice}')
        return path

    def _advice(self, name: str, others: bool) -> str:
        """Return what to do where a name does not exist; `others` = the names there are have been told."""
        return "" if others else " There are none yet."

    def check(self, path: Path, metadata: Mapping[str, Any]) -> None:
        """Raise VectorFileError if a file's metadata says that it was made on another model."""
        if note := check_model(path, metadata, self.fingerprint, self.model_name, self.sketch):
            self.on_copy(note)

    def about(self, name: str) -> dict[str, Any]:
        """Return a file's metadata without reading its tensors.

        Raises:
            PersonaTuiError: no file has this name (of the class that `missing` names).
            VectorFileError: the file is damaged or belongs to another model.
        """
        path = self.find(name)
        metadata = read_metadata(path)
        self.check(path, metadata)
        return metadata

    def delete(self, name: str) -> bool:
        """Remove a file; return False if there is none.

        Raises:
            WorkspaceError: it cannot be deleted.
        """
        path = self.path_of(name)
        if not path.is_file():
            return False
        try:
            path.unlink()
        except OSError as error:
            raise WorkspaceError(f"{path} cannot be deleted: {error.strerror or error}.") from error
        return True

    def described(self, describe: Callable[[str], dict[str, Any]]) -> dict[str, dict[str, Any]]:
        """Return what `describe` says of every name; of a file that cannot be used, its `error`."""
        found: dict[str, dict[str, Any]] = {}
        for name in self.names():
            try:
                found[name] = describe(name)
            except PersonaTuiError as error:
                found[name] = {"error": str(error)}
        return found

    def save_summary(self, document: object) -> None:
        """Write the folder's summary for people and programs."""
        text = json.dumps(document, indent=2, ensure_ascii=False) + "\n"
        atomic_write_text(self.folder / SUMMARY_FILE, text, inside=self.folder)


def _is_there(path: Path) -> bool:
    return path.is_file() or path.is_symlink()  # reading a link to nowhere then says what it is


def _is_vector_file(path: Path) -> bool:
    try:
        return safe_name(path.stem) == path.stem and _is_there(path)
    except WorkspaceError:
        return False
