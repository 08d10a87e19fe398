"""GGUF files, unpacked once: to a folder in transformers' format, with the file's own tokenizer and template.

transformers reads the tensors, the vocabulary and most of the config. What it leaves out, and what changes a
model's answers, is set here from the file's metadata: the size of a head, scaled rotary positions, and the
attention scale of Gemma's largest models.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from persona_tui.core.documents import open_plain
from persona_tui.core.errors import JobCancelled, ModelLoadError
from persona_tui.model.sources import Report, Source, SourceRecord, folder_of, seen_at, write_record

if TYPE_CHECKING:
    from gguf import GGUFReader
    from transformers import PreTrainedConfig

_MAGIC = b"GGUF"
_LINK = "weights.gguf"  # transformers knows such files by the end of their name, Ollama's have none
_FLOATS = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}
_UNPACKED = "bfloat16"  # what quantised tensors become
# Gemma's largest models scale attention by the width of a head as the hidden size gives it; by blocks.
_GEMMA_27B = {"gemma2": 46, "gemma3": 62}
_LOCAL_BASE = 10_000.0  # of Gemma 3's sliding layers


def unpack(source: Source, report: Report, folder: Path | None = None) -> Source:
    """Unpack a GGUF file into the cache, whole or not at all, and return where it is.

    Args:
        source: has a GGUF file and its SHA-256.
        report: given tensors done, tensors in all, and a note. It may raise `JobCancelled`.
        folder: to unpack to, by default `sources.folder_of`.

    Raises:
        ModelLoadError: one line that says why: it is no GGUF file, its architecture is not known, the disk
            is full.
    """
    assert source.gguf is not None
    target = folder or folder_of(source)
    report(0, 0, f"unpacking {source.gguf.name if source.kind != 'ollama' else source.origin}")
    with _explained(source), _temporary(target) as temporary:
        dtype = _convert(source.gguf, temporary, report)
        place, size, changed = seen_at(source.gguf)
        write_record(
            temporary, SourceRecord(source.kind, source.origin, source.sha256, dtype, place, size, changed)
        )
        _put(temporary, target)
    return Source(source.name, source.kind, target, source.gguf, source.origin, source.sha256)


def _save(model: Any, folder: Path) -> None:
    # It was loaded by the quantiser for GGUF files, which does not let it be saved.
    model.hf_quantizer = None
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    model.save_pretrained(folder)


def _convert(file: Path, folder: Path, report: Report) -> str:
    """Write the model, its config and its tokenizer; return the type of its numbers."""
    import torch
    from gguf import GGUFReader
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging

    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    with open_plain(file) as opened:
        if opened.read(4) != _MAGIC:
            raise ModelLoadError(f"{file} is not a GGUF file.")
    reader = GGUFReader(file)
    dtype = _dtype(reader)
    _check_space(reader, folder)
    link = folder / _LINK
    _link(file, link)
    with _parsed_once(reader), _counted(report):
        config = AutoConfig.from_pretrained(folder, gguf_file=_LINK)
        _complete(config, reader)
        tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=_LINK)
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            folder,
            gguf_file=_LINK,
            config=config,
            dtype=getattr(torch, dtype),
            output_loading_info=True,
            **_whole(),
        )
    model, info = loaded
    _check_whole(file, info)
    report(0, 0, "writing")
    _save(model, folder)
    tokenizer.save_pretrained(folder)
    _keep_as_built(folder, field_value(reader, "tokenizer.ggml.tokens") or [])
    link.unlink()
    return dtype


def _check_whole(file: Path, info: Mapping[str, Any]) -> None:
    if missing := sorted(info.get("missing_keys") or ()):
        raise ModelLoadError(
            f"{file} is incomplete: {len(missing)} tensors are missing, for example {missing[0]}."
        )


def _keep_as_built(folder: Path, vocabulary: list[str]) -> None:
    """Have tokenizer.json read as it is, with the tokens that the file has and no others.

    The class of an architecture would build parts of it again, and classes add special tokens of their own,
    which the model has no embedding for: `<|endoftext|>` to every byte-level vocabulary, `<mask>` to Gemma's.
    """
    path = folder / "tokenizer.json"
    built = json.loads(path.read_text(encoding="utf-8"))
    built["added_tokens"] = [each for each in built["added_tokens"] if each["id"] < len(vocabulary)]
    path.write_text(json.dumps(built, ensure_ascii=False), encoding="utf-8")
    path = folder / "tokenizer_config.json"
    settings = json.loads(path.read_text(encoding="utf-8"))
    known = set(vocabulary)
    settings = {
        key: value
        for key, value in settings.items()
        if not (key.endswith("_token") and isinstance(value, str) and value not in known)
    }
    settings["tokenizer_class"] = "PreTrainedTokenizerFast"
    path.write_text(json.dumps(settings, indent=1), encoding="utf-8")


def _whole() -> dict[str, Any]:
    """Arguments that keep transformers, where it could, from leaving tensors in their blocks."""
    import transformers

    config = getattr(transformers, "GgufConfig", None)  # not in every version
    return {} if config is None else {"quantization_config": config(dequantize=True)}


@contextmanager
def _parsed_once(reader: GGUFReader) -> Iterator[None]:
    """Within, the file is not parsed again: that takes seconds, and transformers does it three times."""
    import gguf

    usual = gguf.GGUFReader
    gguf.__dict__["GGUFReader"] = lambda path: reader
    try:
        yield
    finally:
        gguf.__dict__["GGUFReader"] = usual


@contextmanager
def _counted(report: Report) -> Iterator[None]:
    """Within, the loader's own progress bar reports, and writes nothing to the terminal."""
    from transformers import modeling_gguf_pytorch_utils as loader

    from persona_tui.model.progress import Bar

    def bar(iterable: Any, **options: Any) -> Bar:
        return Bar(iterable, desc="unpacking", report=report)

    usual = getattr(loader, "tqdm", None)
    loader.__dict__["tqdm"] = bar
    try:
        yield
    finally:
        loader.__dict__["tqdm"] = usual


