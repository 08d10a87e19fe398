"""Write docs/api.md, the page of the public Python API, from the docstrings: `python -m tools.api_page`."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import persona_tui

PAGE = Path(__file__).resolve().parents[1] / "docs" / "api.md"
_OPENING = """# Python API

Written by `python -m tools.api_page` from the docstrings. `import persona_tui` is quick: a name loads what it
needs when it is used. Whatever is wrong with files, numbers, names and models is a
`persona_tui.core.errors.PersonaTuiError`, and its text is one line; arguments of another type are Python's
errors. A direction per layer is `[hidden]`, float32 on the CPU; layer *i* is the output of decoder block *i*,
from 0.
"""
_SECTIONS = ("Args:", "Attributes:", "Returns:", "Raises:", "Warns:")
_ENTRY = re.compile(r"([\w, ]+): (.*)")


def page() -> str:
    """Return the whole page: first the functions, then the classes with their public methods."""
    names = sorted(persona_tui.__all__, key=lambda name: (inspect.isclass(getattr(persona_tui, name)), name))
    parts = [_OPENING, *(part for name in names for part in _described(name, getattr(persona_tui, name)))]
    return "\n".join(parts).rstrip() + "\n"


def _described(name: str, value: Any) -> Iterator[str]:
    yield f"## {name}\n"
    if not inspect.isclass(value):
        # A function that was made a context manager.
        yield _code(f"with {name}" if hasattr(value, "__wrapped__") else name, inspect.unwrap(value))
        yield _prose(inspect.getdoc(value))
        return
    yield f"`from {value.__module__} import {value.__name__}`\n"
    yield _code(name, value)
    yield _prose(inspect.getdoc(value))
    members = _members(value)
    own = members.get("__init__")
    if own is not None and own.__doc__:
        yield _prose(inspect.getdoc(own))
    for each, member in members.items():
        if not each.startswith("_"):
            yield from _member(name, each, member)


def _members(value: type) -> dict[str, Any]:
    """What a class has of its own, then what it has from the classes of ours that it stands on."""
    found: dict[str, Any] = {}
    for each in value.__mro__:
        if each.__module__.startswith("persona_tui"):
            found = {**found, **{name: member for name, member in vars(each).items() if name not in found}}
    return found


def _member(owner: str, name: str, member: Any) -> Iterator[str]:
    if isinstance(member, property) or hasattr(member, "attrname"):  # or a cached one
        yield f"### {owner}.{name}\n"
        yield _prose(inspect.getdoc(member))
    elif isinstance(member, classmethod | staticmethod) or inspect.isfunction(member):
        function = getattr(member, "__func__", member)
        yield f"### {owner}.{name}()\n"
        yield _code(name, function)
        yield _prose(inspect.getdoc(function))


def _code(name: str, value: Any) -> str:
    signature = inspect.signature(value)
    shown = [
        parameter.replace(annotation=_Bare.of(parameter.annotation))
        for parameter in signature.parameters.values()
        if parameter.name not in ("self", "cls")
    ]
    returned = signature.return_annotation
    text = str(signature.replace(parameters=shown, return_annotation=_Bare.of(returned)))
    text = text.removesuffix(" -> None").removesuffix(" -> Iterator[None]")
    if len(name) + len(text) > 100:
        inside, end = text[1:].rsplit(")", 1)
        text = "(\n    " + ",\n    ".join(_split(inside)) + f",\n){end}"
    return f"```python\n{name}{text}\n```\n"


class _Bare:
    """An annotation that is shown without the quotes of its text."""

    def __init__(self, text: str) -> None:
        self._text = text

    def __repr__(self) -> str:
        return self._text

    @staticmethod
    def of(annotation: Any) -> Any:
        return _Bare(annotation) if isinstance(annotation, str) else annotation


def _split(text: str) -> list[str]:
    """Split at the commas that stand in no bracket."""
    parts, depth = [""], 0
    for character in text:
        depth += (character in "([{") - (character in ")]}")
        if character == "," and not depth:
            parts.append("")
        else:
            parts[-1] += character
    return [part.strip() for part in parts]


def _prose(text: str | None) -> str:
    """A docstring as Markdown: its sections become lists."""
    lines: list[str] = []
    section = ""
    for line in (text or "").splitlines():
        if line in _SECTIONS:
            section = line
            lines += [f"*{line[:-1]}*", ""]
        elif section and line.startswith("    ") and not line.startswith("     "):
            lines.append(_entry(line.strip(), section))
        elif section and line.strip():
            lines.append(f"  {line.strip()}")
        else:
            section = section if not line else ""
            lines.append(line)
    return "\n".join(lines).rstrip() + "\n"


def _entry(line: str, section: str) -> str:
    match = _ENTRY.fullmatch(line)
    return f"- `{match[1]}`: {match[2]}" if match and section != "Returns:" else f"- {line}"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
