"""Tiny random models of every family, and a tiny tokenizer, made in the process: no network, no files."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)

from persona_tui.model import ModelWrapper
from persona_tui.model.trial import try_model

from .architectures import FAILING, NOT_BUILT, REFUSED, architectures, small_model

torch.set_num_threads(1)

HIDDEN = 32
SPECIALS = ["<pad>", "<|im_start|>", "<|im_end|>", "<eos>"]
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)

_SMALL = {
    "hidden_size": HIDDEN,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
}
_SLIDING = {"sliding_window": 24, "layer_types": ["sliding_attention"] * 3}
FAMILIES: dict[str, tuple[str, dict[str, object]]] = {
    "llama": ("llama", {}),
    "mistral": ("mistral", {"sliding_window": 24}),
    "qwen2": ("qwen2", {}),
    "qwen2-sliding": ("qwen2", {"use_sliding_window": True, "max_window_layers": 0, **_SLIDING}),
    "qwen3": ("qwen3", {"head_dim": 8}),
    "gemma2": ("gemma2", {"head_dim": 8, "sliding_window": 24}),
    "gemma3_text": ("gemma3_text", {"head_dim": 8, "sliding_window": 24, "sliding_window_pattern": 2}),
    "phi3": ("phi3", {"pad_token_id": 0}),
    "gpt2": ("gpt2", {"n_embd": HIDDEN, "n_layer": 3, "n_head": 4, "n_positions": 256}),
    "gpt_neox": ("gpt_neox", {}),
    "olmo2": ("olmo2", {}),
    "falcon": ("falcon", {"alibi": False, "new_decoder_architecture": False}),
    "falcon-alibi": ("falcon", {"alibi": True, "new_decoder_architecture": False}),
    "mixtral": ("mixtral", {"num_local_experts": 4, "num_experts_per_tok": 2}),
}


def make_tokenizer(chat: bool = True) -> PreTrainedTokenizerBase:
    """A byte-level tokenizer: every text has tokens, and characters beyond ASCII take several."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: index for index, token in enumerate([*SPECIALS, *alphabet])}
    core = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token="<pad>",
        eos_token="<|im_end|>" if chat else "<eos>",
        additional_special_tokens=["<|im_start|>", "<|im_end|>"],
    )
    if chat:
        tokenizer.chat_template = CHATML
    return tokenizer


def make_model(family: str = "qwen2", seed: int = 0, **changes: object) -> PreTrainedModel:
    """A random model of a family, float32, in inference mode."""
    kind, settings = FAMILIES[family]
    small = {} if kind == "gpt2" else _SMALL
    torch.manual_seed(seed)
    config = AutoConfig.for_model(
        kind,
        bos_token_id=None,
        eos_token_id=2,
        initializer_range=0.3,
        **{"vocab_size": 260, **small, **settings, **changes},
    )
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    model.generation_config.pad_token_id = 0
    return model.eval()


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerBase:
    return make_tokenizer()


@pytest.fixture(scope="session")
def wrapper() -> ModelWrapper:
    """A model with the built-in one's architecture: a sliding window of 24 tokens on every layer."""
    return ModelWrapper(make_model("qwen2-sliding"), make_tokenizer(), "tiny")


@pytest.fixture(scope="session")
def base_wrapper() -> ModelWrapper:
    """A base model: no chat template."""
    return ModelWrapper(make_model("gpt2"), make_tokenizer(chat=False), "tiny-base")


_OTHERS = [
    pytest.param(f"small {kind}", marks=pytest.mark.stress)
    for kind in architectures()
    if kind not in REFUSED | FAILING | NOT_BUILT
]


@pytest.fixture(scope="session", params=[*FAMILIES, *_OTHERS])
def any_wrapper(request: pytest.FixtureRequest) -> ModelWrapper:
    """One wrapper for every family; the stress suite has all others that transformers can build small."""
    kind = request.param.removeprefix("small ")
    model = make_model(kind) if request.param == kind else small_model(kind)
    wrapper = ModelWrapper(model, make_tokenizer(), kind)
    if request.param != kind:
        trial = try_model(model, wrapper.tokenizer)
        assert not trial.reason
        wrapper.own_cache = trial.own_cache
    return wrapper


@pytest.fixture
def random_vector() -> Callable[..., torch.Tensor]:
    """Vectors of the tiny models' width, from a seed."""

    def make(seed: int, *rows: int, unit: bool = False) -> torch.Tensor:
        vector = torch.randn(*rows, HIDDEN, generator=torch.Generator().manual_seed(seed))
        return vector / vector.norm() if unit else vector

    return make
