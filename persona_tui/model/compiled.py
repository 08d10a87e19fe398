"""A forward pass that is compiled once for all tokens of all batches of a shape.

`torch.compile` turns a decoding step into one graph; on CUDA that graph is recorded and replayed, so that
Python and the starting of kernels cost nothing. For that, nothing in it may change its shape from token to
token:

1. The cache has its full length from the start (`StaticCache`), and so has the mask.
2. Every block has its hook, with buffers for every row (`ResidualHooks(fixed=True)`): strength, blend,
   vectors of single rows, axes and floors are numbers in these buffers.
3. Rows that have finished stay in the batch to its end.

The prompt's pass is not compiled: prompts have all lengths.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, StaticCache

from persona_tui.core.errors import GenerationError

_SHORTEST_CACHE = 256  # tokens; longer ones are powers of two, so that there are few shapes
_LONGEST_REASON = 200  # characters of what the compiler says


class CompiledForward:
    """The compiled decoding step of one model."""

    def __init__(self, model: PreTrainedModel, backend: str = "inductor") -> None:
        """
        Args:
            model: on one device, not quantized. Nothing is compiled before the first token is written.
            backend: of `torch.compile`; "eager" only traces, for tests.

        Raises:
            GenerationError: the model's weights are moved to where they are needed in the middle of a pass.
        """
        if getattr(model, "hf_device_map", None) or getattr(model, "is_quantized", False):
            raise GenerationError("Only a model on a single device, without quantization, can be compiled.")
        self._model = model
        recorded = backend == "inductor" and model.device.type == "cuda"
        mode = "reduce-overhead" if recorded else None
        self._step: Any = torch.compile(model.forward, backend=backend, mode=mode, fullgraph=True)

    def cache(self, tokens: int) -> StaticCache:
        """Return an empty cache with room for so many tokens, and how many that is in `max_cache_len`."""
        return StaticCache(config=self._model.config, max_cache_len=self.room(tokens))

    @staticmethod
    def room(tokens: int) -> int:
        """Return the length of the cache that is used for so many tokens."""
        return max(_SHORTEST_CACHE, 1 << (tokens - 1).bit_length())

    def __call__(self, **arguments: Any) -> Tensor:
        """One step: logits `[rows, 1, vocabulary]`, valid until the next step.

        Raises:
            GenerationError: it cannot be compiled here; no C++ compiler, say.
        """
        torch.compiler.cudagraph_mark_step_begin()  # type: ignore[no-untyped-call]
        try:
            logits: Tensor = self._step(**arguments).logits
        except RuntimeError as error:
            from torch._dynamo.exc import TorchDynamoException  # takes long, and is there by now

            if not isinstance(error, TorchDynamoException):
                raise
            raise GenerationError(
                f"torch.compile failed: {_reason(error)} Set model.compile to false to turn it off."
            ) from error
        return logits


def _reason(error: Exception) -> str:
    """Return the first line of an error that has many, as a sentence."""
    line = next((each.strip() for each in str(error).splitlines() if each.strip()), type(error).__name__)
    return line[:_LONGEST_REASON].rstrip(".:") + "."
