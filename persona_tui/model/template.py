"""Writing a conversation with a model's own chat template, in a sandbox with an end to what it may use.

The text is the one that `apply_chat_template` of transformers writes, whose documentation says what a
template finds there. But here it has limits, and today is the day on which a conversation began.

A template is a program from whoever made the model. Jinja's sandbox keeps it from files and from Python's
insides, but not from `{{ 'x' * 10 ** 9 }}`. So within `limits` the lines and calls of a rendering are
counted, its time is measured, and what can make something large is asked first how large that will be.
"""

from __future__ import annotations

import functools
import json
import re
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import datetime
from functools import lru_cache
from types import FrameType
from typing import Any, NoReturn

from jinja2 import Template, TemplateError, nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace
from jinja2.visitor import NodeTransformer
from transformers import PreTrainedTokenizerBase

from persona_tui.core.errors import GenerationError


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


# For each conversation. One of ten thousand messages takes a tenth of each.
MOST_STEPS = 10_000_000  # lines of the template, and calls
MOST_MADE = 250_000_000  # characters that are put together, and 50 times what the messages have
MOST_SECONDS = 5.0  # of this thread

LARGEST_NUMBER = 100_000  # as an argument; also what the sandbox allows `range`
_MOST_BITS = 4096  # of a product or a power
_MOST_PARTS = 200_000  # of a nested value that is written out or compared
_ITEM = 20  # what an item of a list counts, in characters
_ENDLESS = "it does not come to an end"
_TOO_LONG = "it makes a text that is too long"
_TEMPLATE_FILE = "<template>"  # what jinja2 calls the code that it makes of a text

# `%999999d`, `%*d` and `{:999999}`: a width that makes much of little.
_WIDE = re.compile(r"%[^%a-zA-Z]*(?:\*|\d{6})|\{[^{}]*\d{6}")
# Filters that pass the items of a list on, and do not write them out.
_SHALLOW = {"attr", "batch", "count", "d", "default", "dictsort", "first", "groupby", "items", "last"} | {
    *("length", "list", "map", "max", "min", "random", "reject", "rejectattr", "reverse", "select"),
    *("selectattr", "slice", "sort", "unique", "_slice"),
}


class EndlessTemplate(GenerationError):
    """A chat template does not come to an end, or wants more than a conversation can need."""

    def __init__(self, problem: str) -> None:
        super().__init__(f"The model's chat template is refused: {problem}.")


class _Budget:
    """What is left for one rendering."""

    def __init__(self, given: int) -> None:
        self._steps = 0
        self._room = MOST_MADE + 50 * given
        self._ends = time.thread_time() + MOST_SECONDS

    def step(self) -> None:
        """Count a line or a call."""
        self._steps += 1
        if self._steps > MOST_STEPS or (not self._steps % 64 and time.thread_time() > self._ends):
            raise EndlessTemplate(_ENDLESS)

    def allow(self, size: int) -> None:
        """Raise unless there is room for something of a size."""
        if size > self._room:
            raise EndlessTemplate(_TOO_LONG)

    def made(self, value: Any) -> Any:
        """Count a value, and return it."""
        self._room -= _length(value)
        self.allow(0)
        return value


_budget: ContextVar[_Budget] = ContextVar("budget")


@contextmanager
def limits(given: int) -> Iterator[None]:
    """Within, templates of a `BoundedEnvironment` can be compiled and rendered, as far as the limits allow.

    Args:
        given: how many characters the messages have.

    Raises:
        EndlessTemplate: they do not allow it.
    """
    budget = _Budget(given)

    def line(frame: FrameType, event: str, argument: Any) -> Any:
        budget.step()
        return line

    def call(frame: FrameType, event: str, argument: Any) -> Any:
        budget.step()
        return line if frame.f_code.co_filename == _TEMPLATE_FILE else None

    token = _budget.set(budget)
    before = sys.gettrace()
    sys.settrace(call)
    try:
        yield
    except (RecursionError, MemoryError, OverflowError) as error:
        raise EndlessTemplate(_ENDLESS) from error
    finally:
        sys.settrace(before)
        _budget.reset(token)


class BoundedEnvironment(ImmutableSandboxedEnvironment):
    """Jinja's sandbox, in which each operation is within the limits."""

    intercepted_binops = frozenset({"+", "*", "**", "%"})

    def __init__(self, filters: Mapping[str, Callable[..., Any]], **options: Any) -> None:
        super().__init__(**options, finalize=_written)
        self.filters.update(filters, _slice=_slice)
        self.filters = {name: _bounded(each, name) for name, each in self.filters.items()}
        self.filters["_compared"] = _written
        self.tests = {name: _looking(each) for name, each in self.tests.items()}

    @staticmethod
    def concat(pieces: Iterable[str]) -> str:
        """Join what a template writes."""
        budget = _budget.get()
        return "".join(budget.made(piece) for piece in pieces)

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        """Do what is within the limits."""
        budget = _budget.get()
        budget.allow(_size_after(operator, left, right))
        return budget.made(super().call_binop(context, operator, left, right))

    def call(__self, __context: Context, __obj: Any, *args: Any, **kwargs: Any) -> Any:
        """Call what is within the limits."""
        method = getattr(__obj, "__wrapped__", __obj)  # the sandbox wraps `format`
        owner = getattr(method, "__self__", None)
        if isinstance(owner, str):
            _check_call(method.__name__, (owner, *args), kwargs, nested=True)
        else:
            _check_call("", (None, *args), kwargs, nested=False)
        return _budget.get().made(super().call(__context, __obj, *args, **kwargs))

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        tree: nodes.Template = _Asking().visit(Parser(self, source, name, filename).parse())
        return tree


