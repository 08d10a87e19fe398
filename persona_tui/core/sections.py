"""Sections of config.yaml: what they all are, and that of vLLM."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field


class Section(BaseModel):
    """Unknown keys are errors, and so are values of another type: the text "0.3" is not a number."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class VllmSettings(Section):
    """How vLLM runs the model, with `model.engine: vllm`."""

    requests: int = Field(default=64, ge=2, le=4096, description="a whole number from 2 to 4096")
    context: int | None = Field(
        default=None, ge=16, description="how many tokens a prompt and its reply may have, or null"
    )
    memory: float = Field(default=0.9, gt=0, le=1, description="a share, above 0 and up to 1")
    cache: float | None = Field(default=None, gt=0, description="a number of GiB, above 0, or null")
    tensor_parallel: int = Field(default=1, ge=1, le=1024, description="a whole number, 1 or more")
    pipeline_parallel: int = Field(default=1, ge=1, le=1024, description="a whole number, 1 or more")
    eager: bool = Field(default=False, description="true or false")
