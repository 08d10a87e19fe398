"""The `persona-tui` group, its options, and its commands, each loaded only when it is called."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import click

from persona_tui import __version__
from persona_tui.cli.options import Invocation

# Name -> module and attribute, in the order of `--help`.
COMMANDS = {
    "chat": "chat:chat",
    "generate": "generate:generate",
    "compare": "compare:compare",
    "sweep": "plot:sweep",
    "plot": "plot:plot",
    "sessions": "sessions:sessions",
    "replay": "replay:replay",
    "serve": "serve:serve",
    "list": "personas:list_",
    "info": "personas:info",
    "load": "personas:load",
    "unload": "personas:unload",
    "create": "create:create",
    "calibrate": "create:calibrate",
    "delete": "personas:delete",
    "export": "exchange:export",
    "import": "exchange:import_",
    "init": "setup:init",
    "extract-axes": "setup:extract_axes",
    "trait": "trait:trait",
    "dataset": "dataset:dataset",
    "monitor": "monitor:monitor",
    "model": "model:model",
    "config": "config:config",
    "doctor": "doctor:doctor",
}


class LazyGroup(click.Group):
    """A group that imports a command's module when the command is looked at."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names, in our order rather than the alphabet's."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import one command."""
        if cmd_name not in COMMANDS:
            return None
        module, _, attribute = COMMANDS[cmd_name].partition(":")
        found: click.Command = getattr(importlib.import_module(f"persona_tui.cli.{module}"), attribute)
        return found

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find a command, or offer the nearest one."""
        from persona_tui.core.errors import nearest

        if args and not args[0].startswith("-") and args[0] not in COMMANDS:
            ctx.fail(f'Unknown command "{args[0]}".{nearest(args[0], COMMANDS)}')
        return super().resolve_command(ctx, args)


@click.group(
    cls=LazyGroup,
    invoke_without_command=True,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.option(
    "--workspace",
    type=click.Path(file_okay=False, path_type=Path),
    help="Folder with config.yaml, datasets/ and vectors/. [default: the nearest one, else your data folder]",
)
@click.option(
    "--model",
    metavar="NAME_OR_PATH",
    help="auto, starter, tiny, a folder, FILE.gguf, ollama:NAME or a Hugging Face name.",
)
@click.option("--device", metavar="DEVICE", help="auto, cpu, cuda, cuda:N, mps or multi.")
@click.option(
    "--dtype", type=click.Choice(["auto", "float32", "float16", "bfloat16"]), help="Of the weights."
)
@click.option("--quantization", type=click.Choice(["none", "8bit", "4bit"]), help="Of the weights.")
@click.option(
    "--engine",
    metavar="ENGINE",
    help="What runs the model: transformers, vllm, or the URL of a vLLM server that lends its own.",
)
@click.option(
    "--trust-remote-code",
    is_flag=True,
    help="Trust the model named by --model: run its custom code, load pickled weights.",
)
@click.option("--debug", is_flag=True, help="Show a traceback with errors.")
@click.version_option(__version__, prog_name="persona-tui")
@click.pass_context
def root(ctx: click.Context, /, **options: Any) -> None:
    """Extract directions from a language model, steer with them, and hear what they do.

    Without a command, the app opens.
    """
    invocation = ctx.ensure_object(Invocation)
    if options.pop("trust_remote_code"):
        if options["model"] is None:
            ctx.fail("--trust-remote-code needs --model: name the model you trust.")
        invocation.trusted_model = options["model"]
    for name, value in options.items():
        setattr(invocation, name, value)
    if ctx.invoked_subcommand is None:
        from persona_tui.cli.chat import chat

        ctx.invoke(chat)
