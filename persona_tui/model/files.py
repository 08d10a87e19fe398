"""What a model consists of on the disk, read without loading it: its config, weights and tokenizer."""

from __future__ import annotations

import codecs
import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import constants

from persona_tui.core.documents import json_value, open_plain, read_plain
from persona_tui.core.errors import ModelLoadError

CONFIG = "config.json"
# The kinds of weights, the one that is used first; and what lists their parts, where they are several.
WEIGHTS = ("*.safetensors", "pytorch_model*.bin")
_ADAPTER = "adapter_config.json"
_INDEXES = ("model.safetensors.index.json", "pytorch_model.bin.index.json")
_TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model")

_LONGEST_HEADER = 100_000_000  # bytes; what the format itself allows


@dataclass(frozen=True)
class TensorInfo:
    """A tensor in a file of weights.

    Attributes:
        dtype: as the format writes it: "F32", "BF16", "I8" and so on.
        shape: its size in every dimension.
        end: where its data end, in bytes after the header.
    """

    dtype: str
    shape: tuple[int, ...]
    end: int = 0

    @property
    def numbers(self) -> int:
        """How many numbers are in it."""
        count = 1
        for size in self.shape:
            count *= size
        return count


def read_config(folder: Path) -> dict[str, Any]:
    """Return a model's config.

    Raises:
        ModelLoadError: it is missing or damaged.
    """
    path = folder / CONFIG
    try:
        config = json_value(read_plain(path))
    except FileNotFoundError as error:
        raise ModelLoadError(f"{folder} is not a model folder: it has no {CONFIG}.") from error
    except (OSError, ValueError) as error:
        raise ModelLoadError(f"{path} cannot be read: {error}") from error
    if not isinstance(config, dict):
        raise ModelLoadError(f"{path} is not a model's config.")
    return config


def weight_files(folder: Path) -> list[Path]:
    """Return a model's files of weights.

    Raises:
        ModelLoadError: there are none, or one that is listed is missing.
    """
    for kind, index in zip(WEIGHTS, _INDEXES, strict=True):
        if (folder / index).is_file():
            return _listed(folder, index)
        if found := sorted(folder.glob(kind)):
            return found
    raise ModelLoadError(f"{folder} has no weights: neither {' nor '.join(WEIGHTS)}.")


def _listed(folder: Path, index: str) -> list[Path]:
    try:
        names = json_value(read_plain(folder / index))["weight_map"].values()
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        raise ModelLoadError(f"{folder / index} cannot be read: it lists no weights.") from error
    paths = [folder / str(name) for name in sorted(set(names))]
    missing = [path.name for path in paths if not path.is_file()]
    if missing:
        more = f" and {len(missing) - 1} more" if missing[1:] else ""
        raise ModelLoadError(f"{folder} is incomplete: {missing[0]}{more} is missing.")
    return paths


def read_header(path: Path) -> dict[str, TensorInfo]:
    """Return the tensors in a .safetensors file, by name.

    Raises:
        ModelLoadError: it is damaged, or cut short.
    """
    try:
        with open_plain(path) as file:
            length = int.from_bytes(file.read(8), "little")
            if not 0 < length <= min(_LONGEST_HEADER, path.stat().st_size):
                raise ValueError("its header is too long")
            tensors = tensor_infos(json_value(file.read(length)))
            size = path.stat().st_size - 8 - length
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelLoadError(f"{path} cannot be read: {error}") from error
    if any(tensor.end > size for tensor in tensors.values()):
        raise ModelLoadError(f"{path} is cut short: copy or download it again.")
    return tensors


def tensor_infos(header: Mapping[str, Any]) -> dict[str, TensorInfo]:
    """Return a header of the format's, as JSON, by tensor."""
    return {
        name: TensorInfo(str(entry["dtype"]), tuple(entry["shape"]), int(entry["data_offsets"][1]))
        for name, entry in header.items()
        if name != "__metadata__"
    }


def check_folder(folder: Path) -> None:
    """Make sure that a folder holds what loading a model takes.

    Raises:
        ModelLoadError: says what is missing or damaged.
    """
    config = read_config(folder)
    if config.get("is_encoder_decoder"):
        raise ModelLoadError(
            f"{folder} is an encoder-decoder model; persona-tui works with decoder-only ones."
        )
    for path in weight_files(folder):
        if path.suffix == ".safetensors":
            read_header(path)
    if not any((folder / name).is_file() for name in _TOKENIZERS):
        raise ModelLoadError(f"{folder} has no tokenizer: none of {', '.join(_TOKENIZERS)}.")


