"""`LoadedModel`: a model with its tokenizer: what it is, and how it encodes conversations."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from persona_tui.core.errors import GenerationError
from persona_tui.core.identity import ModelSketch
from persona_tui.core.workspace import model_slug
from persona_tui.model import blocks, text
from persona_tui.model.compiled import CompiledForward
from persona_tui.model.fingerprint import fingerprint
from persona_tui.model.forward import check_fits
from persona_tui.model.parts import message_parts
from persona_tui.model.residual import ResidualHooks
from persona_tui.model.sketch import sketch
from persona_tui.model.text import Message

Axes = Mapping[str, Mapping[int, Tensor]]

_LONG = 100_000  # characters; from there on it is estimated whether they can fit at all


class LoadedModel:
    """A causal language model and its tokenizer; `ModelWrapper` says what the attributes are."""

    guides = True

    def __init__(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, name: str, source: str = ""
    ) -> None:
        """Wrap a model that is already loaded.

        Args:
            model: the model.
            tokenizer: its tokenizer.
            name: what to call it.
            source: where its weights came from, and their SHA-256; see `sources.Source.identity`.

        Raises:
            ModelLoadError: it is not a decoder-only model.
        """
        self.model = model
        model.train(False)
        self.tokenizer = tokenizer
        self.name = name
        self.source = source
        self.slug = model_slug(name)
        self.n_layers = blocks.n_layers(model)
        self.hidden_size = blocks.hidden_size(model)
        self.context_length = blocks.context_length(model)
        self._blocks = blocks.find_blocks(model)
        self._end_tokens = text.end_tokens(model, tokenizer)
        self._stops = () if text.is_chat_tokenizer(tokenizer) else text.PLAIN_STOPS
        self._vocabulary = int(model.get_input_embeddings().num_embeddings)  # type: ignore[arg-type]
        self._compiled: CompiledForward | None = None
        self.rendering = text.Rendering.now(tokenizer)
        self.own_cache = False

    @property
    def learns(self) -> bool:
        """Whether it computes gradients, so that vectors can be fitted."""
        return True

    @cached_property
    def fingerprint(self) -> str:
        """Tells this model from others; vectors remember it."""
        return fingerprint(self.model)

    @cached_property
    def sketch(self) -> ModelSketch:
        """Tells near copies of this model from others; vectors remember it."""
        return sketch(self.model)

    @property
    def identity(self) -> tuple[str, str, str]:
        """Tells this model also from itself in another precision, whose numbers are not quite the same."""
        quantization = getattr(self.model.config, "quantization_config", None)
        return self.fingerprint, str(self.model.dtype), str(quantization)

    @property
    def n_parameters(self) -> int:
        """How many weights the model has."""
        return sum(parameter.numel() for parameter in self.model.parameters())

    @property
    def device(self) -> torch.device:
        """Where token ids go in."""
        return blocks.device_of(self.model.get_input_embeddings())

    @property
    def dtype(self) -> torch.dtype:
        """The precision of the weights."""
        return self.model.dtype

    def need_weights(self, purpose: str) -> None:
        """Raise a GenerationError, which names the purpose, if something else has the model's weights."""

    def compile(self, backend: str = "inductor") -> None:
        """From now on, write every token after a reply's first with a compiled pass; see `model/compiled.py`.

        The first reply of a shape takes as long as compiling does.

        Raises:
            GenerationError: the model lies on several devices, or is quantized.
        """
        if self.own_cache:
            raise GenerationError(f"{self.name} cannot be compiled: it makes its cache itself.")
        self._compiled = CompiledForward(self.model, backend)

    def render(self, messages: Sequence[Message]) -> str:
        """The conversation as the model sees it, up to where the assistant's next words begin."""
        return text.render(self.tokenizer, messages, self.rendering)

    def encode(self, messages: Sequence[Message]) -> list[int]:
        """The token ids of `render`; what looks like a control token in a message is text.

        Raises:
            GenerationError: the template refuses it; or it cannot fit the context, which is found out before
                it is rendered if it is long.
        """
        check_fits(self._least_tokens(messages), self.context_length)
        return text.encode_prompt(self.tokenizer, messages, self.rendering)

    def count_tokens(self, messages: Sequence[Message]) -> int:
        """How much of the context a conversation takes; one that cannot fit may take still more."""
        least = self._least_tokens(messages)
        if self.context_length is not None and least > self.context_length:
            return least
        return len(self.encode(messages))

    def _least_tokens(self, messages: Sequence[Message]) -> int:
        """How many tokens a conversation has at least; tokenizing takes a hundred times its size."""
        characters = sum(len(each.get("content") or "") for each in messages)
        return characters // self._longest_token if characters > _LONG else 0

    @cached_property
    def _longest_token(self) -> int:
        return max(map(len, self.tokenizer.get_vocab()), default=1)

    def today(self) -> dict[str, Any]:
        """Return the record of what the chat template writes now, with which a conversation begins."""
        return text.Rendering.now(self.tokenizer).record()

    @contextmanager
    def rendered_as(self, record: Mapping[str, Any] | None) -> Iterator[None]:
        """Within, the chat template writes the date and the default system prompt that were recorded, and has
        the model think before it answers if it did so then.

        Args:
            record: what `Rendering.record` gave; without one, nothing changes.
        """
        before = self.rendering
        rendering = text.Rendering.from_record(record) or before
        thinking = rendering.thinking and text.can_think(self.tokenizer)
        self.rendering = replace(rendering, thinking=thinking)
        try:
            yield
        finally:
            self.rendering = before

    def _span(self, messages: Sequence[Message], ids: Sequence[int]) -> range:
        return text.message_span(self.tokenizer, messages, ids, self.rendering)

    def _parts(self, ids: Sequence[int], span: range) -> list[range]:
        return message_parts(ids, span, lambda some: text.decode_ids(self.tokenizer, some))

    def _hooks(
        self,
        rows: int,
        capture_layers: Sequence[int] = (),
        axes: Axes | None = None,
        stop_after: int | None = None,
    ) -> ResidualHooks:
        return ResidualHooks(
            self._blocks,
            self.hidden_size,
            rows,
            capture_layers=capture_layers,
            axes=axes,
            stop_after=stop_after,
            # Given text is read in one pass, which is not compiled.
            fixed=self._compiled is not None and stop_after is None,
        )
