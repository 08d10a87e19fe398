"""What the events of a session's file hold, as far as readers use it; checked when a file is read.

Unknown fields pass: another version may have written them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from persona_tui.core.mix import (
    NEW_TOKENS,
    PERCENTILE,
    PLAUSIBILITY,
    STRENGTH,
    TEMPERATURE,
    TOP_P,
    WEIGHT,
    Range,
)
from persona_tui.vectors.metadata import RenderingRecord


class _Recorded(BaseModel):
    model_config = ConfigDict(extra="allow", frozen=True, strict=True)


def _within(range: Range) -> Any:
    return Field(ge=range.low, le=range.high)


_Strength = Annotated[float, _within(STRENGTH)]
_Weight = Annotated[float, _within(WEIGHT)]
_Percentile = Annotated[float, _within(PERCENTILE)]
_Plausibility = Annotated[float, _within(PLAUSIBILITY)]
_Temperature = Annotated[float, _within(TEMPERATURE)]


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
    vectors: dict[str, str | None] = {}


class _Change(_Recorded):
    index: int
    mix: _Mix


class _Sampling(_Recorded):
    temperature: _Temperature = 0.0
    top_p: Annotated[float, _within(TOP_P)] = 1.0
    seed: Annotated[int, Field(ge=0)] | None = None
    max_new_tokens: Annotated[int, _within(NEW_TOKENS)] = 1


class _Revised(_Recorded):
    role: str
    content: str


class _Settings(_Recorded):
    model: str | None = None
    fingerprint: str | None = None
    device: str | None = None
    dtype: str | None = None
    quantization: str | None = None
    threads: int | None = None
    system: str | None = None
    mix: _Mix | None = None
    sampling: _Sampling | None = None
    rendering: RenderingRecord | None = None
    forgotten: int = 0
    prompt_tokens: int = 0
    rows: list[_Mix] = []
    row_changes: list[list[_Change]] = []
    revises: list[_Revised] = []


class _Begun(_Recorded):
    model: str | None = None
    fingerprint: str | None = None
    created: str | None = None


class _Placed(_Recorded):
    node: int


class _Message(_Placed):
    parent: int | None = None
    role: Literal["user", "assistant"]
    text: str
    edit_of: int | None = None


class _Reply(_Placed):
    parent: int | None = None
    settings: _Settings
    continues: bool = False


class _Changed(_Placed):
    settings: _Settings


class _Tokens(_Placed):
    ids: list[int]
    texts: list[str]


class _Mixed(_Recorded):
    node: int | None = None
    index: int | None = None
    mix: _Mix


class _End(_Placed):
    finish: str
    stats: dict[str, Any] | None = None


class _System(_Recorded):
    text: str | None


class _Titled(_Recorded):
    title: str


_KINDS: dict[str, type[_Recorded]] = {
    "session": _Begun,
    "message": _Message,
    "reply": _Reply,
    "settings": _Changed,
    "tokens": _Tokens,
    "mix": _Mixed,
    "end": _End,
    "walk": _Placed,
    "drop": _Placed,
    "system": _System,
    "title": _Titled,
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