_LFS_POINTER = b"version https://git-lfs"


def check_loadable(folder: Path, name: str, trusted: bool) -> str | None:
    """Refuse what transformers would misread, run, or explain badly; cheap, as nothing is loaded.

    Args:
        folder: of the model.
        name: what the user calls it.
        trusted: whether its own code and pickled weights may be used.

    Returns:
        How the weights are quantised already, as the config names it; None = they are not.

    Raises:
        ModelLoadError: one line with the reason.
    """
    _refuse_odd_files(folder, name)
    _refuse_adapters(folder, name)
    config = read_config(folder)
    if "bits" in (config.get("quantization") or ()) and "quantization_config" not in config:
        raise ModelLoadError(f"{name} is quantised for MLX, which only MLX reads: use the original weights.")
    attention = config.get("attn_implementation") or config.get("_attn_implementation")
    if not trusted and "/" in str(attention or ""):
        raise ModelLoadError(
            f"{name} needs compiled code from {attention}, which was not downloaded: if you trust it, add "
            "--trust-remote-code, or set model.trust_remote_code to its name."
        )
    weights = weight_files(folder)
    for path in weights:
        if path.suffix == ".safetensors":
            read_header(path)
    if not trusted and any(path.suffix != ".safetensors" for path in weights):
        raise ModelLoadError(
            f"{name} has its weights only as pickle ({weights[0].name}), which can run code when it is read: "
            "convert them to safetensors, or, if you trust it, add --trust-remote-code or set "
            "model.trust_remote_code to its name."
        )
    packed = config.get("quantization_config")
    return str(packed.get("quant_method")) if isinstance(packed, dict) else None


def _refuse_odd_files(folder: Path, name: str) -> None:
    """Refuse pipes and devices, which whoever loads the model would wait for or read for ever; a clone
    without Git LFS: small text files in the place of the large ones; and what another encoding hides.
    """
    for path in sorted(folder.iterdir()):
        if path.exists() and not path.is_file() and not path.is_dir():
            raise ModelLoadError(f"{path.name} of {name} is not a regular file: remove it from the folder.")
        if path.is_file() and path.stat().st_size < 1024 and read_plain(path).startswith(_LFS_POINTER):
            raise ModelLoadError(
                f"{path.name} of {name} is a Git LFS pointer, not the file itself: "
                "run `git lfs pull` in the folder."
            )
        if path.suffix == ".json" and path.is_file():
            with open_plain(path) as file:
                if file.read(2) in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE):
                    raise ModelLoadError(f"{path.name} of {name} is UTF-16: save it as UTF-8.")


def _refuse_adapters(folder: Path, name: str) -> None:
    """Refuse adapters: the weights that are read would not be those that were meant."""
    if not (folder / _ADAPTER).is_file():
        return
    try:
        base = json_value(read_plain(folder / _ADAPTER))["base_model_name_or_path"]
    except (OSError, ValueError, KeyError, TypeError):
        base = "its base model"
    merge = f"merge it with {base} (peft: PeftModel.from_pretrained(...).merge_and_unload()) and save that"
    if (folder / CONFIG).is_file():
        raise ModelLoadError(f"{name} has an adapter ({_ADAPTER}) beside its weights: {merge}, or remove it.")
    raise ModelLoadError(f"{name} is an adapter (LoRA), not a whole model: {merge}.")


def cached_folder(name: str) -> Path | None:
    """Return where the hub's cache on this machine has a whole model; None if it has not."""
    root = Path(constants.HF_HUB_CACHE) / f"models--{name.replace('/', '--')}"
    with contextlib.suppress(OSError, ModelLoadError):
        revision = (root / "refs" / "main").read_text(encoding="utf-8").strip()
        folder = root / "snapshots" / revision
        read_config(folder)
        weight_files(folder)
        return folder
    return None


def cached_models() -> Iterator[str]:
    """Return the names of the models that are whole in the hub's cache on this machine, in alphabetical
    order.
    """
    for folder in sorted(Path(constants.HF_HUB_CACHE).glob("models--*")):
        name = folder.name.removeprefix("models--").replace("--", "/", 1)
        if cached_folder(name) is not None:
            yield name
