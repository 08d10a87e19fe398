"""Steering as part of the weights: an ordinary folder that any program loads and that speaks as a persona.

A constant vector added to a block's output is a bias of that block's last matrix. Few architectures have such
a bias in their configuration; Llama has (`mlp_bias`), and Qwen2 and Mistral without sliding windows compute
what Llama computes. The saved model is compared with live steering before it is kept.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from persona_tui.core.errors import VectorFileError, WorkspaceError
from persona_tui.formats.write import Exported

if TYPE_CHECKING:
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel, PreTrainedTokenizerBase

_CLOSE = 1e-4  # of logits, between live steering and the baked model, in float32
_POSITIONS = 48  # random tokens that are compared


def bake(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    vectors: Mapping[int, Tensor],
    folder: Path,
) -> Exported:
    """Save a copy of a model with vectors added at its blocks, as biases.

    Args:
        model: Llama, or Qwen2 or Mistral without sliding windows; not quantised.
        tokenizer: saved with it.
        vectors: by layer, what is added to every token, `[hidden]`, the strength included.
        folder: new, or empty.

    Returns:
        The folder, and how far its logits are from live steering.

    Raises:
        VectorFileError: no stock architecture computes this model with biases, or the copy answers otherwise.
        WorkspaceError: the folder is not empty.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise WorkspaceError(f"{folder} exists and is not an empty folder.")
    baked = _with_biases(model, vectors)
    difference = _compare(model, baked, vectors)
    if difference > _CLOSE:
        raise VectorFileError(
            f"The baked model's logits differ by {difference:.1e} from live steering (at most {_CLOSE:g} is "
            "allowed): this model computes something that the Llama architecture does not. Nothing was saved."
        )
    temporary = folder.with_name(f".{folder.name}.baking")
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        baked.to(model.dtype).save_pretrained(temporary)  # type: ignore[arg-type]
        tokenizer.save_pretrained(temporary)
        if folder.exists():
            folder.rmdir()
        temporary.rename(folder)
    except OSError as error:
        raise WorkspaceError(f"{folder} cannot be written: {error.strerror or error}.") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return Exported(
        folder,
        (
            f"its logits are within {difference:.1e} of live steering, in float32",
            "it has no floor and no guide: only the vector is in its weights",
        ),
    )


def _with_biases(model: PreTrainedModel, vectors: Mapping[int, Tensor]) -> LlamaForCausalLM:
    """Return a float32 Llama that computes what the model does, plus the vectors."""
    from transformers import LlamaForCausalLM

    config = _config(model)
    with torch.device("meta"):
        baked = LlamaForCausalLM(config)
    state = {name: value.detach().float().cpu() for name, value in model.state_dict().items()}
    width = config.hidden_size
    for layer in range(config.num_hidden_layers):
        mlp, attention = f"model.layers.{layer}.mlp", f"model.layers.{layer}.self_attn"
        for name in ("gate_proj", "up_proj"):
            state.setdefault(f"{mlp}.{name}.bias", torch.zeros(config.intermediate_size))
        old = state.get(f"{mlp}.down_proj.bias", torch.zeros(width))
        state[f"{mlp}.down_proj.bias"] = old + vectors[layer].float() if layer in vectors else old
        if config.attention_bias:
            state.setdefault(f"{attention}.o_proj.bias", torch.zeros(width))
    if config.tie_word_embeddings:
        state["lm_head.weight"] = state["model.embed_tokens.weight"]
    wanted, given = set(baked.state_dict()), set(state)
    if wanted != given:
        odd = sorted(wanted ^ given)[0]
        raise VectorFileError(
            f"This {model.config.model_type} model cannot be baked: its weights are not a Llama's ({odd})."
        )
    baked.load_state_dict(state, assign=True)
    baked.tie_weights()
    # Buffers that are no weights, such as the rotary frequencies, were made on no device.
    fresh = LlamaForCausalLM(_small(config)).model.rotary_emb
    baked.model.rotary_emb = fresh
    baked.generation_config = model.generation_config
    baked.train(False)
    return baked


def _config(model: PreTrainedModel) -> LlamaConfig:
    """Return the Llama configuration of a model that computes what a Llama does."""
    from transformers import LlamaConfig

    own: dict[str, Any] = model.config.to_dict()
    kind = str(own.get("model_type"))
    if own.get("quantization_config"):
        raise VectorFileError("A quantised model cannot be baked: load it with --quantization none.")
    windows = set(own.get("layer_types") or ()) - {"full_attention"}
    if (
        kind not in ("llama", "qwen2", "mistral")
        or windows
        or (kind == "mistral" and own.get("sliding_window"))
    ):
        what = "with sliding windows " if kind in ("qwen2", "mistral") else ""
        raise VectorFileError(
            f"A {kind} model {what}cannot be baked: only Llama, and Qwen2 and Mistral without sliding "
            "windows, have a stock architecture with the biases that this needs."
        )
    kept = {key: value for key, value in own.items() if key in LlamaConfig().to_dict()}
    kept.pop("model_type", None)
    kept.pop("architectures", None)
    kept["mlp_bias"] = True
    kept["attention_bias"] = bool(own.get("attention_bias")) or kind == "qwen2"
    return LlamaConfig(**kept)


def _small(config: LlamaConfig) -> LlamaConfig:
    """Return the same rotary positions in a model that costs nothing to make."""
    from transformers import LlamaConfig

    return LlamaConfig(
        **{**config.to_dict(), "num_hidden_layers": 1, "vocab_size": 8, "intermediate_size": 8}
    )


def _compare(model: PreTrainedModel, baked: LlamaForCausalLM, vectors: Mapping[int, Tensor]) -> float:
    """Return the largest difference of the logits of random tokens, live steering against the baked model."""
    from persona_tui.model.architecture import find_blocks, hidden_size
    from persona_tui.model.request import Interventions
    from persona_tui.model.residual import ResidualHooks

    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(0, model.config.vocab_size, (1, _POSITIONS), generator=generator)
    dtype = model.dtype
    try:
        model.to(torch.float32)  # type: ignore[arg-type]
        hooks = ResidualHooks(find_blocks(model), hidden_size(model), 1)
        hooks.apply(Interventions(steering=vectors))
        with torch.no_grad():
            with hooks:
                wanted = model(ids.to(model.device)).logits.cpu()
            got = baked(ids).logits
    finally:
        model.to(dtype)  # type: ignore[arg-type]
    return float((wanted - got).abs().max())