class _Asking(NodeTransformer):
    """Replaces operations that Jinja does without asking its environment."""

    def visit_Concat(self, node: nodes.Concat, **_: Any) -> nodes.Node:
        """`a ~ b`: join the list of both."""
        self.generic_visit(node)
        return _filtered(nodes.List(node.nodes), "join", node)

    def visit_Getitem(self, node: nodes.Getitem, **_: Any) -> nodes.Node:
        """`a[1:]`: call a filter."""
        self.generic_visit(node)
        if not isinstance(node.arg, nodes.Slice):
            return node
        ends = (node.arg.start, node.arg.stop, node.arg.step)
        return _filtered(node.node, "_slice", node, [each or nodes.Const(None) for each in ends])

    def visit_Compare(self, node: nodes.Compare, **_: Any) -> nodes.Node:
        """`a == b`: look at what is not written in the template itself."""
        self.generic_visit(node)
        sides: list[Any] = [node, *node.ops]
        for side in sides:
            if not isinstance(side.expr, nodes.Const):
                side.expr = _filtered(side.expr, "_compared", node)
        return node


def _filtered(
    value: nodes.Expr, name: str, node: nodes.Node, args: list[nodes.Expr] | None = None
) -> nodes.Filter:
    made = nodes.Filter(value, name, args or [], [], None, None, lineno=node.lineno)
    assert node.environment is not None  # it was parsed
    made.set_environment(node.environment)
    return made


def _looking(test: Any) -> Any:
    """Return a test that may compare what it is given, if that is not too large."""

    @functools.wraps(test)
    def asked(*args: Any) -> Any:
        for each in args:
            _written(each)
        return test(*args)

    return asked


def _bounded(function: Callable[..., Any], name: str) -> Callable[..., Any]:
    """Return a filter that is asked first; what Jinja notes on the function itself stays."""
    passed = 1 if hasattr(function, "jinja_pass_arg") else 0
    nested = name not in _SHALLOW

    @functools.wraps(function)
    def asked(*args: Any, **kwargs: Any) -> Any:
        _check_call(name, args[passed:], kwargs, nested)
        return _budget.get().made(function(*args, **kwargs))

    return asked


def _check_call(name: str, values: Sequence[Any], named: Mapping[str, Any], nested: bool) -> None:
    """Raise if a call may take too long or make too much.

    Args:
        name: of the filter or of the method of a text.
        values: what it works on, and its arguments.
        named: more arguments.
        nested: whether it may write out what lies in lists.
    """
    if name in ("format", "format_map") and _WIDE.search(str(values[0])):
        raise EndlessTemplate(_TOO_LONG)
    largest, second = 1, 1
    for each in (*values, *named.values()):
        size = _size(each) if nested else _length(each)
        largest, second = max(largest, size), max(second, min(largest, size))
        if isinstance(each, int) and abs(each) > LARGEST_NUMBER and each is not values[0]:
            raise EndlessTemplate(f"it passes on a number that is larger than {LARGEST_NUMBER:,}")
    _budget.get().allow(largest * second)


def _size_after(operator: str, left: Any, right: Any) -> int:
    """Return how large the result of an operation is at most."""
    if operator == "+":
        return _length(left) + _length(right)
    if operator == "%":
        if not isinstance(left, str):
            return 1
        if _WIDE.search(left):
            raise EndlessTemplate(_TOO_LONG)
        return max(len(left), 1) * max(_size(right), 1)
    for value, times in ((left, right), (right, left)):
        if isinstance(value, (str, bytes, list, tuple)) and isinstance(times, int):
            return _size(value) * max(times, 0)
    if isinstance(left, int) and isinstance(right, int):
        bits = left.bit_length() + right.bit_length()
        if operator == "**":
            bits = left.bit_length() * max(right, 0)
        if bits > _MOST_BITS:
            raise EndlessTemplate("it makes a number that is too large")
    return 1


def _length(value: Any) -> int:
    """Return the size of a value itself, in characters."""
    if isinstance(value, (str, bytes)):
        return len(value)
    return _ITEM * len(value) if isinstance(value, (list, tuple, dict, set, frozenset, range)) else 1


def _size(value: Any) -> int:
    """Return the size of a value with all that lies in it, in characters."""
    if not isinstance(value, (list, tuple, dict, set, frozenset)):
        return _length(value)
    total, parts, waiting = 0, 0, [value]
    while waiting:
        each = waiting.pop()
        if isinstance(each, (list, tuple, dict, set, frozenset)):
            parts += len(each)
            if parts > _MOST_PARTS:
                raise EndlessTemplate("it makes a list that is too long")
            waiting += each
            waiting += each.values() if isinstance(each, Mapping) else ()
        total += _length(each)
    return total


def _written(value: Any) -> Any:
    """Return a value that is written out or compared, once its size is allowed."""
    if isinstance(value, (list, tuple, dict, set, frozenset)):
        _budget.get().allow(_size(value))
    return value


def _slice(value: Any, start: Any, stop: Any, step: Any) -> Any:
    return value[start:stop:step]
