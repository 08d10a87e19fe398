"""What the metadata of vector files hold, as far as readers use it; checked whenever a file is read.

Unknown fields pass: another version may have written them.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError

MOST_GAIN = 1e6  # either way; a persona's own, from strength to its vectors' size
Gain = Annotated[float, Field(ge=-MOST_GAIN, le=MOST_GAIN)]
Layer = Annotated[int, Field(ge=0, le=100_000)]
Layers = list[Layer]
Position = Literal["message", "prompt_last", "reply"]


class _Part(BaseModel):
    model_config = ConfigDict(extra="allow", frozen=True, strict=True, allow_inf_nan=False)


class _Estimate(_Part):
    value: float
    low: float
    high: float


# The model ------------------------------------------------------------------------------------------------


class _ModelShape(_Part):
    architecture: str
    hidden_size: int
    layers: int
    vocabulary: int


def _date(text: str) -> str:
    datetime.fromisoformat(text)
    return text


class RenderingRecord(_Part):
    """What a chat template wrote that is in no message; see `persona_tui.model.text.Rendering`."""

    date: Annotated[str, AfterValidator(_date)] | None = None
    default_system: str | None = None


class _File(_Part):
    name: str | None = None
    model_name: str | None = None
    model_fingerprint: str | None = None
    model_source: str | None = None
    model_shape: _ModelShape | None = None
    model_sketch: dict[str, list[float]] | None = None
    rendering: RenderingRecord | None = None
    hidden_size: int | None = None
    created: str | None = None
    layers: Layers

    @model_validator(mode="after")
    def _of_the_model(self) -> Self:
        if self.model_shape is not None and any(each >= self.model_shape.layers for each in self.layers):
            raise PydanticCustomError("layers", "layers: one is beyond those of the model")
        return self


# Personas and traits --------------------------------------------------------------------------------------


class _CurvePoint(_Part):
    recipe: str
    layers: Layers
    coefficient: float
    expression: float
    fluency_drop: float
    repetition: float = 0.0
    fluent: bool = True
    chosen: bool = False
    stage: str = ""


class _Calibration(_Part):
    recipe: str
    layers: Layers
    gain: float
    default_strength: float
    expression: float
    fluency_drop: float
    curve: list[_CurvePoint] = []
    recovered: float | None = None
    recovery: list[Annotated[list[float], Field(min_length=2, max_length=2)]] = []
    floor: str | None = None
    floor_leaves: float | None = None
    questions: int | None = None
    plausibility: float = 0.0
    unguided_gain: float | None = None


class _Loudness(_Part):
    strength: float
    fluency_drop: float
    fluent: bool = True
    gained: float | None = None


class _Reading(_Part):
    """Of a trait; `traits.vector.TraitReading` checks the rest."""

    layer: Layer
    auc: _Estimate


class _Persona(_File):
    name: str
    source: str | None = None
    description: str | None = None
    target_layers: Layers = []
    gain: Gain = 1.0
    unguided_gain: Gain | None = None
    prompts: list[str] = []
    prompt_sources: list[str] = []
    counts: dict[str, int] = {}
    extraction: dict[str, Any] = {}
    calibration: _Calibration | None = None
    loudness: _Loudness | None = None
    weak: bool = False
    weak_reason: str | None = None
    pending: bool = False
    orthogonalised: bool = True

    @model_validator(mode="after")
    def _within(self) -> Self:
        if not set(self.target_layers) <= set(self.layers):
            raise PydanticCustomError("layers", "target_layers: one is not among the layers of the file")
        return self


class _Trait(_Persona):
    trait: _Reading | None = None


# Axes and the baseline ------------------------------------------------------------------------------------


class _Asked(_Part):
    asked: int
    refused: int = 0
    answered: int = 0


class _Refusals(_Part):
    known_by: str
    safe: _Asked
    unsafe: _Asked
    made_of: str | None = None


class _Axes(_File):
    counts: dict[str, int] = {}
    extraction: dict[str, Any] = {}
    safety_hash: str | None = None
    default_capping_axis: str | None = None
    capping: dict[str, dict[str, float]] = {}
    refusals: _Refusals | None = None
    sides: dict[str, list[list[float]]] = {}


class _Baseline(_File):
    count: Annotated[int, Field(ge=1)]
    asked: int = 0
    extraction: dict[str, Any] = {}


# Monitors -------------------------------------------------------------------------------------------------


class _Figures(_Part):
    balanced_accuracy: float
    auc: _Estimate
    fitted_threshold: float | None = None


class _Detector(_Part):
    method: str
    position: Position
    layers: Layers
    form: Literal["cosines", "linear"]
    probability: bool
    threshold: float
    fit: _Figures


class _Harms(_Part):
    names: list[str]
    position: Position
    layer: Layer
    accuracy: float


class _ScanPoint(_Part):
    method: str
    position: Position
    layer: Layer
    separation: float
    effect: float
    auc: _Estimate


class _Source(_Part):
    file: str
    sha256: str | None = None
    queries: int


class _Query(_Part):
    query: str
    safe: bool
    group: str
    harm: str | None = None


class _Training(_Part):
    sources: list[_Source] = []
    statements: Annotated[list[str], Field(min_length=2, max_length=2)] | None = None
    queries: list[_Query] = []


class _Monitor(_File):
    method: str
    detectors: dict[str, _Detector]
    reply: _Detector
    harms: _Harms | None = None
    scan: list[_ScanPoint] = []
    training: _Training | None = None
    seed: int | None = None


_KINDS: dict[str, type[_File]] = {
    "persona": _Persona,
    "trait": _Trait,
    "axes": _Axes,
    "baseline": _Baseline,
    "monitor": _Monitor,
}


def check_metadata(metadata: Mapping[str, Any]) -> None:
    """Raise a ValidationError if a file's metadata is wrong; other kinds of files are not checked here."""
    kind = metadata.get("kind")
    model = _KINDS.get(kind) if isinstance(kind, str) else None
    if model is not None:
        model.model_validate(dict(metadata))
