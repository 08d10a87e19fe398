"""`Invocation`: what the options before a command say, and the project that they lead to."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from persona_tui.project.project import Project


@dataclass
class Invocation:
    """What the group's options say, for its commands."""

    workspace: Path | None = None
    model: str | None = None
    device: str | None = None
    dtype: str | None = None
    quantization: str | None = None
    engine: str | None = None
    trusted_model: str | None = None  # as --model named it; not what a session names later
    debug: bool = False

    @cached_property
    def project(self) -> Project:
        """The workspace and its model, opened on first use."""
        from persona_tui.cli.progress import note, prepare_model
        from persona_tui.project.project import Project

        project = Project.open(
            self.workspace,
            self.model,
            self.device,
            self.dtype,
            self.quantization,
            self.trusted_model,
            self.engine,
        )
        project.on_model_load = lambda name: prepare_model(name, fell_back=project.fell_back)
        project.on_note = note
        return project


pass_invocation = click.make_pass_decorator(Invocation)
