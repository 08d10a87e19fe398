"""What the events of a session's file hold, as far as readers use it; checked when a file is read.

Unknown fields pass: another version may have written them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from persona_tui.core import ranges
from persona_tui.core.ranges import Range
from persona_tui.vectors.metadata import RenderingRecord


class _Recorded(BaseModel):
    model_config = ConfigDict(extra="allow", frozen=True, strict=True)


def _within(range: Range) -> Any:
    return Field(ge=range.low, le=range.high)


_Strength = Annotated[float, _within(ranges.STRENGTH)]
_Weight = Annotated[float, _within(ranges.WEIGHT)]
_Percentile = Annotated[float, _within(ranges.PERCENTILE)]
_Plausibility = Annotated[float, _within(ranges.PLAUSIBILITY)]
_Temperature = Annotated[float, _within(ranges.TEMPERATURE)]


class _Floor(_Recorded):
    axis: str
    percentile: _Percentile
    layers: list[int] = []


class _Mix(_Recorded):
    weights: dict[str, _Weight] | None = None
    strength: _Strength = 0.0
    percentile: _Percentile | None = None
    plausibility: _Plausibility = 0.0
    floor: _Floor | None = None
    vectors: dict[str, Any] = {}


class _Change(_Recorded):
    index: int
    mix: _Mix


class _Sampling(_Recorded):
    temperature: _Temperature = 0.0
    max_new_tokens: int = 1


class _Revised(_Recorded):
    role: str
    content: str


class _Settings(_Recorded):
    model: str | None = None
    system: str | None = None
    mix: _Mix | None = None
    sampling: _Sampling | None = None
    rendering: RenderingRecord | None = None
    forgotten: int = 0
    prompt_tokens: int = 0
    rows: list[_Mix] = []
    row_changes: list[list[_Change]] = []
    revises: list[_Revised] = []


class _Message(_Recorded):
    role: str
    text: str


class _Settled(_Recorded):
    settings: _Settings | None = None


class _Mixed(_Recorded):
    mix: _Mix


class _Begun(_Recorded):
    model: str | None = None
    fingerprint: str | None = None
    created: str | None = None


class _Tokens(_Recorded):
    ids: list[int]
    texts: list[str]


class _Titled(_Recorded):
    title: str


class _End(_Recorded):
    finish: str
    stats: dict[str, Any] | None = None


_KINDS: dict[str, type[_Recorded]] = {
    "session": _Begun,
    "message": _Message,
    "reply": _Settled,
    "settings": _Settled,
    "tokens": _Tokens,
    "mix": _Mixed,
    "title": _Titled,
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
