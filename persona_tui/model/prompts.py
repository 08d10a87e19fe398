"""Encoding prompts beside the thread that owns the model."""

from __future__ import annotations

import copy
import threading
from collections.abc import Sequence
from dataclasses import replace

from persona_tui.model import text
from persona_tui.model.control import template_text
from persona_tui.model.request import Message
from persona_tui.model.text import Rendering
from persona_tui.model.wrapper import ModelWrapper


class PromptEncoder:
    """Turns conversations and texts into token ids, from any thread: with its own copy of the tokenizer.

    Attributes:
        template: the chat template; empty if there is none.
    """

    def __init__(self, model: ModelWrapper) -> None:
        self._tokenizer = copy.deepcopy(model.tokenizer)
        self._rendering = model.rendering
        self._lock = threading.Lock()
        self.template = template_text(self._tokenizer)

    def conversation(self, messages: Sequence[Message], rendering: Rendering | None = None) -> list[int]:
        """Return the token ids of `ModelWrapper.encode`.

        Args:
            messages: the conversation.
            rendering: what the template writes by itself; None = as in a conversation that begins now.

        Raises:
            GenerationError: the chat template refuses the conversation.
        """
        with self._lock:
            today = text.Rendering.now(self._tokenizer).date
            rendering = rendering or replace(self._rendering, date=today)
            return text.encode_prompt(self._tokenizer, messages, rendering)

    def text(self, content: str) -> list[int]:
        """Return the token ids of a text that is to be continued; control tokens in it are text."""
        with self._lock:
            return text.encode(self._tokenizer, content, special=True)

    def token(self, token_id: int) -> str:
        """Return what one token looks like by itself."""
        with self._lock:
            return str(self._tokenizer.decode([token_id], clean_up_tokenization_spaces=False))
