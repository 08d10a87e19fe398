"""Writing a conversation with a model's own chat template: a program from whoever made the model.

transformers runs it in a sandbox, without files or network, but not with an end. So the lines that it runs
are counted, in the thread that runs them, and after `MOST_STEPS` it is stopped.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import Any

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

MOST_STEPS = 1_000_000  # a conversation of ten thousand messages takes a tenth of that
_TEMPLATE_FILE = "<template>"  # what jinja2 calls the code that it makes of a text


_ENDLESS = "it does not come to an end"


class EndlessTemplate(TemplateError):
    """A chat template does not come to an end."""


def apply_template(
    tokenizer: PreTrainedTokenizerBase,
    messages: Sequence[dict[str, str]],
    template: str | None = None,
    thinking: bool = False,
) -> str:
    """Return a conversation as the template writes it, up to where the assistant's next words begin.

    Args:
        tokenizer: has the template.
        messages: the conversation.
        template: to be used instead of its own.
        thinking: whether a thinking model may think before it answers, if the template knows of that.

    Raises:
        EndlessTemplate: it loops.
        TemplateError: the template refuses the conversation, or is none; other errors of its own, too.
    """
    try:
        with _counted_steps():
            text = tokenizer.apply_chat_template(
                list(messages),
                chat_template=template,
                tokenize=False,
                add_generation_prompt=True,
                enable_thinking=thinking,
            )
    except RecursionError as error:
        raise EndlessTemplate(_ENDLESS) from error
    return str(text)


@contextmanager
def _counted_steps() -> Iterator[None]:
    """Within, a template's code raises once it has run too many lines."""
    steps = 0

    def step(frame: FrameType, event: str, argument: Any) -> Any:
        nonlocal steps
        steps += 1
        if steps > MOST_STEPS:
            raise EndlessTemplate(_ENDLESS)
        return step

    def call(frame: FrameType, event: str, argument: Any) -> Any:
        return step if frame.f_code.co_filename == _TEMPLATE_FILE else None

    before = sys.gettrace()
    sys.settrace(call)
    try:
        yield
    finally:
        sys.settrace(before)
