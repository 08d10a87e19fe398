"""`config show` and `config set`."""

from __future__ import annotations

import json
from typing import Any

import click

from persona_tui.cli.options import Invocation, pass_invocation
from persona_tui.cli.output import echo, json_option, print_json


@click.group()
def config() -> None:
    """Show or change the settings."""


@config.command("show")
@json_option
@pass_invocation
def show(invocation: Invocation, /, as_json: bool) -> None:
    """Print all settings, those left out of config.yaml too."""
    project = invocation.project
    settings = project.settings.model_dump()
    settings["model"]["name"] = project.asked_model
    if as_json:
        print_json(settings)
        return
    echo(f"# {project.workspace.config_path}")
    for section, values in settings.items():
        echo(f"{section}:")
        for key, value in values.items():
            echo(f"  {key}: {_scalar(value)}")


def _scalar(value: Any) -> str:
    """Return a value as YAML; JSON is YAML."""
    return json.dumps(value, ensure_ascii=False)


@config.command("set")
@click.argument("key")
@click.argument("value")
@pass_invocation
def set_(invocation: Invocation, /, key: str, value: str) -> None:
    """Set KEY (for example steering.default_strength) to VALUE in config.yaml, keeping comments and order."""
    from persona_tui.core.config import load_settings, set_value
    from persona_tui.core.workspace import Workspace

    path = Workspace.find(invocation.folder).config_path
    before = _value(load_settings(path).model_dump(), key)
    after = _value(set_value(path, key, value).model_dump(), key)
    was = "as before" if before == after else f"was {_scalar(before)}"
    echo(f"{key}: {_scalar(after)} ({was})")


def _value(settings: dict[str, Any], key: str) -> Any:
    """Return the value under a dotted key, None where there is none."""
    found: Any = settings
    for part in key.strip().split("."):
        found = found.get(part) if isinstance(found, dict) else None
    return found
