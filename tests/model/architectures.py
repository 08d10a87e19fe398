"""Every decoder that transformers can build, small: a config by rule, and what some need besides.

`python benchmarks/families.py` shows which pass the tests of `test_families.py`.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

HIDDEN = 32
# By whatever names a config knows them.
_SMALL: dict[str, Any] = {
    "vocab_size": 260,
    **dict.fromkeys(("hidden_size", "n_embd", "d_model"), HIDDEN),
    **dict.fromkeys(("num_hidden_layers", "n_layer", "n_layers", "num_layers"), 3),
    **dict.fromkeys(("num_attention_heads", "n_head", "n_heads", "num_heads"), 4),
    **dict.fromkeys(("intermediate_size", "ffn_dim", "ffn_hidden_size"), 48),
    "num_key_value_heads": 2,
    "head_dim": 8,
    **dict.fromkeys(("max_position_embeddings", "n_positions"), 256),
    **dict.fromkeys(("num_local_experts", "num_experts", "n_routed_experts"), 4),
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 24,
    "sliding_window": 24,
    "pad_token_id": 0,
    "bos_token_id": None,
    "eos_token_id": 2,
    "initializer_range": 0.3,
}
_LATENT = {  # attention of DeepSeek's kind
    "head_dim": None,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 8,
    "v_head_dim": 8,
    "kv_lora_rank": 8,
    "q_lora_rank": 8,
    "num_key_value_heads": 4,
    "n_group": 1,
    "topk_group": 1,
}
_HYBRID = {"num_hidden_layers": 4, "layer_types": ["linear_attention", "full_attention"] * 2}
_BOS = {"bos_token_id": 1}
_ROTARY = {"rotary_dim": 4}
# What else an architecture needs; None = leave the config's own default.
SPECIAL: dict[str, dict[str, Any]] = {
    **dict.fromkeys(
        ("deepseek_v2", "deepseek_v3", "axk1", "axk2", "glm4_moe_lite", "longcat_flash", "minicpm3"), _LATENT
    ),
    **dict.fromkeys(("sarvam_mla", "youtu", "deepseek_v32", "glm_moe_dsa"), _LATENT),
    **dict.fromkeys(("qwen3_next", "qwen3_5_text", "qwen3_5_moe_text", "qwen4_exp_text"), _HYBRID),
    **dict.fromkeys(("gptj", "codegen"), _ROTARY),
    **dict.fromkeys(("cwm", "emu3", "mllama", "modernbert-decoder"), _BOS),
    "dots1": {"n_group": 1, "topk_group": 1, "first_k_dense_replace": 1},
    "gpt_neo": {"num_layers": 4, "attention_types": [[["global", "local"], 2]], "window_size": 24},
    "jamba": {
        "num_hidden_layers": 4,
        "attn_layer_period": 2,
        "attn_layer_offset": 1,
        "expert_layer_period": 2,
        "expert_layer_offset": 1,
        "use_mamba_kernels": False,
    },
    "mamba2": {"num_heads": 8, "head_dim": 8, "expand": 2, "n_groups": 1},
    "bamba": {"mamba_n_heads": 8, "mamba_d_head": 8, "mamba_n_groups": 1, "attn_layer_indices": [1]},
    "granitemoehybrid": {
        "mamba_n_heads": 8,
        "mamba_d_head": 8,
        "mamba_n_groups": 1,
        "layer_types": ["mamba", "attention", "mamba"],
    },
    "lfm2_moe": {"layer_types": ["conv", "full_attention", "conv"]},
    "zaya": {"num_experts_per_tok": 1},
    "gemma3n_text": {"num_kv_shared_layers": 0, "layer_types": ["full_attention"] * 3},
    "cohere_compass_text": {"layer_types": ["full_attention"] * 3},
    "gemma4_text": {"vocab_size_per_layer_input": 260, "hidden_size_per_layer_input": 0},
}
# Made for something else: encoders with a head for language, decoders of translators, parts of larger models.
NO_DECODERS = frozenset(
    [
        "bart",
        "bert",
        "bert-generation",
        "big_bird",
        "bigbird_pegasus",
        "blenderbot",
        "blenderbot-small",
        "blt",
        "camembert",
        "data2vec-text",
        "dory",
        "electra",
        "ernie",
        "gemma4_assistant",
        "git",
        "marian",
        "mbart",
        "megatron-bert",
        "mllama",
        "musicgen",
        "musicgen_melody",
        "mvp",
        "pegasus",
        "plbart",
        "prophetnet",
        "qdqbert",
        "reformer",
        "rembert",
        "roberta",
        "roberta-prelayernorm",
        "roc_bert",
        "roformer",
        "speech_to_text_2",
        "trocr",
        "whisper",
        "xlm",
        "xlm-prophetnet",
        "xlm-roberta",
        "xlm-roberta-xl",
        "xmod",
    ]
)
# Wrappers around a text model that has its own name here, and is tested under that.
_TEXT_ELSEWHERE = frozenset(
    ["phi4_multimodal", "gemma4", "gemma3n", "dots3_note", "qwen3_5", "qwen3_5_moe", "qwen4_exp"]
)
# Random weights that end a reply with its first token say nothing about it.
_SEEDS = {"gptj": 1, "stablelm": 1}
# What `benchmarks/families.py` finds wrong with transformers 5.24; docs/models.md says why.
REFUSED = frozenset(
    [
        "bailing_hybrid",
        "cpmant",
        "deepseek_v4",
        "falcon_mamba",
        "gemma3n_text",
        "hrm_text",
        "hy_v4",
        "kimi_linear",
        "longcat_flash",
        "mamba",
        "modernbert-decoder",
        "openai-gpt",
        "recurrent_gemma",
        "rwkv",
        "xlnet",
        "xlstm",
    ]
)
FAILING = frozenset(["inkling2_loop_text", "inkling2_text", "mamba2", "moshi", "nemotron_h"])
NOT_BUILT = frozenset(
    [
        "cohere_compass_text",
        "dbrx",
        "dots1",
        "dots3_note_text",
        "emu3",
        "qwen4_exp_text",
        "zamba",
        "zamba2",
    ]
)


def architectures() -> list[str]:
    """Return the names of all decoders, by which configs are made."""
    known = (kind for kind in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES if kind not in NO_DECODERS | _TEXT_ELSEWHERE)
    return sorted(known)


def small_config(kind: str) -> PretrainedConfig:
    """Return a small config of an architecture, of its text part if it has several."""
    own = type(AutoConfig.for_model(kind).get_text_config(decoder=True))
    defaults = own()
    names: dict[str, str] = getattr(defaults, "attribute_map", {}) or {}
    known = {*defaults.to_dict(), *names}
    chosen = {name: value for name, value in _SMALL.items() if name in known}
    chosen = {name: value for name, value in chosen.items() if names.get(name) not in chosen}
    for name, value in SPECIAL.get(kind, {}).items():
        if value is None:
            chosen.pop(name, None)
        else:
            chosen[name] = value
    return own(**chosen)


def small_model(kind: str) -> PreTrainedModel:
    """Return a random model of an architecture, float32, in inference mode."""
    torch.manual_seed(_SEEDS.get(kind, 0))
    model = AutoModelForCausalLM.from_config(small_config(kind), dtype=torch.float32)
    model.generation_config.pad_token_id = 0
    return model.eval()
