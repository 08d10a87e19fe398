"""GGUF files of small random models, as llama.cpp's converter writes them, and Ollama's store."""

from __future__ import annotations

import hashlib
import json
import math
import shutil
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

SENTENCEPIECE = ("gemma3", "phi3")  # how these families cut text
NAMES = {"gemma3_text": "gemma3"}  # transformers' name of an architecture -> llama.cpp's, if another


def write_gguf(
    path: Path, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, quantise: bool = False
) -> Path:
    """Write a model and its tokenizer; matrices as they are, or in blocks of 8 bits."""
    config = model.config
    kind = NAMES.get(config.model_type, config.model_type)
    writer = gguf.GGUFWriter(path, kind)
    _write_shape(writer, config, kind)
    if kind in SENTENCEPIECE:
        _write_sentencepiece(writer, tokenizer, config.vocab_size)
    else:
        _write_byte_level(writer, tokenizer)
    _write_specials(writer, tokenizer)
    names = gguf.get_tensor_name_map(
        next(arch for arch, name in gguf.MODEL_ARCH_NAMES.items() if name == kind), config.num_hidden_layers
    )
    tied = config.tie_word_embeddings
    for name, tensor in model.state_dict().items():
        if name == "lm_head.weight" and tied:
            continue
        data = _as_stored(name, tensor.float(), config, kind).numpy()
        place = names.get_name(name, try_suffixes=(".weight", ".bias"))
        assert place is not None, name
        if quantise and data.ndim == 2:
            blocks = gguf.quantize(data, gguf.GGMLQuantizationType.Q8_0)
            writer.add_tensor(place, blocks, raw_dtype=gguf.GGMLQuantizationType.Q8_0)
        else:
            writer.add_tensor(place, data)
    for name, numbers in _rope_tensors(config).items():
        writer.add_tensor(name, np.array(numbers, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _as_stored(name: str, tensor: torch.Tensor, config: Any, kind: str) -> torch.Tensor:
    """What the converter changes: the order of Llama's rotary rows, and Gemma's norms, which count from 0."""
    if kind == "llama" and ("q_proj" in name or "k_proj" in name):
        heads = config.num_attention_heads if "q_proj" in name else config.num_key_value_heads
        halves = tensor.reshape(heads, 2, tensor.shape[0] // heads // 2, *tensor.shape[1:])
        return halves.swapaxes(1, 2).reshape(tensor.shape).contiguous()
    return tensor + 1 if kind == "gemma3" and name.endswith("norm.weight") else tensor


def _write_shape(writer: gguf.GGUFWriter, config: Any, kind: str) -> None:
    head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    rope = config.rope_parameters
    rope = rope.get("full_attention", rope)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(rope["rope_theta"])
    writer.add_rope_dimension_count(int(head * rope.get("partial_rotary_factor", 1)))
    if kind != "phi3":
        writer.add_key_length(head)
        writer.add_value_length(head)
    if getattr(config, "sliding_window", None):
        writer.add_sliding_window(config.sliding_window)
    if rope["rope_type"] in ("linear", "yarn"):
        writer.add_rope_scaling_type(gguf.RopeScalingType(rope["rope_type"]))
        writer.add_rope_scaling_factor(rope["factor"])
    if "original_max_position_embeddings" in rope:
        writer.add_rope_scaling_orig_ctx_len(rope["original_max_position_embeddings"])
    if rope["rope_type"] == "longrope":
        writer.add_rope_scaling_attn_factors(rope["attention_factor"])


def _write_byte_level(writer: gguf.GGUFWriter, tokenizer: PreTrainedTokenizerBase) -> None:
    tokens = tokenizer.convert_ids_to_tokens(range(len(tokenizer)))
    special = set(tokenizer.all_special_tokens)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(tokens)
    writer.add_token_scores([0.0] * len(tokens))
    writer.add_token_types([3 if token in special else 1 for token in tokens])


def _write_sentencepiece(writer: gguf.GGUFWriter, tokenizer: PreTrainedTokenizerBase, size: int) -> None:
    """The same special tokens, and a token for each character of ASCII: what the families have in common."""
    special = tokenizer.convert_ids_to_tokens(range(4))
    assert set(special) == set(tokenizer.all_special_tokens) | {"<eos>"}
    tokens = [*special, "<unk>", "\u2581", *map(chr, range(33, 127))]
    unused = [f"<unused{number}>" for number in range(size - len(tokens))]
    writer.add_tokenizer_model("llama")
    writer.add_token_list(tokens + unused)
    writer.add_token_scores([0.0] * size)
    writer.add_token_types(
        [3] * len(special) + [2] + [1] * (len(tokens) - len(special) - 1) + [5] * len(unused)
    )
    writer.add_unk_token_id(4)


def _write_specials(writer: gguf.GGUFWriter, tokenizer: PreTrainedTokenizerBase) -> None:
    writer.add_eos_token_id(tokenizer.eos_token_id)
    writer.add_pad_token_id(tokenizer.pad_token_id)
    writer.add_add_bos_token(False)
    if tokenizer.chat_template:
        writer.add_chat_template(tokenizer.chat_template)


def _rope_tensors(config: Any) -> dict[str, list[float]]:
    """The factors of rotary frequencies, which are no parameters of the model."""
    rope = config.rope_parameters
    if rope.get("rope_type") == "longrope":
        return {
            "rope_factors_short.weight": rope["short_factor"],
            "rope_factors_long.weight": rope["long_factor"],
        }
    if rope.get("rope_type") != "llama3":
        return {}
    original, factor = rope["original_max_position_embeddings"], rope["factor"]
    low, high = rope["low_freq_factor"], rope["high_freq_factor"]
    factors = []
    for at in range(0, config.head_dim, 2):
        length = 2 * math.pi * rope["rope_theta"] ** (at / config.head_dim)
        smooth = (original / length - low) / (high - low)
        factors.append(1 / ((1 - smooth) / factor + smooth))
        if length < original / high:
            factors[-1] = 1.0
        elif length > original / low:
            factors[-1] = factor
    return {"rope_freqs.weight": factors}


def put_in_ollama(file: Path, root: Path, name: str, tag: str = "latest", user: str = "library") -> Path:
    """A GGUF file as Ollama stores it; where the file is."""
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    blob = root / "blobs" / f"sha256-{digest}"
    blob.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(file, blob)
    manifest = root / "manifests" / "registry.ollama.ai" / user / name / tag
    manifest.parent.mkdir(parents=True, exist_ok=True)
    kind = "application/vnd.ollama.image"
    layers = [
        {"mediaType": f"{kind}.template", "digest": "sha256:" + "0" * 64, "size": 1},
        {"mediaType": f"{kind}.model", "digest": f"sha256:{digest}", "size": blob.stat().st_size},
    ]
    manifest.write_text(json.dumps({"schemaVersion": 2, "layers": layers}))
    return blob