# What the file says -----------------------------------------------------------------------------------------


def _dtype(reader: GGUFReader) -> str:
    """Return the type to unpack to: that of the matrices if they are all plain numbers, else bfloat16."""
    kinds = {tensor.tensor_type.name for tensor in reader.tensors if len(tensor.shape) > 1}
    return _FLOATS[kinds.pop()] if len(kinds) == 1 and kinds <= set(_FLOATS) else _UNPACKED


def _complete(config: PreTrainedConfig, reader: GGUFReader) -> None:
    """Set what transformers does not read from a file's metadata."""
    kind = str(field_value(reader, "general.architecture"))

    def value(key: str) -> Any:
        return field_value(reader, f"{kind}.{key}")

    head = value("attention.key_length")
    if head and kind != "gemma4" and hasattr(config, "head_dim"):
        config.head_dim = int(head)
    if kind.startswith("gemma"):
        _complete_gemma(config, kind, value)
    if kind == "phi3":
        width = config.hidden_size // config.num_attention_heads
        _set_rope(config, {"partial_rotary_factor": (value("rope.dimension_count") or width) / width})
        config.sliding_window = value("attention.sliding_window") or None
    if scaling := _scaling(config, reader, value):
        _set_rope(config, scaling)


def _complete_gemma(config: PreTrainedConfig, kind: str, value: Callable[[str], Any]) -> None:
    if kind not in _GEMMA_27B:
        return
    largest = config.num_hidden_layers == _GEMMA_27B[kind]
    width = config.hidden_size // config.num_attention_heads
    config.query_pre_attn_scalar = width if largest else config.head_dim
    for key in ("attn_logit_softcapping", "final_logit_softcapping"):
        if value(key):
            setattr(config, key, float(value(key)))
    if kind == "gemma3":
        # Ollama's own conversions have other names for these.
        whole = value("rope.freq_base") or value("rope.global.freq_base")
        local = value("rope.freq_base_swa") or value("rope.local.freq_base") or _LOCAL_BASE
        config.rope_parameters["full_attention"].update(rope_theta=float(whole or 1e6))
        config.rope_parameters["sliding_attention"].update(rope_theta=float(local))


