"""What is wrong with a document that pydantic refused, in words for the person who wrote it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from persona_tui.core.errors import nearest

_NEEDED = {
    "a text": ("string_type",),
    "a whole number": ("int_type", "int_parsing", "int_from_float", "int_parsing_size"),
    "a number": ("float_type", "float_parsing"),
    "a finite number": ("finite_number",),
    "true or false": ("bool_type", "bool_parsing"),
    "a list": ("list_type", "tuple_type", "set_type", "frozen_set_type"),
    "an object with keys": ("dict_type", "model_type", "model_attributes_type", "dataclass_type"),
    "null": ("none_required",),
}
_BOUNDS = {
    "literal_error": "{expected}",
    "greater_than_equal": "a number of at least {ge}",
    "greater_than": "a number above {gt}",
    "less_than_equal": "a number of at most {le}",
    "less_than": "a number below {lt}",
    "too_short": "a list of at least {min_length}",
    "too_long": "a list of at most {max_length}",
    "string_too_short": "a text of at least {min_length} characters",
    "string_too_long": "a text of at most {max_length} characters",
}
_BY_TYPE = {kind: needed for needed, kinds in _NEEDED.items() for kind in kinds}
_LONGEST = 40  # characters of a wrong value that are shown


def mistake_of(error: ValidationError, document: Any = None, known: type[BaseModel] | None = None) -> str:
    """Return the first mistake in one line: the key, what is wrong with it, and what is needed there.

    Args:
        error: raised by a model.
        document: what the model was given; None = that is not at hand.
        known: the model, to suggest the nearest of its keys for one that is unknown.
    """
    problems = error.errors(include_url=False)
    first = _first(problems, document)
    key = _place(first, document)
    if first["type"] == "extra_forbidden":
        hint = nearest(key, known.model_fields) if known is not None and "." not in key else ""
        return f'unknown key "{key}"{f".{hint}" if hint else ""}'
    if first["type"] == "missing":
        return f'"{key}" is missing'
    alike = [each for each in problems if _place(each, document) == key]
    return f'"{key}": {_wanted(alike)}' if key else _wanted(alike)


def place_of(error: ValidationError, document: Any) -> str:
    """Return the keys that lead to the first mistake, with dots between them; "" is the document itself."""
    return _place(_first(error.errors(include_url=False), document), document)


def _first(problems: Sequence[ErrorDetails], document: Any) -> ErrorDetails:
    """Return the first mistake: where a value may have several forms, that of the form that fits so far."""
    key = _place(problems[0], document)
    inside = (each for each in problems if key and _place(each, document).startswith(f"{key}."))
    return next(inside, problems[0])


def _place(problem: ErrorDetails, document: Any) -> str:
    if document is None:
        return ".".join(map(str, problem["loc"]))
    # Pydantic also names which form of several it tried there: that is no key of the document.
    keys: list[str] = []
    for part in problem["loc"]:
        try:
            document = document[part]
        except (KeyError, IndexError, TypeError):
            if problem["type"] != "missing" or part != problem["loc"][-1]:
                continue
        keys.append(str(part))
    return ".".join(keys)


def _wanted(problems: Sequence[ErrorDetails]) -> str:
    first = problems[0]
    needed = dict.fromkeys(filter(None, map(_needed, problems)))
    if _needed(first) is None:
        return first["msg"].removeprefix("Value error, ")
    return f"{' or '.join(needed)} is needed, not {_shown(first['input'])}"


def _needed(problem: ErrorDetails) -> str | None:
    if problem["type"] in _BOUNDS:
        bounds = {
            name: int(end) if isinstance(end, float) and end.is_integer() else end
            for name, end in problem.get("ctx", {}).items()
        }
        if bounds.get("min_length") == 1:
            return "a text that is not empty" if "string" in problem["type"] else "a list that is not empty"
        return _BOUNDS[problem["type"]].format(**bounds)
    return _BY_TYPE.get(problem["type"])


def _shown(value: object) -> str:
    text = " ".join((f'"{value}"' if isinstance(value, str) else json.dumps(value, default=str)).split())
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 3]}..."
