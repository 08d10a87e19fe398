"""Writing a conversation with a model's own chat template.

The text is the one that `apply_chat_template` of transformers writes, whose documentation says what a
template finds there. But here it has limits, and today is the day on which a conversation began.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import datetime
from functools import lru_cache
from typing import Any, NoReturn

from jinja2 import Template, TemplateError, nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.utils import Namespace
from transformers import PreTrainedTokenizerBase

from persona_tui.model.sandbox import BoundedEnvironment, EndlessTemplate, limits


def apply_template(
    tokenizer: PreTrainedTokenizerBase,
    messages: Sequence[dict[str, str]],
    thinking: bool = False,
    day: datetime | None = None,
) -> str:
    """Return a conversation as the template writes it, up to where the assistant's next words begin.

    Args:
        tokenizer: has the template.
        messages: the conversation.
        thinking: whether a thinking model may think before it answers, if the template knows of that.
        day: what the template is told of today; None = the truth.

    Raises:
        EndlessTemplate: it has no end, or wants too much.
        TemplateError: the template refuses the conversation, or is none.
    """
    try:
        with limits(sum(len(each["content"]) for each in messages)):
            template = _compiled(tokenizer.get_chat_template())
            return template.render(
                messages=[dict(each) for each in messages],
                tools=None,
                documents=None,
                add_generation_prompt=True,
                enable_thinking=thinking,
                strftime_now=(day or datetime.now()).strftime,
                **{name: str(each) for name, each in tokenizer.special_tokens_map.items()},
            )
    except (TemplateError, EndlessTemplate):
        raise
    except Exception as error:  # a program of somebody else's may fail in any way
        raise TemplateError(f"{type(error).__name__}: {error}") from error


@lru_cache(maxsize=8)
def _compiled(text: str) -> Template:
    environment = BoundedEnvironment(
        {"tojson": _to_json}, trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols]
    )
    environment.globals.update(raise_exception=_refuse, dict=_dictionary, namespace=_Names)
    return environment.from_string(text)


class _Generation(Extension):
    """`{% generation %}` marks replies for training; what is in it is written like anything else."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: Parser) -> list[nodes.Node]:
        """Take what is in it."""
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _refuse(message: object) -> NoReturn:
    raise TemplateError(str(message))


def _dictionary(*args: Any, **kwargs: Any) -> dict[Any, Any]:
    return dict(*args, **kwargs)


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | str | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


class _Names(Namespace):
    """A namespace without the names that lead to Python's insides."""

    def __init__(*args: Any, **kwargs: Any) -> None:
        self, *rest = args
        found = dict(*rest, **kwargs)
        for name in found:
            _check_name(name)
        Namespace.__init__(self, found)

    def __setitem__(self, name: str, value: Any) -> None:
        _check_name(name)
        super().__setitem__(name, value)


def _check_name(name: object) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise TemplateError(f"a template has no name like {name}")
