"""What the events of a session's file hold, as far as readers use it; checked when a file is read.

Unknown fields pass: another version may have written them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict, FiniteFloat, ValidationError

from persona_tui.vectors.metadata import RenderingRecord


class _Recorded(BaseModel):
    model_config = ConfigDict(extra="allow", frozen=True, strict=True)


class _Floor(_Recorded):
    axis: str
    percentile: FiniteFloat
    layers: list[int] = []


class _Mix(_Recorded):
    weights: dict[str, FiniteFloat] | None = None
    strength: FiniteFloat = 0.0
    floor: _Floor | None = None
    vectors: dict[str, Any] = {}


class _Change(_Recorded):
    index: int
    mix: _Mix


class _Settings(_Recorded):
    model: str | None = None
    system: str | None = None
    mix: _Mix | None = None
    sampling: dict[str, Any] = {}
    rendering: RenderingRecord | None = None
    forgotten: int = 0
    prompt_tokens: int = 0
    rows: list[_Mix] = []
    row_changes: list[list[_Change]] = []


class _Message(_Recorded):
    role: str
    text: str


class _Settled(_Recorded):
    settings: _Settings | None = None


class _Mixed(_Recorded):
    mix: _Mix


class _End(_Recorded):
    finish: str
    stats: dict[str, Any] | None = None


_KINDS: dict[str, type[_Recorded]] = {
    "message": _Message,
    "reply": _Settled,
    "settings": _Settled,
    "mix": _Mixed,
    "end": _End,
}


def fault_of(kind: str, fields: Mapping[str, Any]) -> str | None:
    """Return what is wrong with an event's fields, in a few words that name the field, or None."""
    model = _KINDS.get(kind)
    if model is None:
        return None
    try:
        model.model_validate(dict(fields))
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        return f"{'.'.join(map(str, first['loc']))}: {first['msg'].split(' or instance')[0]}"
    return None