def _scaling(
    config: PreTrainedConfig, reader: GGUFReader, value: Callable[[str], Any]
) -> dict[str, Any] | None:
    """Return how rotary positions are scaled; None = they are not."""
    original = int(value("rope.scaling.original_context_length") or config.max_position_embeddings)
    factors = {
        name: _numbers(reader, f"rope_{name}.weight") for name in ("freqs", "factors_short", "factors_long")
    }
    short = factors["freqs"] or factors["factors_short"]
    if short:
        # Llama 3's scaling is a factor for each frequency, the same for texts of any length.
        attention = 1.0 if factors["freqs"] else value("rope.scaling.attn_factor")
        config.original_max_position_embeddings = original
        return {
            "rope_type": "longrope",
            "short_factor": short,
            "long_factor": factors["freqs"] or factors["factors_long"] or short,
            "original_max_position_embeddings": original,
            "factor": config.max_position_embeddings / original,
            **({"attention_factor": float(attention)} if attention else {}),
        }
    factor, kind = value("rope.scaling.factor"), value("rope.scaling.type")
    if kind not in ("linear", "yarn") or not factor:
        return None
    scaling = {"rope_type": kind, "factor": float(factor)}
    return {**scaling, "original_max_position_embeddings": original} if kind == "yarn" else scaling


def _set_rope(config: PreTrainedConfig, changes: Mapping[str, Any]) -> None:
    """Change the rotary positions; of a model with sliding layers, those of the others."""
    rope: dict[str, Any] = config.rope_parameters
    layers: dict[str, Any] = rope.get("full_attention", rope)
    layers.update(changes)


def field_value(reader: GGUFReader, key: str) -> Any:
    """Return an entry of a file's metadata; None if it has none of that name."""
    field = reader.get_field(key)
    return None if field is None else field.contents()


def _numbers(reader: GGUFReader, name: str) -> list[float]:
    """Return a small tensor's numbers; none if it is not there."""
    found = (tensor for tensor in reader.tensors if tensor.name == name)
    return next(([float(number) for number in tensor.data] for tensor in found), [])


# Files ------------------------------------------------------------------------------------------------------


def _check_space(reader: GGUFReader, folder: Path) -> None:
    needed = sum(int(tensor.n_elements) for tensor in reader.tensors) * (
        4 if _dtype(reader) == "float32" else 2
    )
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise ModelLoadError(
            f"Unpacking takes {needed / 1e9:.1f} GB in {folder.parent}, {free / 1e9:.1f} GB are free there;"
            " PERSONA_TUI_MODELS names another folder."
        )


def _link(file: Path, link: Path) -> None:
    try:
        link.symlink_to(file.resolve())
    except OSError:  # Windows allows that to administrators only
        shutil.copyfile(file, link)


@contextmanager
def _temporary(target: Path) -> Iterator[Path]:
    """A new folder beside the target; what is left of it goes when the work ends."""
    target.parent.mkdir(parents=True, exist_ok=True)
    _sweep(target.parent)
    folder = target.parent / f".{target.name}.{os.getpid()}.tmp"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _sweep(root: Path) -> None:
    """Remove what killed processes have left."""
    for path in root.glob(".*.tmp"):
        number = path.name.split(".")[-2]
        if number.isdigit() and not _alive(int(number)):
            shutil.rmtree(path, ignore_errors=True)


def _alive(process: int) -> bool:
    if os.name != "posix":
        return True  # where asking would end it
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True


def _put(folder: Path, target: Path) -> None:
    """Give a finished folder its name. One that another process was quicker to make there stays."""
    for path in folder.iterdir():
        with path.open("rb") as file:
            os.fsync(file.fileno())
    try:
        folder.rename(target)
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise


@contextmanager
def _explained(source: Source) -> Iterator[None]:
    """Turn whatever goes wrong into one line."""
    try:
        yield
    except (ModelLoadError, JobCancelled):
        raise
    except MemoryError as error:
        raise ModelLoadError(f"{source.name} does not fit into memory when unpacked.") from error
    except OSError as error:
        raise ModelLoadError(f"{source.name} was not unpacked: {error.strerror or error}.") from error
    except Exception as error:
        text = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
        if "architecture" in text or "model_type" in text:
            raise ModelLoadError(
                f"{source.name} cannot be used: transformers cannot read GGUF files of its architecture"
                f" ({text}); load the model's own folder or its name on huggingface.co instead."
            ) from error
        raise ModelLoadError(f"{source.name} cannot be unpacked, it may be damaged: {text}") from error
