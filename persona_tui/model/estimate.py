"""How much memory a model will take, before it is loaded: from its config and its files' headers.

weights = numbers x bytes each; in 8 and 4 bits that holds for the matrices of the blocks only, what is left
(embeddings, norms, the output matrix) keeps its type. To them come the keys and values of one conversation.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import get_safetensors_metadata, hf_hub_download

from persona_tui.core.documents import json_value, read_plain
from persona_tui.core.errors import ModelLoadError
from persona_tui.model.files import (
    TensorInfo,
    check_folder,
    read_config,
    read_header,
    weight_files,
)
from persona_tui.model.gguf import field_value
from persona_tui.model.sources import Source, resolve

CONVERSATION = 4096  # tokens; the estimate is for a conversation of this length, or of the model's own limit

_BYTES = {"float32": 4.0, "bfloat16": 2.0, "float16": 2.0}
# Of a number in a matrix of the blocks; 4 bits come with a scale for every 64, itself in 8 bits.
_QUANTIZED = {"8bit": 1.0, "4bit": 0.5 + 1 / 64 + 4 / (64 * 256)}
# A config's keys -> GGUF's.
_GGUF_KEYS = {
    "num_hidden_layers": "block_count",
    "hidden_size": "embedding_length",
    "num_attention_heads": "attention.head_count",
    "num_key_value_heads": "attention.head_count_kv",
    "head_dim": "attention.key_length",
    "max_position_embeddings": "context_length",
}
_OUTSIDE_BLOCKS = ("embed", "embd", "wte", "wpe", "lm_head", "output.weight")


@dataclass(frozen=True)
class ModelFacts:
    """What is known of a model before it is loaded.

    Attributes:
        name: as it was asked for.
        on_disk: where it is on this machine; None = it would have to be downloaded.
        architecture: the class that its config names.
        layers: decoder blocks.
        hidden: the width of the residual stream.
        context: tokens that it can see at once; None = its positions have no limit.
        matrices: numbers in the matrices of the blocks.
        others: all other numbers.
        cached: numbers that a token of a conversation leaves in the cache.
        stored: bytes of its files of weights; None = not known.
        exact: whether the numbers were counted, not reckoned from the config.
        packed: whether it is stored quantised already, and stays so.
    """

    name: str
    on_disk: Path | None
    architecture: str
    layers: int
    hidden: int
    context: int | None
    matrices: int
    others: int
    cached: int
    stored: int | None
    exact: bool
    packed: bool = False

    @property
    def parameters(self) -> int:
        """How many numbers it has."""
        return self.matrices + self.others


@dataclass(frozen=True)
class Memory:
    """What a model would take, and what there is, in bytes.

    Attributes:
        weights: of the model.
        cache: keys and values of one conversation.
        tokens: how long that conversation is.
        available: free on the device now; None = not known.
    """

    weights: int
    cache: int
    tokens: int
    available: int | None

    @property
    def total(self) -> int:
        """All of it."""
        return self.weights + self.cache

    @property
    def fits(self) -> bool | None:
        """Whether that is free; None = not known."""
        return None if self.available is None else self.total <= self.available


# Looking at a model -----------------------------------------------------------------------------------------


def look_at(name: str, online: bool = True) -> ModelFacts:
    """Return what there is to know of a model without loading it.

    Args:
        name: see `sources`.
        online: whether a hub model that is not on this machine is looked up there.

    Raises:
        ModelLoadError: it cannot be used; says why.
    """
    if not name.strip():
        raise ModelLoadError('Name a model: "starter", a folder, a GGUF file, or a model on huggingface.co.')
    source = resolve(name)
    if source.gguf is not None and source.folder is None:
        return _packed(source)
    folder = source.folder
    if folder is None and not online:
        raise ModelLoadError(f"{name} is not on this machine.")
    if folder is None:
        return _on_the_hub(name)
    check_folder(folder)
    files = weight_files(folder)
    tensors: dict[str, TensorInfo] = {}
    for path in files:
        if path.suffix == ".safetensors":
            tensors |= read_header(path)
    return _facts(name, folder, read_config(folder), tensors, sum(path.stat().st_size for path in files))


def _packed(source: Source) -> ModelFacts:
    """Return a GGUF file that is not unpacked yet: its metadata say what it will be."""
    from gguf import GGUFReader

    assert source.gguf is not None
    try:
        reader = GGUFReader(source.gguf)
        kind = str(field_value(reader, "general.architecture"))
        fields = {ours: field_value(reader, f"{kind}.{theirs}") for ours, theirs in _GGUF_KEYS.items()}
        tensors = {
            tensor.name: TensorInfo(tensor.tensor_type.name, tuple(int(size) for size in tensor.shape))
            for tensor in reader.tensors
        }
    except Exception as error:
        raise ModelLoadError(f"{source.name} cannot be read as a GGUF file: {_first_line(error)}") from error
    config = {"architectures": [f"{kind}, to be unpacked"], **fields}
    return _facts(source.name, source.gguf.parent, config, tensors, source.gguf.stat().st_size)


def _on_the_hub(name: str) -> ModelFacts:
    try:
        config = json_value(read_plain(Path(hf_hub_download(name, "config.json"))))
    except Exception as error:
        raise ModelLoadError(
            f"{name} is not on this machine, and huggingface.co does not show it: {_first_line(error)}"
        ) from error
    try:
        found = get_safetensors_metadata(name).files_metadata.values()
        tensors = {
            tensor: TensorInfo(info.dtype, tuple(info.shape))
            for each in found
            for tensor, info in each.tensors.items()
        }
    except Exception:  # older models have no such files; the config says enough for an estimate
        tensors = {}
    return _facts(name, None, config, tensors, None)


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]


def _facts(
    name: str,
    folder: Path | None,
    config: Mapping[str, Any],
    tensors: Mapping[str, TensorInfo],
    stored: int | None,
) -> ModelFacts:
    text = {**config, **(config.get("text_config") or {})}
    matrices, others = _counted(tensors) if tensors else _reckoned(text)
    return ModelFacts(
        name=name,
        on_disk=folder,
        architecture=str((config.get("architectures") or [config.get("model_type", "unknown")])[0]),
        layers=_first(text, "num_hidden_layers", "n_layer"),
        hidden=_first(text, "hidden_size", "n_embd"),
        context=_first(text, "max_position_embeddings", "n_positions") or None,
        matrices=matrices,
        others=others,
        cached=_cache_numbers(text),
        stored=stored,
        exact=bool(tensors),
        packed=bool(config.get("quantization_config")),
    )


def _first(config: Mapping[str, Any], *keys: str) -> int:
    """Return the first of several entries that is a number; 0 if none is."""
    found: Iterable[Any] = (config.get(key) for key in keys)
    return next((int(value) for value in found if isinstance(value, int | float) and value), 0)


def _counted(tensors: Mapping[str, TensorInfo]) -> tuple[int, int]:
    """Numbers in the matrices of the blocks, and all others."""
    inside = sum(info.numbers for name, info in tensors.items() if _is_block_matrix(name, info))
    return inside, sum(info.numbers for info in tensors.values()) - inside


def _is_block_matrix(name: str, info: TensorInfo) -> bool:
    return len(info.shape) >= 2 and not any(part in name for part in _OUTSIDE_BLOCKS)


def _reckoned(config: Mapping[str, Any]) -> tuple[int, int]:
    """Return the same for a common decoder of this config: attention, and a gated MLP or several."""
    hidden, layers = _first(config, "hidden_size", "n_embd"), _first(config, "num_hidden_layers", "n_layer")
    heads = _first(config, "num_attention_heads", "n_head")
    size = _first(config, "head_dim") or (hidden // heads if heads else 0)
    keys = _first(config, "num_key_value_heads") or heads
    attention = hidden * size * (2 * heads + 2 * keys)
    experts = _first(config, "num_local_experts", "num_experts", "n_routed_experts")
    width = _first(config, "moe_intermediate_size") if experts else 0
    width = width or _first(config, "intermediate_size", "n_inner") or 4 * hidden
    mlp = (3 if "intermediate_size" in config else 2) * hidden * width * max(experts, 1)
    embeddings = hidden * _first(config, "vocab_size") * (1 if config.get("tie_word_embeddings", True) else 2)
    return layers * (attention + mlp), embeddings + (2 * layers + 1) * hidden


def _cache_numbers(config: Mapping[str, Any]) -> int:
    heads = _first(config, "num_attention_heads", "n_head")
    keys = _first(config, "num_key_value_heads") or heads
    hidden = _first(config, "hidden_size", "n_embd")
    size = _first(config, "head_dim") or (hidden // heads if heads else 0)
    return 2 * _first(config, "num_hidden_layers", "n_layer") * keys * size


# Memory -----------------------------------------------------------------------------------------------------


def memory(
    facts: ModelFacts, device: str = "auto", dtype: str = "auto", quantization: str = "none"
) -> Memory:
    """Return what a model would take on a device.

    Args:
        facts: from `look_at`.
        device: as in the settings; "auto" is where it would be loaded.
        dtype: as in the settings; "auto" is bfloat16 on cuda, else float32.
        quantization: "none", "8bit" or "4bit".
    """
    place = _place(device)
    on_gpu = place.startswith("cuda") or place == "multi"
    each = _BYTES.get(dtype, _BYTES["bfloat16"] if on_gpu else _BYTES["float32"])
    in_matrix = _QUANTIZED.get(quantization, each)
    weights = facts.matrices * in_matrix + facts.others * each
    if facts.packed and facts.stored is not None:
        weights = facts.stored
    tokens = min(CONVERSATION, facts.context or CONVERSATION)
    return Memory(round(weights), round(facts.cached * tokens * each), tokens, available_memory(place))


def _place(device: str) -> str:
    if device != "auto":
        return device
    import torch

    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def available_memory(device: str) -> int | None:
    """Bytes that are free on a device now; None = not known."""
    if device.startswith("cuda") or device == "multi":
        import torch

        if not torch.cuda.is_available():
            return None
        places = range(torch.cuda.device_count()) if device == "multi" else [torch.device(device)]
        return sum(int(torch.cuda.mem_get_info(place)[0]) for place in places)
    return _free_ram()


def _free_ram() -> int | None:
    """Return what Linux says could be used without swapping."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    found = (line.split() for line in lines if line.startswith("MemAvailable:"))
    return next((int(words[1]) * 1024 for words in found), None)


def in_words(size: float) -> str:
    """Return a number of bytes, for people: `14 MB`, `2.1 GB`."""
    for unit in ("B", "kB", "MB", "GB"):
        if size < 999.5:
            return f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:.3g} TB"


def count_in_words(count: float) -> str:
    """Return a number of parameters, for people: `7.6 M`, `7.2 B`."""
    for unit in ("", "k", "M", "B"):
        if count < 999.5:
            return f"{count:.3g} {unit}".strip()
        count /= 1000
    return f"{count:.3g} T"
